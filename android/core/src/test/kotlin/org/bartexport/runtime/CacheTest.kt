package org.bartexport.runtime

import kotlin.test.assertEquals
import org.junit.jupiter.api.Test

/** Caches of 3 rows, 2 heads and 4 positions of size 2. */
class CacheTest {
    private val cache = Cache(listOf(3, 2, 4, 2))

    /** Entries whose values tell the row, head, [positions] and place. */
    private fun entries(positions: IntRange): FloatArray = buildList {
        for (row in 0 until 3) {
            for (head in 0 until 2) {
                for (position in positions) repeat(2) { add(value(row, head, position, it)) }
            }
        }
    }.toFloatArray()

    private fun value(row: Int, head: Int, position: Int, place: Int) =
        1000f * (row + 1) + 100 * head + 10 * position + place

    /** Returns the values of a row and head at a position. */
    private fun read(row: Int, head: Int, position: Int) =
        ((row * 2 + head) * 4 + position).let { cache.values.slice(it * 2 until it * 2 + 2) }

    /** Asserts that each row has its parent's entries, of the positions that [filled] maps to. */
    private fun assertHolds(parents: List<Int>, filled: Map<Int, Int>) {
        for ((row, parent) in parents.withIndex()) {
            for (head in 0 until 2) {
                for (position in 0 until 4) {
                    val expected = List(2) { place ->
                        filled[position]?.let { value(parent, head, it, place) } ?: 0f
                    }
                    assertEquals(expected, read(row, head, position), "$row, $head, $position")
                }
            }
        }
    }

    @Test
    fun `an entry is written at its position in every row and head`() {
        cache.write(entries(7..7), 2)
        assertHolds(listOf(0, 1, 2), mapOf(2 to 7))
    }

    @Test
    fun `a draft is written as far as the capacity reaches`() {
        cache.write(entries(5..7), 2)
        assertHolds(listOf(0, 1, 2), mapOf(2 to 5, 3 to 6))
        cache.write(entries(5..7), 4)
        cache.write(entries(5..7), 60)
        assertHolds(listOf(0, 1, 2), mapOf(2 to 5, 3 to 6))
    }

    @Test
    fun `rows continue others, also where two change places`() {
        for (parents in listOf(listOf(0, 1, 2), listOf(1, 0, 2), listOf(2, 0, 0))) {
            cache.write(entries(0..3), 0)
            cache.reorder(parents.toIntArray(), 4)
            assertHolds(parents, (0..3).associateWith { it })
        }
    }

    @Test
    fun `only positions before the row's own are copied`() {
        cache.write(entries(0..3), 0)
        cache.reorder(intArrayOf(1, 1, 1), 3)
        for (row in listOf(0, 2)) {
            assertEquals(value(1, 1, 2, 0), read(row, 1, 2).first())
            assertEquals(value(row, 1, 3, 0), read(row, 1, 3).first())
        }
    }
}
