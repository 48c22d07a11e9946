/*
 * Logits processors, with the semantics and order of Hugging Face's `generate()`; mirrors
 * bart_export/runtime/logits.py.
 *
 * A processor changes logits in place and touches a few entries per row, not the whole vocabulary.
 */
package org.bartexport.runtime

import org.bartexport.GenerationConfig

/** Forbids or penalizes tokens, depending on the sequence so far. */
internal fun interface Processor {
    /**
     * Processes one row of logits, which begins at index [start] of [logits].
     *
     * @param sequence the row's tokens, of which the first [length] are set
     * @param zero the logit of a score of 0: 0 if scores are logits, the row's normalizer if they
     *   are log-probabilities
     */
    fun process(sequence: IntArray, length: Int, logits: FloatArray, start: Int, zero: Float)
}

/** Returns the enabled processors, in the order they are applied. */
internal fun processors(generation: GenerationConfig): List<Processor> = listOf(
    (generation.repetitionPenalty != 1.0) to repetitionPenalty(generation.repetitionPenalty),
    (generation.noRepeatNgramSize > 0) to noRepeatNgram(generation.noRepeatNgramSize),
    (generation.minLength > 0) to minLength(generation.minLength, generation.eosTokenIds),
).filter { (on, _) -> on }.map { (_, processor) -> processor }

/** Applies every processor to every row; [zeros] is float32 (rows,). */
internal fun List<Processor>.process(
    sequences: Array<IntArray>,
    length: Int,
    logits: Logits,
    zeros: FloatArray,
) {
    for (processor in this) {
        for (row in 0 until logits.rows) {
            val start = row * logits.vocabulary
            processor.process(sequences[row], length, logits.values, start, zeros[row])
        }
    }
}

/**
 * Returns the token that must follow [length] tokens, including the start token, or null.
 *
 * A forced token has a log-probability of 0, and its logits need not be computed. If both forced
 * tokens apply, the end token takes precedence.
 */
internal fun forcedToken(generation: GenerationConfig, length: Int): Int? {
    val end = generation.forcedEosTokenId
    return when {
        length == generation.maxLength - 1 && end != null -> end
        length == 1 -> generation.forcedBosTokenId
        else -> null
    }
}

/**
 * Divides positive scores of earlier tokens by [penalty] and multiplies negative ones by it
 * (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
 */
internal fun repetitionPenalty(penalty: Double): Processor {
    val factor = penalty.toFloat()
    return Processor { sequence, length, logits, start, zero ->
        // All scores are read before any is written, so a repeated token is penalized once.
        val scores = FloatArray(length) { place ->
            val score = logits[start + sequence[place]] - zero
            (if (score < 0) score * factor else score / factor) + zero
        }
        for (place in 0 until length) {
            logits[start + sequence[place]] = scores[place]
        }
    }
}

/**
 * Forbids every token that would complete an earlier n-gram of [size] tokens.
 *
 * Scanning the sequence costs less than keeping a table of n-grams for each beam.
 */
internal fun noRepeatNgram(size: Int): Processor = Processor { sequence, length, logits, start, _ ->
    val last = length - size + 1 // where the incomplete n-gram starts
    for (place in 0 until last) {
        if (sequence.repeats(place, last, size - 1)) {
            logits[start + sequence[place + size - 1]] = Float.NEGATIVE_INFINITY
        }
    }
}

/** Returns whether the [count] tokens at [first] equal those at [second]. */
private fun IntArray.repeats(first: Int, second: Int, count: Int): Boolean {
    for (place in 0 until count) {
        if (this[first + place] != this[second + place]) return false
    }
    return true
}

/** Forbids the end tokens in sequences shorter than [minimum] tokens, including the start token. */
internal fun minLength(minimum: Int, eosTokenIds: List<Int>): Processor =
    Processor { _, length, logits, start, _ ->
        if (length < minimum) {
            for (tokenId in eosTokenIds) logits[start + tokenId] = Float.NEGATIVE_INFINITY
        }
    }
