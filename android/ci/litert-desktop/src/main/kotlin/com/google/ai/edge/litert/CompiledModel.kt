/*
 * A model that LiteRT has made ready to run; declared as in LiteRT 2.2.0.
 */
package com.google.ai.edge.litert

/** A compiled model at [handle]; its buffers may outlive it. */
class CompiledModel private constructor(handle: Long) : JniHandle(handle) {
    /** How the CPU computes; null leaves a choice to LiteRT. */
    data class CpuOptions(
        val numThreads: Int? = null,
        val xnnPackFlags: Int? = null,
        val xnnPackWeightCachePath: String? = null,
    )

    /** On what a model may be computed, and how. */
    class Options(internal val accelerators: Set<Accelerator>) {
        constructor(vararg accelerators: Accelerator) : this(setOf(*accelerators))

        var cpuOptions: CpuOptions? = null

        companion object {
            @JvmStatic val CPU = Options(Accelerator.CPU)
        }
    }

    /** A new buffer for an input of a signature (the first one where none is named). */
    @Throws(LiteRtException::class)
    fun createInputBuffer(inputName: String, signature: String? = null): TensorBuffer =
        TODO("$inputName $signature")

    /** A new buffer for an output of a signature (the first one where none is named). */
    @Throws(LiteRtException::class)
    fun createOutputBuffer(outputName: String, signature: String? = null): TensorBuffer =
        TODO("$outputName $signature")

    /** Computes every output of a signature from every input, and returns when they are there. */
    @Throws(LiteRtException::class)
    fun run(
        inputs: Map<String, TensorBuffer>,
        outputs: Map<String, TensorBuffer>,
        signature: String? = null,
    ): Unit = TODO("$inputs $outputs $signature")

    override fun destroy(): Unit = TODO()

    companion object {
        /** Opens and compiles a file, for the caller to close. */
        @Throws(LiteRtException::class)
        @JvmOverloads
        @JvmStatic
        fun create(
            filePath: String,
            options: Options = Options.CPU,
            optionalEnv: Environment? = null,
        ): CompiledModel = TODO("$filePath $options $optionalEnv")
    }
}
