/*
 * Exact answers about rows of a vocabulary, found without sorting or copying the rows; mirrors
 * bart_export/runtime/logits.py.
 *
 * In go logits of every token, out come the normalizers that turn them into log-probabilities and
 * the few largest entries, equal values in the order of their index. A decoding step takes
 * milliseconds; these functions take tens of microseconds a row. Nothing here knows what a token
 * means.
 */
package org.bartexport.runtime

import kotlin.math.exp
import kotlin.math.ln
import org.bartexport.EngineError

/**
 * Returns log(sum(exp(row))) of each row, float32 (beams,): what to subtract from a logit for its
 * log-probability.
 *
 * It is never below the row's largest logit, so that no log-probability is above 0. Entries of
 * negative infinity are tokens that cannot be had.
 *
 * @throws EngineError when a logit is NaN or infinite, or when no token can be had
 */
internal fun logNormalizers(logits: Logits): FloatArray = FloatArray(logits.beams) { beam ->
    val start = beam * logits.vocabulary
    val end = start + logits.vocabulary
    val peak = logits.values.maximum(start, end)
    // A NaN is never the largest, but makes the sum one.
    val sum = logits.values.sumOfExponentials(start, end, peak)
    if (peak.isInfinite() || sum.isNaN()) {
        throw EngineError(
            "Expected finite logits from the decoder, received NaN or infinity: the file is " +
                "damaged or this runtime computes it wrongly. Another recipe or runtime may work.",
        )
    }
    peak + ln(sum).toFloat()
}

/** Returns the largest of the entries from [start] to before [end]; an entry of NaN is none. */
internal fun FloatArray.maximum(start: Int, end: Int): Float {
    var largest = Float.NEGATIVE_INFINITY
    for (index in start until end) {
        if (this[index] > largest) largest = this[index]
    }
    return largest
}

/** Returns the index of the largest entry from [start] to before [end], the first of equals. */
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
 * Returns the k-th largest of the entries from [start] to before [end], equal values counted apart.
 *
 * With fewer than [k] entries it is the smallest.
 */
internal fun FloatArray.kthLargest(start: Int, end: Int, k: Int): Float {
    // A heap of the k largest so far, the smallest of them on top.
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

/** Moves the entry at [place] of a heap down until no entry below it is smaller. */
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
 * Ways to go on: place i continues beam `rows[i]` with token `tokens[i]`, after which the
 * sequence's log-probabilities add up to `sums[i]`. All have the same size, best first.
 */
internal class Candidates(val rows: IntArray, val tokens: IntArray, val sums: DoubleArray)

/**
 * Returns the [count] largest of `logits + offsets` that are above negative infinity, best first,
 * equal values in the order of row and column.
 *
 * [offsets] is float64 (beams,) and may be negative infinity. The count is meant to be small.
 */
internal fun largest(logits: Logits, offsets: DoubleArray, count: Int): Candidates {
    val found = Best(count)
    for (row in 0 until logits.beams) {
        if (offsets[row] > Double.NEGATIVE_INFINITY) found.offer(logits, row, offsets[row])
    }
    return found.candidates()
}

/** The [count] best of what has been offered, in order. */
private class Best(private val count: Int) {
    private val rows = IntArray(count)
    private val tokens = IntArray(count)
    private val sums = DoubleArray(count)
    private var size = 0

    /** The sum that is to be exceeded; what equals it comes later in order and is no better. */
    private val bar: Double
        get() = if (size < count) Double.NEGATIVE_INFINITY else sums[count - 1]

    fun offer(logits: Logits, row: Int, offset: Double) {
        val values = logits.values
        val start = row * logits.vocabulary
        val end = start + logits.vocabulary
        var enough = logitBelow(bar, offset)
        for (index in start until end) {
            if (values[index] > enough) {
                insert(row, index - start, values[index] + offset)
                enough = logitBelow(bar, offset)
            }
        }
    }

    /** Returns a logit that, like all below it, is too small to exceed [bar]. */
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

/** Returns the sum of exp(entry - peak), NaN where an entry is NaN; [peak] is the largest. */
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

// Exponents that stay in the fastest cache, and sums that do not wait for each other.
private const val BLOCK = 512

/**
 * Replaces each of the first [count] numbers, which are at most 0, by its exponential, with a
 * relative error below 1e-9. Numbers below [LEAST_EXPONENT] count as that; NaN stays NaN.
 *
 * Six terms of the series are enough for a small part of the exponent, and squaring gives the
 * whole. That takes neither whole numbers nor a table, so that compilers make vector instructions
 * of it: several times as fast as `Math.exp`.
 */
internal fun exponentiate(exponents: DoubleArray, count: Int) {
    for (place in 0 until count) {
        // The middle of the range becomes 0, where the series is best.
        val part = (Math.max(exponents[place], LEAST_EXPONENT) - MIDDLE) * (1.0 / 512)
        val tail = part * (1.0 / 24 + part * (1.0 / 120 + part * (1.0 / 720)))
        var power = 1.0 + part * (1.0 + part * (1.0 / 2 + part * (1.0 / 6 + tail)))
        power *= power // of 2 parts, and so on to 512
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

/** Exponentials of less, about 1e-28, are as good as nothing beside the largest, which is 1. */
internal const val LEAST_EXPONENT = -64.0
private const val MIDDLE = LEAST_EXPONENT / 2
private val EXPONENTIAL_OF_MIDDLE = exp(MIDDLE)
