package org.bartexport.text

import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertNull

class PieceCacheTest {
    private val cache = PieceCache()

    private fun find(piece: String) = cache.find("<$piece>", 1, piece.length + 1)

    @Test
    fun `a piece is found wherever it stands, and no other`() {
        cache.put("word", intArrayOf(1, 2))
        assertContentEquals(intArrayOf(1, 2), find("word"))
        for (other in listOf("wor", "words", "Word", "")) assertNull(find(other), other)
    }

    @Test
    fun `two pieces of one slot take turns`() {
        // Both have the same Java hash.
        cache.put("Aa", intArrayOf(1))
        cache.put("BB", intArrayOf(2))
        assertNull(find("Aa"))
        assertContentEquals(intArrayOf(2), find("BB"))
    }

    @Test
    fun `a piece that is too long is not kept`() {
        val longest = "x".repeat(LONGEST_CACHED)
        cache.put(longest, intArrayOf(1))
        cache.put(longest + "x", intArrayOf(2))
        assertContentEquals(intArrayOf(1), find(longest))
        assertNull(find(longest + "x"))
    }
}
