/*
 * What forbids or discourages tokens: edits of logits that depend on the tokens so far; mirrors
 * bart_export/runtime/logits.py.
 *
 * In go the sequences and their next logits, which are changed in place; out comes nothing. A
 * processor touches a few entries a row and never passes over the vocabulary. Meaning and order are
 * those of Hugging Face's `generate()`. Nothing here knows how a token is then chosen.
 */
package org.bartexport.runtime

import org.bartexport.GenerationConfig

/** Changes the logits of tokens that the tokens so far forbid or make less welcome. */
internal fun interface Processor {
    /**
     * Changes row `row` of the logits (beams, vocabulary), from index [start] of [logits] on.
     *
     * @param sequence its tokens, of which the first [length] count, start token included
     * @param zero the logit that stands for a score of 0: 0 itself where raw logits are processed,
     *   the row's normalizer where log-probabilities are
     */
    fun process(sequence: IntArray, length: Int, logits: FloatArray, start: Int, zero: Float)
}

/** Returns the processors that the settings switch on, in the order they are applied. */
internal fun processors(generation: GenerationConfig): List<Processor> = listOf(
    (generation.repetitionPenalty != 1.0) to repetitionPenalty(generation.repetitionPenalty),
    (generation.noRepeatNgramSize > 0) to noRepeatNgram(generation.noRepeatNgramSize),
    (generation.minLength > 0) to minLength(generation.minLength, generation.eosTokenIds),
).filter { (on, _) -> on }.map { (_, processor) -> processor }

/** Applies every processor to every row; [zeros] is float32 (beams,). */
internal fun List<Processor>.process(
    sequences: Array<IntArray>,
    length: Int,
    logits: Logits,
    zeros: FloatArray,
) {
    for (processor in this) {
        for (row in 0 until logits.beams) {
            val start = row * logits.vocabulary
            processor.process(sequences[row], length, logits.values, start, zeros[row])
        }
    }
}

/**
 * Returns the only token that may follow [length] tokens, start token included, if one is set.
 *
 * A forced token has a log-probability of 0, and its logits need not be computed. The end is forced
 * after the beginning, and wins where both apply.
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
 * Returns the processor that divides positive scores of tokens seen before by [penalty] and
 * multiplies negative ones by it (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
 */
internal fun repetitionPenalty(penalty: Double): Processor {
    val factor = penalty.toFloat()
    return Processor { sequence, length, logits, start, zero ->
        // All scores are read before one is written: a token seen twice is penalised once.
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
 * Returns the processor that bans every token that would end an n-gram of [size] seen before.
 *
 * Scanning the tokens anew costs less than keeping a table of n-grams for each beam would.
 */
internal fun noRepeatNgram(size: Int): Processor = Processor { sequence, length, logits, start, _ ->
    val last = length - size + 1 // where the n-gram that is about to be completed starts
    for (place in 0 until last) {
        if (sequence.repeats(place, last, size - 1)) {
            logits[start + sequence[place + size - 1]] = Float.NEGATIVE_INFINITY
        }
    }
}

/** Says whether the [count] tokens from [first] on are those from [second] on. */
private fun IntArray.repeats(first: Int, second: Int, count: Int): Boolean {
    for (place in 0 until count) {
        if (this[first + place] != this[second + place]) return false
    }
    return true
}

/** Returns the processor that bans every end token before [minimum] tokens, start included. */
internal fun minLength(minimum: Int, eosTokenIds: List<Int>): Processor =
    Processor { _, length, logits, start, _ ->
        if (length < minimum) {
            for (tokenId in eosTokenIds) logits[start + tokenId] = Float.NEGATIVE_INFINITY
        }
    }
