/*
 * LiteRT's environment, which models share, with the public API of LiteRT 2.2.0.
 */
package com.google.ai.edge.litert

import com.sun.jna.Memory

// LiteRtEnvOption: int32 tag; at offset 8 a LiteRtAny: int32 type, value at its offset 8.
private const val OPTION_BYTES = 24L
private const val TYPE_AT = 8L
private const val VALUE_AT = 16L
private const val INTEGER = 2
private const val STRING = 8

private const val MINIMUM_SEVERITY_TAG = 25
private const val ERRORS_ONLY = 3L

// The bits of LiteRtHwAccelerators.
private val HARDWARE = mapOf(Accelerator.CPU to 1, Accelerator.GPU to 2, Accelerator.NPU to 4)

/** Returns the C API's bit set for [accelerators]. */
internal fun hardwareBits(accelerators: Set<Accelerator>): Int =
    accelerators.sumOf { HARDWARE[it] ?: 0 }

/** An environment; everything opened with it must be closed first. */
class Environment private constructor(
    handle: Long,
    // Keeps the options' strings alive, because LiteRT stores their addresses.
    @Suppress("unused") private val texts: List<Memory>,
) : JniHandle(handle) {
    /** An option of an environment; [value] is the C API's tag. */
    enum class Option(val value: Int) {
        CompilerPluginLibraryDir(0),
        DispatchLibraryDir(1),
    }

    override fun destroy() = LiteRt.destroyEnvironment(handle)

    /**
     * Returns the accelerators that LiteRT found.
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
        /** Creates an environment; the caller closes it. */
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
                produced({ "cannot create an environment" }) {
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
