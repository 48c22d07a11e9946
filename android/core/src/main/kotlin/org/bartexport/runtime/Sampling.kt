/*
 * Chooses the next token: greedily, or by sampling with temperature, top-k and top-p as in Hugging
 * Face's `generate()`; mirrors bart_export/runtime/logits.py.
 *
 * Sampling takes one number per token from NumPy's PCG64 generator, so a seed gives the same tokens
 * as in Python, but not the same as in PyTorch.
 */
package org.bartexport.runtime

import org.bartexport.GenerationConfig

/** Chooses a token from one row of processed logits. */
internal fun interface Choice {
    fun choose(logits: Logits, row: Int): Int
}

/** Chooses the most likely token, or in a tie the one with the lowest id. */
internal val greedyChoice: Choice = Choice { logits, row ->
    val start = row * logits.vocabulary
    logits.values.indexOfMaximum(start, start + logits.vocabulary) - start
}

/**
 * Samples a token.
 *
 * Top-k also keeps all tokens as likely as the k-th. Top-p keeps the fewest tokens whose
 * probabilities add up to `topP`, lower ids first in a tie. If all of a row's tokens are
 * forbidden, it chooses token 0.
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

/** Indices of logits with unnormalized probabilities. */
private class Weighted(private val indices: IntArray, private val weights: DoubleArray) {
    /** Returns the index at which the cumulative probability exceeds [share], in [0, 1). */
    fun draw(share: Double): Int {
        val cumulative = cumulative(weights)
        val target = share * cumulative[cumulative.size - 1]
        val place = firstPlace(cumulative) { it > target }
        return indices[minOf(place, indices.size - 1)]
    }
}

/** Returns the indices of the finite logits that top-k keeps; a [topK] of 0 keeps all. */
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

/** Returns the fewest tokens, at least one, that add up to [topP] of all weights, best first. */
private fun nucleus(
    logits: FloatArray,
    indices: IntArray,
    weights: DoubleArray,
    topP: Double,
): Weighted {
    val total = weights.sum()
    // All weights below this bound together are less than the dropped tail, so they are not sorted.
    val heavy = (1 - topP) * total / weights.size
    val order = likeliestFirst(logits, indices) { weights[it] >= heavy }
    val sorted = DoubleArray(order.size) { weights[order[it]] }
    val before = cumulative(sorted)
    val size = minOf(1 + firstPlace(before) { it >= topP * total }, order.size)
    return Weighted(IntArray(size) { indices[order[it]] }, sorted.copyOf(size))
}

/** Returns the positions in [indices] that pass [filter], by descending logit; stable. */
private inline fun likeliestFirst(
    logits: FloatArray,
    indices: IntArray,
    filter: (Int) -> Boolean,
): IntArray {
    val keys = LongArray(indices.size)
    var count = 0
    for (place in indices.indices) {
        if (filter(place)) keys[count++] = descendingKey(logits[indices[place]], place)
    }
    keys.sort(0, count)
    return IntArray(count) { keys[it].toInt() }
}

/** Returns a sort key for descending [logit], then ascending [place]. */
private fun descendingKey(logit: Float, place: Int): Long {
    val bits = (logit + 0f).toRawBits() // adding 0 turns -0 into 0
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

/** Returns the first index of the sorted [rising] whose value [holds], or its size if none does. */
private inline fun firstPlace(rising: DoubleArray, holds: (Double) -> Boolean): Int {
    var low = 0
    var high = rising.size
    while (low < high) {
        val middle = (low + high) ushr 1
        if (holds(rising[middle])) high = middle else low = middle + 1
    }
    return low
}
