/*
 * LiteRT's compiled model, with the public API of LiteRT 2.2.0.
 */
package com.google.ai.edge.litert

import com.sun.jna.Native
import com.sun.jna.NativeLibrary
import com.sun.jna.Pointer

/** A compiled model. Not thread-safe; its buffers must be closed first. */
class CompiledModel private constructor(
    handle: Long,
    private val model: Long,
    private val environment: Environment,
    private val ownsEnvironment: Boolean,
    private val signatures: Signatures,
) : JniHandle(handle) {
    /** Options of the CPU; null selects LiteRT's default. */
    data class CpuOptions(
        val numThreads: Int? = null,
        val xnnPackFlags: Int? = null,
        val xnnPackWeightCachePath: String? = null,
    )

    /** The allowed accelerators and their options. */
    class Options(internal val accelerators: Set<Accelerator>) {
        constructor(vararg accelerators: Accelerator) : this(setOf(*accelerators))

        /** Options of the CPU, or null for LiteRT's defaults. */
        var cpuOptions: CpuOptions? = null

        companion object {
            /** The CPU with LiteRT's defaults. */
            @JvmStatic val CPU = Options(Accelerator.CPU)
        }
    }

    /** Creates a buffer for an input of a signature, by default the first one. */
    @Throws(LiteRtException::class)
    fun createInputBuffer(inputName: String, signature: String? = null): TensorBuffer =
        buffer(Side.INPUT, inputName, signature)

    /** Creates a buffer for an output of a signature, by default the first one. */
    @Throws(LiteRtException::class)
    fun createOutputBuffer(outputName: String, signature: String? = null): TensorBuffer =
        buffer(Side.OUTPUT, outputName, signature)

    /** Runs a signature and waits for its outputs. */
    @Throws(LiteRtException::class)
    fun run(
        inputs: Map<String, TensorBuffer>,
        outputs: Map<String, TensorBuffer>,
        signature: String? = null,
    ) {
        assertNotDestroyed()
        BeforeRun.hook?.run()
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
         * Opens and compiles a file; the caller closes the model.
         *
         * The caller must have verified the file, because LiteRT may crash on a truncated one.
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

/** Lets a test pause models in the middle of a generation; LiteRT has no such hook. */
object BeforeRun {
    /** Called before each run of any model, on its thread; null for none. */
    @Volatile
    var hook: Runnable? = null
}

/** Formats CPU options as libLiteRt.so expects them: TOML, without keys for null. */
internal fun payload(cpu: CompiledModel.CpuOptions): String = listOf(
    "num_threads" to cpu.numThreads,
    "flags" to cpu.xnnPackFlags?.toUInt(),
    "weight_cache_file_path" to cpu.xnnPackWeightCachePath?.let { "\"$it\"" },
).filter { (_, value) -> value != null }.joinToString("") { (key, value) -> "$key = $value\n" }

/** Returns the result of [make]; if it throws, calls [undo] and rethrows. */
private inline fun <Made> orElse(undo: () -> Unit, make: () -> Made): Made = try {
    make()
} catch (failure: Throwable) {
    undo()
    throw failure
}
