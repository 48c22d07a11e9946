/*
 * A cache of token ids by word, as in the `tokenizers` library: a look-up is much faster than
 * merging.
 */
package org.bartexport.text

private const val SLOT_BITS = 13

// In UTF-16 units; together with the number of slots this bounds the memory.
internal const val LONGEST_CACHED = 48

/**
 * A direct-mapped cache: a new piece replaces the one in its slot.
 *
 * Thread-safe without a lock: entries are immutable, and a thread that does not see another's entry
 * computes the same ids.
 */
internal class PieceCache {
    private class Entry(val piece: String, val ids: IntArray)

    private val entries = arrayOfNulls<Entry>(1 shl SLOT_BITS)

    /** Returns the ids of `text[start, end)`, calling [tokenize] if they are not cached. */
    inline fun get(text: String, start: Int, end: Int, tokenize: (String) -> IntArray): IntArray =
        find(text, start, end) ?: text.substring(start, end).let { piece ->
            tokenize(piece).also { put(piece, it) }
        }

    /** Returns the ids of `text[start, end)`, or null if they are not cached. */
    fun find(text: String, start: Int, end: Int): IntArray? {
        val entry = entries[slot(text, start, end)] ?: return null
        val same = entry.piece.length == end - start && text.startsWith(entry.piece, start)
        return if (same) entry.ids else null
    }

    /** Caches the ids of a piece, unless it is too long to be a common word. */
    fun put(piece: String, ids: IntArray) {
        if (piece.length > LONGEST_CACHED) return
        entries[slot(piece, 0, piece.length)] = Entry(piece, ids)
    }

    private fun slot(text: String, start: Int, end: Int): Int {
        var hash = 0
        for (index in start until minOf(end, start + LONGEST_CACHED)) {
            hash = 31 * hash + text[index].code
        }
        // The multiplication mixes all bits into the upper ones, which select the slot.
        return (hash * -0x61c88647) ushr (32 - SLOT_BITS)
    }
}
