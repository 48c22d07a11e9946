/*
 * How an engine is asked to compute. Data; nothing here knows LiteRT.
 */
package org.bartexport.litert

import java.io.File
import org.bartexport.ConfigurationError

/** What computes a model. */
public enum class Accelerator {
    /** Every processor has it, and every static build of this exporter was checked on it. */
    CPU,

    /** A choice for devices where it was seen to be faster; see [CompiledModelEngine.fallback]. */
    GPU,
}

/**
 * How an engine computes.
 *
 * @property numThreads threads of the CPU kernels
 * @property accelerator what to compute on, where that is possible
 * @property cacheDirectory where packed weights are kept, about as large as the model; a directory
 *   of this library's own that may be emptied at any time, and null for none: every opening then
 *   packs the weights again, into memory of the process
 * @throws ConfigurationError for no threads
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

/** Half of a phone's cores are slow ones, and a matrix product waits for the slowest thread. */
private fun fastCores(): Int = Runtime.getRuntime().availableProcessors().coerceAtMost(FAST_CORES)

private const val FAST_CORES = 4
