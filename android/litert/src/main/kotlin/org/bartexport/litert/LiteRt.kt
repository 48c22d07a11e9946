/*
 * Opens LiteRT's `CompiledModel`; mirrors bart_export/runtime/compiled_model.py.
 */
package org.bartexport.litert

import com.google.ai.edge.litert.Accelerator as LiteRtAccelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.Environment
import com.google.ai.edge.litert.LiteRtException
import java.io.File
import org.bartexport.EngineError

/** The LiteRT version of this library, as in android/gradle/libs.versions.toml. */
internal const val LITERT_VERSION = "2.2.0"

/** A compiled model with its own environment; [close] closes both. */
internal class OpenedModel(val model: CompiledModel, private val environment: Environment) :
    AutoCloseable {
    override fun close() {
        model.close()
        environment.close()
    }
}

/**
 * Opens a `.tflite` file.
 *
 * @param weightCache file for XNNPACK's packed weights, created if missing, or null for none; used
 *   only on the CPU
 * @throws EngineError if LiteRT cannot open the file, or finds no such accelerator
 */
internal fun openModel(
    file: File,
    accelerator: Accelerator,
    numThreads: Int,
    weightCache: File?,
): OpenedModel = running("cannot open $file on the $accelerator") {
    val environment = Environment.create()
    try {
        OpenedModel(compile(environment, file, accelerator, numThreads, weightCache), environment)
    } catch (error: Exception) {
        environment.close()
        throw error
    }
}

private fun compile(
    environment: Environment,
    file: File,
    accelerator: Accelerator,
    numThreads: Int,
    weightCache: File?,
): CompiledModel {
    val liteRtAccelerator = LITERT_ACCELERATORS.getValue(accelerator)
    val options = CompiledModel.Options(liteRtAccelerator)
    if (accelerator == Accelerator.CPU) {
        options.cpuOptions = CompiledModel.CpuOptions(numThreads, null, weightCache?.path)
    } else if (liteRtAccelerator !in environment.getAvailableAccelerators()) {
        // LiteRT would open the model anyway and run it slowly on the CPU.
        throw EngineError("LiteRT cannot open $file on the $accelerator: it finds none.")
    }
    return CompiledModel.create(file.path, options, environment)
}

/**
 * Runs [block] and turns LiteRT's exceptions into an [EngineError] with a one-line message.
 *
 * @throws EngineError if LiteRT fails, or is not built for this processor
 */
internal inline fun <Result> running(failure: String, block: () -> Result): Result = try {
    block()
} catch (error: LiteRtException) {
    throw EngineError("LiteRT $failure: ${error.firstLine()}.", error)
} catch (error: LinkageError) {
    throw EngineError("LiteRT $failure: it is not built for this processor.", error)
}

/** The first line of LiteRT's message; the others are a trace. */
internal fun LiteRtException.firstLine(): String =
    (message ?: toString()).lineSequence().first().trimEnd('.')

private val LITERT_ACCELERATORS = mapOf(
    Accelerator.CPU to LiteRtAccelerator.CPU,
    Accelerator.GPU to LiteRtAccelerator.GPU,
)
