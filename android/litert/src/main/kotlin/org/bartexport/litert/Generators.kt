/*
 * From the directory of an artifact to generated text, for apps that need nothing between.
 */
package org.bartexport.litert

import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext
import org.bartexport.Artifact
import org.bartexport.runtime.Generator

/**
 * Opens the first static `.tflite` file of an artifact that LiteRT computes rightly, with its
 * tokenizer, to generate one text at a time on a thread of [Dispatchers.Default]. The opening
 * itself is done on [Dispatchers.IO], so that it may be called from the main thread.
 *
 * @throws org.bartexport.BartExportError for an artifact that is damaged, has no such file, or that
 *   LiteRT cannot open
 */
public suspend fun openGenerator(
    directory: File,
    options: EngineOptions = EngineOptions(),
): Generator = withContext(Dispatchers.IO) {
    val artifact = Artifact.open(directory)
    val tokenizer = artifact.tokenizer()
    val engine = CompiledModelEngine.open(artifact, artifact.staticFile(), options)
    Generator(
        tokenizer,
        engine,
        artifact.generation,
        minOf(artifact.manifest.encoderSequenceLength, engine.sourceLength),
        Dispatchers.Default.limitedParallelism(1),
    )
}
