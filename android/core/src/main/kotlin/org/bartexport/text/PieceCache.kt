/*
 * Remembers the ids of pieces that came before: words come again, and looking one up is much
 * quicker than merging it. `tokenizers` has one too.
 *
 * Pieces of a text come in, ids go out. How ids are made is not known here.
 */
package org.bartexport.text

private const val SLOT_BITS = 13

// In UTF-16 units; together with the slots this bounds the memory.
internal const val LONGEST_REMEMBERED = 48

/**
 * Ids of pieces by their characters, one piece a slot, the last one there wins.
 *
 * Safe for several threads without a lock: an entry never changes, and a thread that does not see
 * another's makes its own, with the same ids.
 */
internal class PieceCache {
    private class Entry(val piece: String, val ids: IntArray)

    private val entries = arrayOfNulls<Entry>(1 shl SLOT_BITS)

    /** Returns the ids of `text[start, end)`, made by [make] if they are not remembered. */
    inline fun get(text: String, start: Int, end: Int, make: (String) -> IntArray): IntArray =
        find(text, start, end) ?: text.substring(start, end).let { piece ->
            make(piece).also { remember(piece, it) }
        }

    /** Returns the ids of `text[start, end)`, null if they are not remembered. */
    fun find(text: String, start: Int, end: Int): IntArray? {
        val entry = entries[slot(text, start, end)] ?: return null
        val same = entry.piece.length == end - start && text.startsWith(entry.piece, start)
        return if (same) entry.ids else null
    }

    /** Keeps the ids of a piece, unless it is too long to be a word that comes again. */
    fun remember(piece: String, ids: IntArray) {
        if (piece.length <=
            LONGEST_REMEMBERED
        ) {
            entries[slot(piece, 0, piece.length)] = Entry(piece, ids)
        }
    }

    private fun slot(text: String, start: Int, end: Int): Int {
        var hash = 0
        for (index in start until minOf(end, start + LONGEST_REMEMBERED)) {
            hash = 31 * hash + text[index].code
        }
        // Multiplied so that the upper bits, which are taken, depend on all others.
        return (hash * -0x61c88647) ushr (32 - SLOT_BITS)
    }
}
