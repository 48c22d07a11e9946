/*
 * Drawing one token from a row of logits: temperature, then top-k, then top-p, then chance; mirrors
 * bart_export/runtime/logits.py.
 *
 * In goes one row, out comes one token id. Filters keep what Hugging Face's keep. Chance is NumPy's
 * PCG64 generator, one uniform number a token: a seed gives the same tokens as in Python. It does
 * not give the tokens that PyTorch's generator would.
 */
package org.bartexport.runtime

import org.bartexport.GenerationConfig

/** Chooses one token of a row of processed logits (beams, vocabulary). */
internal fun interface Choice {
    fun choose(logits: Logits, row: Int): Int
}

/** Chooses the most likely token, the lowest id among equals. */
internal val greedyChoice: Choice = Choice { logits, row ->
    val start = row * logits.vocabulary
    logits.values.indexOfMaximum(start, start + logits.vocabulary) - start
}

/**
 * Returns what draws a token.
 *
 * Top-k keeps every token that is as likely as the k-th. Top-p keeps the fewest tokens whose
 * probabilities reach `topP`, among equals the lower ids. A row without a possible token gives
 * token 0.
 */
internal fun sampledChoice(generation: GenerationConfig): Choice {
    val chance = Pcg64(generation.seed)
    return Choice { logits, row ->
        val start = row * logits.vocabulary
        val end = start + logits.vocabulary
        val peak = logits.values.maximum(start, end)
        if (peak == Float.NEGATIVE_INFINITY) {
            0
        } else {
            val possible = possible(logits.values, start, end, generation.topK)
            val weights = DoubleArray(possible.size) {
                (logits.values[possible[it]] - peak.toDouble()) / generation.temperature
            }
            exponentiate(weights, weights.size)
            val kept = if (generation.topP < 1) {
                nucleus(logits.values, possible, weights, generation.topP)
            } else {
                Weighted(possible, weights)
            }
            kept.draw(chance.random()) - start
        }
    }
}

/** Indices of logits and how likely each is, in proportion to the others. */
private class Weighted(private val indices: IntArray, private val weights: DoubleArray) {
    /** Returns the index at the share [share], from 0 to below 1, of all weights in a row. */
    fun draw(share: Double): Int {
        val cumulative = cumulative(weights)
        val target = share * cumulative[cumulative.size - 1]
        val place = firstPlace(cumulative) { it > target }
        return indices[minOf(place, indices.size - 1)]
    }
}

/**
 * Returns the indices of the [topK] largest logits and all that equal the last, or of all; none of
 * negative infinity.
 */
private fun possible(logits: FloatArray, start: Int, end: Int, topK: Int): IntArray {
    val kth = if (topK > 0) logits.kthLargest(start, end, topK) else Float.NEGATIVE_INFINITY
    val lowest = maxOf(kth, -Float.MAX_VALUE)
    var count = 0
    for (index in start until end) {
        if (logits[index] >= lowest) count++
    }
    val possible = IntArray(count)
    var place = 0
    for (index in start until end) {
        if (logits[index] >= lowest) possible[place++] = index
    }
    return possible
}

/**
 * Returns the likeliest tokens that together reach the share [topP] of all weights, likeliest
 * first, at least one.
 */
private fun nucleus(
    logits: FloatArray,
    indices: IntArray,
    weights: DoubleArray,
    topP: Double,
): Weighted {
    val total = weights.sum()
    // All weights below this mean of the tail fit into the tail together: none needs sorting.
    val heavy = (1 - topP) * total / weights.size
    val order = likeliestFirst(logits, indices) { weights[it] >= heavy }
    val sorted = DoubleArray(order.size) { weights[order[it]] }
    val before = cumulative(sorted)
    val size = minOf(1 + firstPlace(before) { it >= topP * total }, order.size)
    return Weighted(IntArray(size) { indices[order[it]] }, sorted.copyOf(size))
}

/** Returns the places of [indices] that are [wanted], by falling logit, then in their order. */
private inline fun likeliestFirst(
    logits: FloatArray,
    indices: IntArray,
    wanted: (Int) -> Boolean,
): IntArray {
    val keys = LongArray(indices.size)
    var count = 0
    for (place in indices.indices) {
        if (wanted(place)) keys[count++] = fallingKey(logits[indices[place]], place)
    }
    keys.sort(0, count)
    return IntArray(count) { keys[it].toInt() }
}

/** Returns a number that is smaller for a larger [logit], and among equals for a lower [place]. */
private fun fallingKey(logit: Float, place: Int): Long {
    val bits = (logit + 0f).toRawBits() // the sum makes a negative zero equal to zero
    val rising = if (bits < 0) bits xor Int.MAX_VALUE else bits
    return (rising.inv().toLong() shl 32) or place.toLong()
}

private fun cumulative(values: DoubleArray): DoubleArray {
    var sum = 0.0
    return DoubleArray(values.size) {
        sum += values[it]
        sum
    }
}

/** Returns the first place of [rising] whose value [holds], its size where none does. */
private inline fun firstPlace(rising: DoubleArray, holds: (Double) -> Boolean): Int {
    var low = 0
    var high = rising.size
    while (low < high) {
        val middle = (low + high) ushr 1
        if (holds(rising[middle])) high = middle else low = middle + 1
    }
    return low
}
