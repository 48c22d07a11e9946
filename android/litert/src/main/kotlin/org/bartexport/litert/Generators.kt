/*
 * Opens a generator from an artifact's directory.
 */
package org.bartexport.litert

import java.io.File
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext
import org.bartexport.Artifact
import org.bartexport.runtime.Generator

/**
 * Opens a generator for the first static `.tflite` file of an artifact that LiteRT can run.
 *
 * It opens on [Dispatchers.IO] and generates on a thread of [Dispatchers.Default], so it may be
 * called from the main thread. If it is cancelled, nothing stays open.
 *
 * @throws org.bartexport.BartExportError if the artifact is damaged or has no such file, or LiteRT
 *   cannot open it
 */
public suspend fun openGenerator(
    directory: File,
    options: EngineOptions = EngineOptions(),
): Generator {
    var opened: Generator? = null
    try {
        return withContext(Dispatchers.IO) { open(directory, options).also { opened = it } }
    } catch (error: CancellationException) {
        opened?.close() // `withContext` drops the result of a block during which it is cancelled.
        throw error
    }
}

private fun open(directory: File, options: EngineOptions): Generator {
    val artifact = Artifact.open(directory)
    val tokenizer = artifact.tokenizer()
    val engine = CompiledModelEngine.open(artifact, artifact.staticFile(), options)
    return Generator(
        tokenizer,
        engine,
        artifact.generation,
        minOf(artifact.manifest.encoderSequenceLength, engine.sourceLength),
        Dispatchers.Default.limitedParallelism(1),
    )
}
