/*
 * Log-normalizers and largest entries of logits, without sorting or copying the rows; mirrors
 * bart_export/runtime/logits.py.
 *
 * These functions take tens of microseconds per row; a decoding step takes milliseconds.
 */
package org.bartexport.runtime

import kotlin.math.exp
import kotlin.math.ln
import org.bartexport.EngineError

/**
 * Returns log(sum(exp(row))) of each row, float32 (rows,). A token's log-probability is its logit
 * minus this normalizer, and at most 0.
 *
 * @throws EngineError if a logit is NaN or positive infinity, or all are negative infinity
 */
internal fun logNormalizers(logits: Logits): FloatArray = FloatArray(logits.rows) { row ->
    val start = row * logits.vocabulary
    val end = start + logits.vocabulary
    val peak = logits.values.maximum(start, end)
    // The maximum ignores NaN, but the sum does not.
    val sum = logits.values.sumOfExponentials(start, end, peak)
    if (peak.isInfinite() || sum.isNaN()) {
        throw EngineError(
            "Expected finite logits from the decoder, received NaN or infinity: the file is " +
                "damaged, or this runtime computes it incorrectly. Try another recipe or runtime.",
        )
    }
    peak + ln(sum).toFloat()
}

/** Returns the largest entry from [start] until [end], ignoring NaN. */
internal fun FloatArray.maximum(start: Int, end: Int): Float {
    var largest = Float.NEGATIVE_INFINITY
    for (index in start until end) {
        if (this[index] > largest) largest = this[index]
    }
    return largest
}

/** Returns the index of the largest entry from [start] until [end], the first one in a tie. */
internal fun FloatArray.indexOfMaximum(start: Int, end: Int): Int {
    var place = start
    var largest = this[start]
    for (index in start until end) {
        if (this[index] > largest) {
            largest = this[index]
            place = index
        }
    }
    return place
}

/**
 * Returns the [k]-th largest entry from [start] until [end], counting duplicates, or the smallest
 * if there are fewer.
 */
internal fun FloatArray.kthLargest(start: Int, end: Int, k: Int): Float {
    // A min-heap of the k largest so far.
    val heap = copyOfRange(start, start + minOf(k, end - start))
    for (place in heap.size / 2 - 1 downTo 0) {
        heap.sink(place)
    }
    for (index in start + heap.size until end) {
        if (this[index] > heap[0]) {
            heap[0] = this[index]
            heap.sink(0)
        }
    }
    return heap[0]
}

/** Moves the entry at [place] of a min-heap down to restore the heap. */
private fun FloatArray.sink(place: Int) {
    val value = this[place]
    var hole = place
    while (2 * hole + 1 < size) {
        var below = 2 * hole + 1
        if (below + 1 < size && this[below + 1] < this[below]) below++
        if (this[below] >= value) break
        this[hole] = this[below]
        hole = below
    }
    this[hole] = value
}

/**
 * Continuations of beams, best first.
 *
 * @property rows the beam that each continues, (candidates,)
 * @property tokens the token that each adds, (candidates,)
 * @property sums the resulting sum of log-probabilities, (candidates,)
 */
internal class Candidates(val rows: IntArray, val tokens: IntArray, val sums: DoubleArray)

/**
 * Returns the [count] largest finite entries of `logits + offsets`, best first, and equal ones in
 * the order of row and column.
 *
 * @param offsets float64 (beams,), may be negative infinity
 * @param count should be small: entries are kept by insertion sort
 */
internal fun largest(logits: Logits, offsets: DoubleArray, count: Int): Candidates {
    val found = Best(count)
    for (row in 0 until logits.rows) {
        if (offsets[row] > Double.NEGATIVE_INFINITY) found.offer(logits, row, offsets[row])
    }
    return found.candidates()
}

/** The [count] best of the offered entries, in order. */
private class Best(private val count: Int) {
    private val rows = IntArray(count)
    private val tokens = IntArray(count)
    private val sums = DoubleArray(count)
    private var size = 0

    /** The sum that a new entry must exceed; an equal one would come after the last. */
    private val bar: Double
        get() = if (size < count) Double.NEGATIVE_INFINITY else sums[count - 1]

    fun offer(logits: Logits, row: Int, offset: Double) {
        val values = logits.values
        val start = row * logits.vocabulary
        val end = start + logits.vocabulary
        var threshold = logitBelow(bar, offset)
        for (index in start until end) {
            if (values[index] > threshold) {
                insert(row, index - start, values[index] + offset)
                threshold = logitBelow(bar, offset)
            }
        }
    }

    /** Returns a logit too small to exceed [bar], rounded down. */
    private fun logitBelow(bar: Double, offset: Double): Float =
        Math.nextAfter((bar - offset).toFloat(), Double.NEGATIVE_INFINITY)

    private fun insert(row: Int, token: Int, sum: Double) {
        if (!(sum > bar)) return
        if (size < count) size++
        var place = size - 1
        while (place > 0 && sums[place - 1] < sum) {
            move(place - 1, place)
            place--
        }
        rows[place] = row
        tokens[place] = token
        sums[place] = sum
    }

    private fun move(from: Int, to: Int) {
        rows[to] = rows[from]
        tokens[to] = tokens[from]
        sums[to] = sums[from]
    }

    fun candidates(): Candidates =
        Candidates(rows.copyOf(size), tokens.copyOf(size), sums.copyOf(size))
}

/** Returns the sum of exp(entry - peak), or NaN if an entry is NaN; [peak] is the largest entry. */
private fun FloatArray.sumOfExponentials(start: Int, end: Int, peak: Float): Double {
    val exponents = DoubleArray(BLOCK)
    val sums = DoubleArray(BLOCK)
    for (block in start until end step BLOCK) {
        val count = minOf(BLOCK, end - block)
        for (place in 0 until count) exponents[place] = this[block + place] - peak.toDouble()
        exponentiate(exponents, count)
        for (place in 0 until count) sums[place] += exponents[place]
    }
    return sums.sum()
}

// Small enough for the L1 cache; separate sums avoid a chain of dependent additions.
private const val BLOCK = 512

/**
 * Replaces each of the first [count] numbers, at most 0, by its exponential, with a relative error
 * below 1e-9. Numbers below [LEAST_EXPONENT] are raised to it; NaN stays NaN.
 *
 * It computes exp(x / 512) with six terms of the series and squares the result nine times. It uses
 * neither integers nor a table, so that compilers vectorize it, and is several times as fast as
 * `Math.exp`.
 */
internal fun exponentiate(exponents: DoubleArray, count: Int) {
    for (place in 0 until count) {
        // Centred on 0, where the series is most accurate.
        val part = (Math.max(exponents[place], LEAST_EXPONENT) - MIDDLE) * (1.0 / 512)
        val tail = part * (1.0 / 24 + part * (1.0 / 120 + part * (1.0 / 720)))
        var power = 1.0 + part * (1.0 + part * (1.0 / 2 + part * (1.0 / 6 + tail)))
        power *= power // exp(x / 256), and so on up to exp(x)
        power *= power
        power *= power
        power *= power
        power *= power
        power *= power
        power *= power
        power *= power
        power *= power
        exponents[place] = power * EXPONENTIAL_OF_MIDDLE
    }
}

/** exp(-64) is about 1e-28, negligible next to the largest term, which is 1. */
internal const val LEAST_EXPONENT = -64.0
private const val MIDDLE = LEAST_EXPONENT / 2
private val EXPONENTIAL_OF_MIDDLE = exp(MIDDLE)
