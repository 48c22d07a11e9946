/*
 * The memory of one tensor, with the public API of LiteRT 2.2.0.
 *
 * Unlike LiteRT, it rejects arrays of another type or length, so that tests find such errors.
 */
package com.google.ai.edge.litert

import com.sun.jna.Pointer

private const val READ = 0
private const val WRITE = 1

// LiteRtRankedTensorType: int32 element type, uint32 rank and flag, 8 int32 sizes, 8 strides.
private const val TYPE_INTS = 18
private const val SIZES_AT = 2
private const val RANK_BITS = 0x7f

/** The supported element types, with the C API's [code] and the manifest's [word]. */
internal enum class ElementType(val code: Int, val word: String) {
    FLOAT(1, "float32"),
    INT(2, "int32"),
}

/** A tensor's element type and shape; [words] is the C API's struct. */
internal class RankedType(val words: IntArray = IntArray(TYPE_INTS)) {
    /** The C API's code of the element type. */
    val code: Int
        get() = words[0]

    /** Number of elements. */
    val elements: Int by lazy {
        words.drop(SIZES_AT).take(words[1] and RANK_BITS).fold(1, Int::times)
    }
}

/** A tensor's values in row-major order, in LiteRT's memory. */
class TensorBuffer internal constructor(
    handle: Long,
    internal val type: RankedType,
    private val name: String,
) : JniHandle(handle) {
    /** Writes all int32 values; [data] must have the tensor's number of elements. */
    @Throws(LiteRtException::class)
    fun writeInt(data: IntArray) {
        requireCount(ElementType.INT, data.size)
        locked(WRITE) { it.write(0, data, 0, data.size) }
    }

    /** Writes all float32 values; [data] must have the tensor's number of elements. */
    @Throws(LiteRtException::class)
    fun writeFloat(data: FloatArray) {
        requireCount(ElementType.FLOAT, data.size)
        locked(WRITE) { it.write(0, data, 0, data.size) }
    }

    /** Returns all int32 values in a new array. */
    @Throws(LiteRtException::class)
    fun readInt(): IntArray {
        val data = IntArray(count(ElementType.INT))
        locked(READ) { it.read(0, data, 0, data.size) }
        return data
    }

    /** Returns all float32 values in a new array. */
    @Throws(LiteRtException::class)
    fun readFloat(): FloatArray {
        val data = FloatArray(count(ElementType.FLOAT))
        locked(READ) { it.read(0, data, 0, data.size) }
        return data
    }

    override fun destroy() = LiteRt.destroyTensorBuffer(handle)

    private inline fun locked(mode: Int, use: (Pointer) -> Unit) {
        val start = produced({ "cannot lock $name" }) { LiteRt.lockTensorBuffer(handle, it, mode) }
        try {
            use(Pointer(start))
        } finally {
            succeeded(LiteRt.unlockTensorBuffer(handle)) { "cannot unlock $name" }
        }
    }

    private fun count(wanted: ElementType): Int {
        assertNotDestroyed()
        if (type.code != wanted.code) {
            val own = ElementType.values().firstOrNull { it.code == type.code }?.word
            invalid("$name has elements of ${own ?: "type ${type.code}"}, not ${wanted.word}")
        }
        return type.elements
    }

    private fun requireCount(wanted: ElementType, given: Int) {
        val count = count(wanted)
        if (given != count) invalid("$name must have $count elements, received $given")
    }
}

/** Throws a [LiteRtException] for an invalid argument. */
internal fun invalid(message: String): Nothing =
    throw LiteRtException(Status.ErrorInvalidArgument, message)
