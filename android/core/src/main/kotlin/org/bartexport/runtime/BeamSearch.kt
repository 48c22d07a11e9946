/*
 * Beam search: the part of bart_export/runtime/search.py that keeps several sequences and compares
 * them.
 */
package org.bartexport.runtime

import kotlin.math.max
import kotlin.math.pow
import org.bartexport.EarlyStopping
import org.bartexport.GenerationConfig

/**
 * Keeps the `numBeams` best unfinished sequences and, apart from them, the best finished ones.
 *
 * Where Hugging Face gives a score of -1e9 to beams that do not exist yet, ours have negative
 * infinity and are never finished: a vocabulary smaller than the number of beams gives no false
 * hypotheses.
 */
internal fun beamSearch(generation: GenerationConfig): Sequence<SearchEvent> = sequence {
    val processors = processors(generation)
    val divisors = lengthDivisors(generation)

    var beams = firstBeams(generation)
    var finished = listOf<Hypothesis>() // at most numBeams, best first
    var settled = 1
    var length = 1
    while (true) {
        val forced = forcedToken(generation, length)
        val last = length + 1 == generation.maxLength
        val decode =
            SearchEvent.Decode(beams.sequences.tokensAt(length - 1), beams.cameFrom)
        if (forced == null || !last) yield(decode)
        val candidates = if (forced == null) {
            beams.candidates(decode.logits, processors, length, generation.eosTokenIds.size)
        } else {
            beams.forced(forced)
        }
        val places = candidates.tokens.indices
        val (ends, goesOn) = places.partition {
            last || candidates.tokens[it] in generation.eosTokenIds
        }
        // Candidates beyond numBeams are there to go on; as endings they are not good enough.
        for (place in ends.filter { it < generation.numBeams }) {
            val tokenIds = beams.tokenIds(candidates.rows[place], length) + candidates.tokens[place]
            val hypothesis = Hypothesis(tokenIds, candidates.sums[place] / divisors[length])
            finished = finished.including(hypothesis).take(generation.numBeams)
        }
        if (goesOn.isEmpty()) break
        beams = beams.continued(candidates, goesOn.take(generation.numBeams), length)
        if (finished.size == generation.numBeams) {
            val worst = finished.last().score
            if (!mayImprove(beams.totals[0], length, worst, divisors, generation)) break
        }

        val contenders = beams.contenders(length, finished.firstOrNull(), divisors)
        val certain = commonPrefix(contenders, settled)
        settled += certain.size
        yield(SearchEvent.Settled(certain))
        length++
    }
    val best = finished.firstOrNull() ?: throw noTokenLeft(length)
    yield(SearchEvent.Settled(best.tokenIds.drop(settled)))
    yield(SearchEvent.Finished(finished.take(generation.numReturnSequences)))
}

/**
 * Sequences that may go on, best first: [totals] are the sums of their log-probabilities, negative
 * infinity for beams that do not exist.
 *
 * @property cameFrom the beam of the step before that each continues
 */
private class Beams(
    val sequences: Array<IntArray>,
    val cameFrom: IntArray,
    val totals: DoubleArray,
) {
    /**
     * Returns the best ways to go on by the [logits] of the token after [length] tokens, where each
     * beam can end in so many [ways].
     */
    fun candidates(
        logits: Logits,
        processors: List<Processor>,
        length: Int,
        ways: Int,
    ): Candidates {
        val normalizers = logNormalizers(logits)
        processors.process(sequences, length, logits, normalizers)
        val offsets = DoubleArray(totals.size) { totals[it] - normalizers[it] }
        // However beams end, as many candidates as there are beams go on.
        return largest(logits, offsets, (1 + ways) * totals.size)
    }

    /** Returns the only way to go on where [token] is forced. */
    fun forced(token: Int): Candidates {
        val rows = totals.indices.filter { totals[it] > Double.NEGATIVE_INFINITY }
        return Candidates(
            rows.toIntArray(),
            IntArray(rows.size) { token },
            DoubleArray(rows.size) { totals[rows[it]] },
        )
    }

    /** Returns the beams that take the [candidates] at [places]; what is left does not exist. */
    fun continued(candidates: Candidates, places: List<Int>, length: Int): Beams {
        val all = List(totals.size) { places.getOrElse(it) { places[0] } }
        return Beams(
            Array(all.size) {
                val sequence = sequences[candidates.rows[all[it]]].copyOf()
                sequence[length] = candidates.tokens[all[it]]
                sequence
            },
            IntArray(all.size) { candidates.rows[all[it]] },
            DoubleArray(all.size) {
                if (it < places.size) candidates.sums[places[it]] else Double.NEGATIVE_INFINITY
            },
        )
    }

    /** Returns every sequence that the search may end with, after [length] generated tokens. */
    fun contenders(length: Int, best: Hypothesis?, divisors: DoubleArray): List<List<Int>> {
        if (best == null) return totals.indices.map { tokenIds(it, length + 1) }
        val rivals = totals.indices.filter { mayWin(totals[it], length, best.score, divisors) }
        return rivals.map { tokenIds(it, length + 1) } + listOf(best.tokenIds)
    }

    /** Returns the first [length] tokens of a beam. */
    fun tokenIds(beam: Int, length: Int): List<Int> = sequences[beam].asList().subList(0, length)
}

/** Returns beams that are all equal, of which therefore only the first exists. */
private fun firstBeams(generation: GenerationConfig): Beams = Beams(
    firstTokens(generation, generation.numBeams),
    IntArray(generation.numBeams) { it },
    DoubleArray(generation.numBeams) { if (it == 0) 0.0 else Double.NEGATIVE_INFINITY },
)

/** Returns hypotheses that are best first with another one; among equals the older stays ahead. */
private fun List<Hypothesis>.including(hypothesis: Hypothesis): List<Hypothesis> {
    val (ahead, behind) = partition { it.score >= hypothesis.score }
    return ahead + hypothesis + behind
}

/**
 * Says whether beam search goes on once `numBeams` hypotheses are finished.
 *
 * [total] is that of the best beam after [length] generated tokens, [worstScore] the lowest score
 * among the finished. `early_stopping` of true never goes on; false takes the beam's score as if it
 * ended now, which longer sequences may exceed; "never" the best score that it can still reach.
 */
private fun mayImprove(
    total: Double,
    length: Int,
    worstScore: Double,
    divisors: DoubleArray,
    generation: GenerationConfig,
): Boolean {
    val reaches = generation.earlyStopping == EarlyStopping.NEVER && generation.lengthPenalty > 0
    val within = if (reaches) generation.maxLength - 1 else length
    return generation.earlyStopping != EarlyStopping.TRUE && total / divisors[within] > worstScore
}

/**
 * Says whether a beam, after [length] generated tokens, can end above [bestScore].
 *
 * Log-probabilities are never above 0, so a total never grows. Dividing by the largest divisor
 * ahead gives the best score within reach.
 */
private fun mayWin(total: Double, length: Int, bestScore: Double, divisors: DoubleArray): Boolean =
    total > bestScore * max(divisors[length + 1], divisors.last()) - ROUNDING

/** What sums of log-probabilities may grow by rounding alone. */
private const val ROUNDING = 1e-6

/** Returns the tokens from place [start] on for as long as all sequences have the same. */
private fun commonPrefix(sequences: List<List<Int>>, start: Int): List<Int> {
    val first = sequences[0]
    var end = start
    while (sequences.all { end < it.size && it[end] == first[end] }) end++
    return first.take(end).drop(start)
}

/**
 * Returns length.pow(lengthPenalty) for each number of generated tokens up to the last.
 *
 * Kept within the range of float64, so that no penalty, however extreme, divides by 0.
 */
private fun lengthDivisors(generation: GenerationConfig): DoubleArray =
    DoubleArray(generation.maxLength) {
        max(it, 1).toDouble().pow(generation.lengthPenalty).coerceIn(1e-300, 1e300)
    }
