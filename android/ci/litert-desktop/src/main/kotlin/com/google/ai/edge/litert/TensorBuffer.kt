/*
 * Memory of one tensor, which models read and write; declared as in LiteRT 2.2.0.
 */
package com.google.ai.edge.litert

/** The values of one tensor at [handle], row after row, in memory of LiteRT's. */
class TensorBuffer internal constructor(handle: Long) : JniHandle(handle) {
    /** Writes all int32 values; [data] has exactly as many as the tensor. */
    @Throws(LiteRtException::class)
    fun writeInt(data: IntArray): Unit = TODO("$data")

    /** Writes all float32 values; [data] has exactly as many as the tensor. */
    @Throws(LiteRtException::class)
    fun writeFloat(data: FloatArray): Unit = TODO("$data")

    /** All int32 values, in a new array. */
    @Throws(LiteRtException::class)
    fun readInt(): IntArray = TODO()

    /** All float32 values, in a new array. */
    @Throws(LiteRtException::class)
    fun readFloat(): FloatArray = TODO()

    override fun destroy(): Unit = TODO()
}
