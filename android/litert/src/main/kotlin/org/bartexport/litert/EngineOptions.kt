/*
 * Options of an engine.
 */
package org.bartexport.litert

import java.io.File
import org.bartexport.ConfigurationError

/** The processor that runs a model. */
public enum class Accelerator {
    /** Always available; the export verifies every static build on it. */
    CPU,

    /** Faster on some devices; see [CompiledModelEngine.fallback]. */
    GPU,
}

/**
 * Options of an engine.
 *
 * @property numThreads number of threads of the CPU kernels
 * @property accelerator the preferred accelerator
 * @property cacheDirectory directory for packed weights, about as large as the model. It must be
 *   used for nothing else and may be emptied at any time. If null, every opening packs the weights
 *   again, in the process's memory
 * @throws ConfigurationError if [numThreads] is below 1
 */
public data class EngineOptions(
    val numThreads: Int = fastCores(),
    val accelerator: Accelerator = Accelerator.CPU,
    val cacheDirectory: File? = null,
) {
    init {
        if (numThreads < 1) {
            throw ConfigurationError("numThreads must be at least 1, received $numThreads.")
        }
    }
}

/** Excludes a phone's slow cores, because a matrix product waits for its slowest thread. */
private fun fastCores(): Int = Runtime.getRuntime().availableProcessors().coerceAtMost(FAST_CORES)

private const val FAST_CORES = 4
