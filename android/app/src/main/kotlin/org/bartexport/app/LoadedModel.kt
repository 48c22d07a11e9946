/*
 * The model, opened: what it takes to summarise and to be tested.
 *
 * The directory of an installed artifact goes in; a generator and what is known of the model come
 * out. Who asks, and who shows the answers, is not known here.
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
import org.bartexport.text.BartTokenizer

/**
 * A model that is open; [close] frees it.
 *
 * @property generator writes summaries
 * @property facts what is known of it
 * @property options what it was opened with
 */
class LoadedModel private constructor(
    private val artifact: Artifact,
    private val tokenizer: BartTokenizer,
    private val engine: CompiledModelEngine,
    private val dispatcher: CoroutineDispatcher,
    val generator: Generator,
    val facts: ModelFacts,
    val options: EngineOptions,
) : AutoCloseable {
    /**
     * Has the model answer again what its golden answers were recorded for, and says how far it is.
     *
     * Nothing else may use the generator meanwhile. Collecting throws
     * [org.bartexport.BartExportError] for files that were altered and where the engine fails.
     */
    fun selfTest(): Flow<SelfTest> = flow {
        val cases = mutableListOf<ReplayedCase>()
        emit(SelfTest.Running(0, 0))
        replay(artifact, facts.file, engine, tokenizer).collect { case ->
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
         * Opens the model of an artifact: the first of its files that LiteRT can run. Takes
         * seconds.
         *
         * @throws org.bartexport.BartExportError for one that is damaged, has no such file, or that
         *   LiteRT cannot open
         */
        fun open(directory: File, options: EngineOptions): LoadedModel {
            val began = System.nanoTime()
            val artifact = Artifact.open(directory)
            val file = artifact.staticFile()
            val tokenizer = artifact.tokenizer()
            val engine = CompiledModelEngine.open(artifact, file, options)
            // One thread: it hands the work to those of the engine.
            val dispatcher = Dispatchers.Default.limitedParallelism(1)
            val seconds = (System.nanoTime() - began) / NANOSECONDS
            val facts = facts(artifact, file, engine, seconds)
            val generator =
                Generator(tokenizer, engine, artifact.generation, facts.sourceLength, dispatcher)
            return LoadedModel(artifact, tokenizer, engine, dispatcher, generator, facts, options)
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
