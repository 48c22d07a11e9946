/*
 * LiteRT's `CompiledModel`, opened; mirrors bart_export/runtime/compiled_model.py.
 *
 * A file and options go in, a compiled model with its environment comes out. What its signatures
 * compute is not known here.
 */
package org.bartexport.litert

import com.google.ai.edge.litert.Accelerator as LiteRtAccelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.Environment
import com.google.ai.edge.litert.LiteRtException
import java.io.File
import org.bartexport.EngineError

/** The release that this library is built with; android/gradle/libs.versions.toml names it too. */
internal const val LITERT_VERSION = "2.2.0"

/** A compiled model in an environment of its own; [close] ends both. */
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
 * @param weightCache file of XNNPACK's packed weights, made if it is missing; null for none. Only
 *   the CPU has use for it
 * @throws EngineError if LiteRT cannot open the file, or has no such accelerator here
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
    val wanted = LITERT_ACCELERATORS.getValue(accelerator)
    val options = CompiledModel.Options(wanted)
    if (accelerator == Accelerator.CPU) {
        options.cpuOptions = CompiledModel.CpuOptions(numThreads, null, weightCache?.path)
    } else if (wanted !in environment.getAvailableAccelerators()) {
        // LiteRT opens a model for an accelerator that is not there, and computes it slowly.
        throw EngineError("LiteRT cannot open $file on the $accelerator: it finds none here.")
    }
    return CompiledModel.create(file.path, options, environment)
}

/**
 * Returns what [block] returns; a failure of LiteRT in it becomes one line.
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

/** What LiteRT says; the other lines are a trace. */
internal fun LiteRtException.firstLine(): String =
    (message ?: toString()).lineSequence().first().trimEnd('.')

private val LITERT_ACCELERATORS = mapOf(
    Accelerator.CPU to LiteRtAccelerator.CPU,
    Accelerator.GPU to LiteRtAccelerator.GPU,
)
