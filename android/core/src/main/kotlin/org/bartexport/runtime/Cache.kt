/*
 * A self-attention cache, which steps read and the host changes; mirrors
 * bart_export/runtime/caches.py.
 */
package org.bartexport.runtime

/**
 * A cache of [shape] (rows, heads, capacity, head_size), initially 0.
 *
 * A step reads the positions before its own. Entries from there on are ignored, so that a rejected
 * draft need not be cleared; in version 1 of the contract, they must be 0.
 */
public class Cache(shape: List<Int>) {
    private val heads = shape[1]
    private val capacity = shape[2]
    private val headSize = shape[3]
    private val strips = shape[0] * heads

    /** The float32 values in row-major order. */
    public val values: FloatArray = FloatArray(strips * capacity * headSize)

    /** Copies row `beamIndex[row]` to each row, as far as the positions before [position]. */
    public fun reorder(beamIndex: IntArray, position: Int) {
        val changed = beamIndex.indices.filter { beamIndex[it] != it }
        for (head in 0 until heads) {
            // All are read before the first is overwritten.
            val copies = changed.map { row ->
                val begin = start(beamIndex[row], head)
                values.copyOfRange(begin, begin + position * headSize)
            }
            changed.zip(copies) { row, copy -> copy.copyInto(values, start(row, head)) }
        }
    }

    /**
     * Writes [entries], float32 (rows, heads, any, head_size), from a position on, as far as the
     * capacity reaches.
     */
    public fun write(entries: FloatArray, position: Int) {
        val size = entries.size / strips
        val kept = ((capacity - position) * headSize).coerceIn(0, size)
        for (strip in 0 until strips) {
            val target = (strip * capacity + position) * headSize
            if (kept > 0) entries.copyInto(values, target, strip * size, strip * size + kept)
        }
    }

    private fun start(row: Int, head: Int) = (row * heads + head) * capacity * headSize
}
