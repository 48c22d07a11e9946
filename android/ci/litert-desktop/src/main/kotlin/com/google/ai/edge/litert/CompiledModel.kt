/*
 * A model that LiteRT has made ready to run; declared as in LiteRT 2.2.0.
 *
 * A file and options go in, then buffers by name. What the tensors mean, is not known here.
 */
package com.google.ai.edge.litert

import com.sun.jna.Native
import com.sun.jna.NativeLibrary
import com.sun.jna.Pointer

/** A compiled model, for one thread at a time; its buffers are closed before it. */
class CompiledModel private constructor(
    handle: Long,
    private val model: Long,
    private val environment: Environment,
    private val ownsEnvironment: Boolean,
    private val signatures: Signatures,
) : JniHandle(handle) {
    /** How the CPU computes; null leaves a choice to LiteRT. */
    data class CpuOptions(
        val numThreads: Int? = null,
        val xnnPackFlags: Int? = null,
        val xnnPackWeightCachePath: String? = null,
    )

    /** On what a model may be computed, and how. */
    class Options(internal val accelerators: Set<Accelerator>) {
        constructor(vararg accelerators: Accelerator) : this(setOf(*accelerators))

        /** How the CPU computes; null leaves every choice to LiteRT. */
        var cpuOptions: CpuOptions? = null

        companion object {
            /** The CPU, as LiteRT likes it. */
            @JvmStatic val CPU = Options(Accelerator.CPU)
        }
    }

    /** A new buffer for an input of a signature (the first one where none is named). */
    @Throws(LiteRtException::class)
    fun createInputBuffer(inputName: String, signature: String? = null): TensorBuffer =
        buffer(Side.INPUT, inputName, signature)

    /** A new buffer for an output of a signature (the first one where none is named). */
    @Throws(LiteRtException::class)
    fun createOutputBuffer(outputName: String, signature: String? = null): TensorBuffer =
        buffer(Side.OUTPUT, outputName, signature)

    /** Computes every output of a signature from every input, and returns when they are there. */
    @Throws(LiteRtException::class)
    fun run(
        inputs: Map<String, TensorBuffer>,
        outputs: Map<String, TensorBuffer>,
        signature: String? = null,
    ) {
        assertNotDestroyed()
        val named = signatures[signature]
        val from = named[Side.INPUT].addresses(inputs)
        val to = named[Side.OUTPUT].addresses(outputs)
        val status =
            LiteRt.runCompiledModel(
                handle,
                named.number,
                from.size.toLong(),
                from,
                to.size.toLong(),
                to,
            )
        succeeded(status) { "cannot run signature ${named.key}" }
    }

    override fun destroy() {
        LiteRt.destroyCompiledModel(handle)
        LiteRt.destroyModel(model)
        if (ownsEnvironment) environment.close()
    }

    private fun buffer(side: Side, name: String, signature: String?): TensorBuffer {
        assertNotDestroyed()
        val named = signatures[signature]
        return named[side].buffer(environment.address, handle, named.number, name)
    }

    companion object {
        /**
         * Opens and compiles a file, for the caller to close.
         *
         * LiteRT trusts what begins as a model: one that was cut off can end the process, so the
         * caller has checked the file's size and hash.
         */
        @Throws(LiteRtException::class)
        @JvmOverloads
        @JvmStatic
        fun create(
            filePath: String,
            options: Options = Options.CPU,
            optionalEnv: Environment? = null,
        ): CompiledModel {
            val environment = optionalEnv ?: Environment.create()
            return orElse({ if (optionalEnv == null) environment.close() }) {
                val model =
                    produced({ "cannot open $filePath" }) {
                        LiteRt.createModelFromFile(environment.address, filePath, it)
                    }
                orElse({ LiteRt.destroyModel(model) }) {
                    val signatures = Signatures(model)
                    val handle = compiled(environment, model, options, filePath)
                    CompiledModel(handle, model, environment, optionalEnv == null, signatures)
                }
            }
        }

        private fun compiled(
            environment: Environment,
            model: Long,
            options: Options,
            filePath: String,
        ): Long {
            val what = { "cannot compile $filePath for ${options.accelerators.joinToString()}" }
            val compilation = produced(what) { LiteRt.createOptions(it) }
            try {
                val bits = hardwareBits(options.accelerators)
                succeeded(LiteRt.setOptionsHardwareAccelerators(compilation, bits), what)
                options.cpuOptions?.let { add(it, compilation, what) }
                return produced(what) {
                    LiteRt.createCompiledModel(environment.address, model, compilation, it)
                }
            } finally {
                LiteRt.destroyOptions(compilation)
            }
        }

        private fun add(cpu: CpuOptions, compilation: Long, what: () -> String) {
            val payload = payload(cpu)
            if (payload.isEmpty()) return
            val bytes = payload.toByteArray()
            val text = Pointer(Native.malloc(bytes.size + 1L))
            text.write(0, bytes, 0, bytes.size)
            text.setByte(bytes.size.toLong(), 0)
            val free = NativeLibrary.getProcess().getFunction("free")
            val opaque = produced(what) { LiteRt.createOpaqueOptions("xnnpack", text, free, it) }
            succeeded(LiteRt.addOpaqueOptions(compilation, opaque), what)
        }
    }
}

/** CPU options in the text form that libLiteRt.so takes them in: TOML, and no key for null. */
internal fun payload(cpu: CompiledModel.CpuOptions): String = listOf(
    "num_threads" to cpu.numThreads,
    "flags" to cpu.xnnPackFlags?.toUInt(),
    "weight_cache_file_path" to cpu.xnnPackWeightCachePath?.let { "\"$it\"" },
).filter { (_, value) -> value != null }.joinToString("") { (key, value) -> "$key = $value\n" }

/** What [make] returns; when it throws, [undo] runs first. */
private inline fun <Made> orElse(undo: () -> Unit, make: () -> Made): Made = try {
    make()
} catch (failure: Throwable) {
    undo()
    throw failure
}
