/*
 * Exact answers about rows of a vocabulary, found without sorting or copying the rows; mirrors
 * bart_export/runtime/scores.py.
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
    val top = peak.toDouble()
    // Four sums, because an addition waits for the one before it.
    var first = 0.0
    var second = 0.0
    var third = 0.0
    var fourth = 0.0
    var index = start
    while (index + 4 <= end) {
        first += exponential(this[index] - top)
        second += exponential(this[index + 1] - top)
        third += exponential(this[index + 2] - top)
        fourth += exponential(this[index + 3] - top)
        index += 4
    }
    while (index < end) {
        first += exponential(this[index] - top)
        index++
    }
    return first + second + third + fourth
}

/**
 * Returns exp([exponent]) of a number that is at most 0, 0 where it is below 1e-45, with a relative
 * error below 1e-11; several times as fast as `Math.exp`.
 *
 * The next exponential of a table is multiplied by that of the rest, of which five terms of
 * the series are enough.
 */
internal fun exponential(exponent: Double): Double {
    val place = (0.5 - exponent * TABLE_STEPS).toInt()
    if (place >= EXPONENTIALS.size) return 0.0
    val rest = exponent + place * (1.0 / TABLE_STEPS)
    val series = 1.0 + rest * (1.0 + rest * (1.0 / 2 + rest * (1.0 / 6 + rest * (1.0 / 24))))
    return EXPONENTIALS[place] * series
}

// The table's entries for each unit of the exponent, and how far it reaches.
private const val TABLE_STEPS = 32.0
private const val TABLE_REACH = 104
private val EXPONENTIALS = DoubleArray(TABLE_REACH * TABLE_STEPS.toInt()) { exp(-it / TABLE_STEPS) }
