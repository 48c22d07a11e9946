package org.bartexport.runtime

import java.util.Random
import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.ln
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import org.bartexport.EngineError

class ScoresTest {
    private val sizes = listOf(1, 6, 511, 1025, 50265)

    @Test
    fun `the largest are those of a stable sort`() {
        for (size in sizes) {
            for (distinct in listOf(5, 100_000)) {
                val logits = Logits(values(3 * size, distinct, seed = size), 3)
                val offsets = doubleArrayOf(0.0, -0.25, Double.NEGATIVE_INFINITY)
                val sums = DoubleArray(3 * size) { logits.values[it] + offsets[it / size] }
                val sorted = sums.indices
                    .filter { sums[it] > Double.NEGATIVE_INFINITY }
                    .sortedByDescending { sums[it] }
                for (count in listOf(1, 4, 16, 500)) {
                    val expected = sorted.take(count)
                    val found = largest(logits, offsets, count)
                    assertEquals(expected.map { it / size }, found.rows.toList())
                    assertEquals(expected.map { it % size }, found.tokens.toList())
                    assertEquals(expected.map { sums[it] }, found.sums.toList())
                }
            }
        }
    }

    @Test
    fun `sums that differ by less than a float are told apart`() {
        val logits = Logits(floatArrayOf(1f, 2f, 1f, 2f), 2)
        val offsets = doubleArrayOf(-100.0, Math.nextUp(-100.0))
        for (count in 1..2) {
            val found = largest(logits, offsets, count)
            assertEquals(listOf(1, 0).take(count), found.rows.toList())
            assertEquals(listOf(1, 1).take(count), found.tokens.toList())
        }
    }

    @Test
    fun `the kth largest is that of a sort`() {
        for (size in sizes) {
            for (distinct in listOf(5, 100_000)) {
                val values = values(size + 2, distinct, seed = size)
                val sorted = values.copyOfRange(1, size + 1).sortedDescending()
                for (k in listOf(1, 2, 50, 515, 60_000)) {
                    assertEquals(sorted[minOf(k, size) - 1], values.kthLargest(1, size + 1, k))
                }
            }
        }
    }

    @Test
    fun `the largest is found at either end of a row, the first of equals`() {
        for (size in sizes) {
            for (column in setOf(0, size / 2, size - 1)) {
                val values = values(3 * size, 100_000, seed = 1)
                values.fill(90f, size + column, 2 * size)
                values.fill(99f, 2 * size)
                assertEquals(90f, values.maximum(size, 2 * size))
                assertEquals(size + column, values.indexOfMaximum(size, 2 * size))
                val found = largest(Logits(values, 3), doubleArrayOf(0.0, 9.5, 0.0), 1)
                assertEquals(listOf(1, column), listOf(found.rows[0], found.tokens[0]))
            }
        }
    }

    @Test
    fun `normalizers are the logarithm of the sum of exponentials`() {
        for (size in sizes) {
            val values = values(4 * size, 100_000, seed = 7)
            for (row in 0 until 4) values[row * size] = 1f
            for (index in 0 until size) {
                values[size + index] -= 1000f
                values[2 * size + index] *= 20f
                if (index > 7) values[3 * size + index] = Float.NEGATIVE_INFINITY
            }
            val found = logNormalizers(Logits(values, 4))
            for (row in 0 until 4) {
                val logits = values.copyOfRange(row * size, (row + 1) * size).map { it.toDouble() }
                val peak = logits.maxOrNull() ?: 0.0
                val expected = peak + ln(logits.sumOf { exp(it - peak) })
                assertEquals(expected, found[row].toDouble(), 1e-7 * (abs(expected) + 4))
                assertTrue(found[row] >= peak)
            }
        }
    }

    @Test
    fun `a broken logit is an error wherever it is`() {
        for (broken in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
            for (size in sizes) {
                for (place in setOf(0, size / 2, 3 * size - 1)) {
                    val values = FloatArray(3 * size)
                    values[place] = broken
                    val logits = Logits(values, 3)
                    assertFailsWith<EngineError>("$size $place") { logNormalizers(logits) }
                }
            }
        }
    }

    @Test
    fun `a row without any token is an error`() {
        val logits = Logits(FloatArray(8) { Float.NEGATIVE_INFINITY }, 1)
        val error = assertFailsWith<EngineError> { logNormalizers(logits) }
        assertTrue("finite logits" in error.message.orEmpty())
    }

    @Test
    fun `exponentials are Math's down to the least exponent`() {
        val exponents = DoubleArray(400_001) { LEAST_EXPONENT * it / 400_000 }
        val found = exponents.copyOf()
        exponentiate(found, found.size)
        for ((exponent, one) in exponents zip found) {
            assertEquals(exp(exponent), one, 1e-9 * exp(exponent), "exp($exponent)")
        }
    }

    @Test
    fun `exponents beyond the least count as that, and NaN stays`() {
        val found = doubleArrayOf(-65.0, -1e300, Double.NEGATIVE_INFINITY, Double.NaN, -70.0)
        exponentiate(found, 4)
        for (one in found.take(3)) {
            assertTrue(one > 0 && one < 2e-28)
        }
        assertTrue(found[3].isNaN())
        assertEquals(-70.0, found[4])
    }

    /** Returns random logits with at most [distinct] values, some of them negative infinity. */
    private fun values(size: Int, distinct: Int, seed: Int): FloatArray {
        val chance = Random(seed.toLong())
        val some = FloatArray(distinct) { (chance.nextGaussian() * 4).toFloat() }
        some.fill(Float.NEGATIVE_INFINITY, 0, maxOf(distinct / 8, 1))
        return FloatArray(size) { some[chance.nextInt(distinct)] }
    }
}
