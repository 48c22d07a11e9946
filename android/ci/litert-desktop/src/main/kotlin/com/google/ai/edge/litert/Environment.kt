/*
 * LiteRT's environment: what the models of a process share; declared as in LiteRT 2.2.0.
 *
 * Options go in as the C API's tagged values. Which models use it, is not known here.
 */
package com.google.ai.edge.litert

import com.sun.jna.Memory

// LiteRtEnvOption: int32 tag, then at 8 a LiteRtAny: int32 type, at 8 of it the value.
private const val OPTION_BYTES = 24L
private const val TYPE_AT = 8L
private const val VALUE_AT = 16L
private const val INTEGER = 2
private const val STRING = 8

private const val MINIMUM_SEVERITY_TAG = 25
private const val ERRORS_ONLY = 3L

// LiteRtHwAccelerators, bit by bit.
private val HARDWARE = mapOf(Accelerator.CPU to 1, Accelerator.GPU to 2, Accelerator.NPU to 4)

/** The C API's set of bits for [accelerators]. */
internal fun hardwareBits(accelerators: Set<Accelerator>): Int =
    accelerators.sumOf { HARDWARE[it] ?: 0 }

/** An environment; everything opened with it is closed before it. */
class Environment private constructor(
    handle: Long,
    // LiteRT is handed the addresses of the options' texts.
    @Suppress("unused") private val texts: List<Memory>,
) : JniHandle(handle) {
    /** What an environment is told when it is made; [value] is the C API's tag. */
    enum class Option(val value: Int) {
        CompilerPluginLibraryDir(0),
        DispatchLibraryDir(1),
    }

    override fun destroy() = LiteRt.destroyEnvironment(handle)

    /**
     * What LiteRT found to compute on.
     *
     * @throws IllegalStateException after [close]
     */
    @Throws(LiteRtException::class)
    fun getAvailableAccelerators(): Set<Accelerator> {
        assertNotDestroyed()
        val what = { "cannot list the accelerators" }
        val count = produced(what) { LiteRt.getNumAccelerators(handle, it) }
        val bits = IntArray(1)
        return (0 until count).flatMap { index ->
            val accelerator = produced(what) { LiteRt.getAccelerator(handle, index, it) }
            succeeded(LiteRt.getAcceleratorHardwareSupport(accelerator, bits), what)
            HARDWARE.filterValues { it and bits[0] != 0 }.keys
        }.toSet()
    }

    companion object {
        /** A new environment, for the caller to close. */
        @Throws(LiteRtException::class)
        @JvmOverloads
        @JvmStatic
        fun create(options: Map<Option, String> = mapOf()): Environment {
            val texts = options.values.map(::text)
            val values = Memory(OPTION_BYTES * (options.size + 1)).apply { clear() }
            values.setInt(0, MINIMUM_SEVERITY_TAG)
            values.setInt(TYPE_AT, INTEGER)
            values.setLong(VALUE_AT, ERRORS_ONLY)
            options.keys.zip(texts).forEachIndexed { index, (option, text) ->
                val start = OPTION_BYTES * (index + 1)
                values.setInt(start, option.value)
                values.setInt(start + TYPE_AT, STRING)
                values.setPointer(start + VALUE_AT, text)
            }
            val handle =
                produced({ "cannot make an environment" }) {
                    LiteRt.createEnvironment(options.size + 1, values, it)
                }
            return Environment(handle, texts)
        }

        private fun text(value: String): Memory {
            val bytes = value.toByteArray()
            return Memory(bytes.size + 1L).apply {
                clear()
                write(0, bytes, 0, bytes.size)
            }
        }
    }
}
