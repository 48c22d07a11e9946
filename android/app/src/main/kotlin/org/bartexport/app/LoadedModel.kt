/*
 * An open model, which can generate and run the self-test.
 */
package org.bartexport.app

import java.io.File
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import org.bartexport.Artifact
import org.bartexport.Axis
import org.bartexport.litert.CompiledModelEngine
import org.bartexport.litert.EngineOptions
import org.bartexport.quality.ReplayedCase
import org.bartexport.quality.accepted
import org.bartexport.quality.replay
import org.bartexport.runtime.Generator

/**
 * An open model; [close] frees it.
 *
 * @property generator generates summaries
 * @property facts properties to display
 * @property options the options it was opened with
 */
class LoadedModel private constructor(
    private val artifact: Artifact,
    private val dispatcher: CoroutineDispatcher,
    val generator: Generator,
    val facts: ModelFacts,
    val options: EngineOptions,
) : AutoCloseable {
    /**
     * Replays the artifact's golden questions.
     *
     * The generator must not be used meanwhile. Collecting throws an
     * [org.bartexport.BartExportError] if a file was modified or the engine fails.
     */
    fun selfTest(): Flow<SelfTest> = flow {
        val cases = mutableListOf<ReplayedCase>()
        emit(SelfTest.Running(0, 0))
        replay(artifact, facts.file, generator.engine, generator.tokenizer).collect { case ->
            cases += case
            emit(SelfTest.Running(case.number, case.of))
        }
        emit(
            SelfTest.Finished(
                passed = accepted(artifact, facts.file, cases),
                same = cases.count { it.passed },
                of = cases.size,
                difference = cases.firstOrNull { !it.passed }
                    ?.let { it.expected.text to it.received.text },
            ),
        )
    }.flowOn(dispatcher)

    override fun close(): Unit = generator.close()

    companion object {
        /**
         * Opens the first static file of an artifact that LiteRT can run. This takes seconds.
         *
         * @throws org.bartexport.BartExportError if the artifact is damaged or has no such file, or
         *   LiteRT cannot open it
         */
        fun open(directory: File, options: EngineOptions): LoadedModel {
            val began = System.nanoTime()
            val artifact = Artifact.open(directory)
            val file = artifact.staticFile()
            val tokenizer = artifact.tokenizer()
            val engine = CompiledModelEngine.open(artifact, file, options)
            // One thread suffices: the engine has its own.
            val dispatcher = Dispatchers.Default.limitedParallelism(1)
            val seconds = (System.nanoTime() - began) / NANOSECONDS
            val facts = facts(artifact, file, engine, seconds)
            val generator =
                Generator(tokenizer, engine, artifact.generation, facts.sourceLength, dispatcher)
            return LoadedModel(artifact, dispatcher, generator, facts, options)
        }

        private fun facts(
            artifact: Artifact,
            file: String,
            engine: CompiledModelEngine,
            loadSeconds: Double,
        ): ModelFacts {
            val entry = artifact.manifest.files.getValue(file)
            val buckets = artifact.buckets(file)
            fun sizes(axis: String) = buckets.mapNotNull { it.sizes[axis] }.distinct().sorted()
            return ModelFacts(
                name = artifact.manifest.preset,
                file = file,
                bytes = entry.bytes,
                sourceLength =
                artifact.manifest.encoderSequenceLength.coerceAtMost(engine.sourceLength),
                targetLength = sizes(Axis.CAPACITY).last(),
                numBeams = sizes(Axis.BEAMS),
                generation = artifact.generation,
                accelerator = engine.accelerator,
                fallback = engine.fallback,
                loadSeconds = loadSeconds,
            )
        }
    }
}

private const val NANOSECONDS = 1e9
