/*
 * Beam search; mirrors the beam search in bart_export/runtime/search.py.
 */
package org.bartexport.runtime

import kotlin.math.max
import kotlin.math.pow
import org.bartexport.EarlyStopping
import org.bartexport.GenerationConfig

/**
 * Keeps the `numBeams` best unfinished sequences and, separately, the best finished ones.
 *
 * Beams that do not exist yet score negative infinity and never finish, whereas Hugging Face scores
 * them -1e9. A vocabulary smaller than the number of beams thus gives no spurious hypotheses.
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
            SearchEvent.Decode(beams.sequences.tokensAt(length - 1), beams.cameFrom, length - 1)
        if (forced == null || !last) yield(decode)
        val candidates = if (forced == null) {
            beams.candidates(decode.logits, processors, length, generation.eosTokenIds.size)
        } else {
            beams.forced(forced)
        }
        val places = candidates.tokens.indices
        val (ends, continuations) = places.partition {
            last || candidates.tokens[it] in generation.eosTokenIds
        }
        // Only the numBeams best candidates may finish; the others replace beams that do.
        for (place in ends.filter { it < generation.numBeams }) {
            val tokenIds = beams.tokenIds(candidates.rows[place], length) + candidates.tokens[place]
            val hypothesis = Hypothesis(tokenIds, candidates.sums[place] / divisors[length])
            finished = finished.including(hypothesis).take(generation.numBeams)
        }
        if (continuations.isEmpty()) break
        beams = beams.continued(candidates, continuations.take(generation.numBeams), length)
        if (finished.size == generation.numBeams) {
            val worst = finished.last().score
            if (!mayImprove(beams.totals[0], length, worst, divisors, generation)) break
        }

        val contenders = beams.contenders(length, finished.firstOrNull(), divisors)
        val agreed = commonPrefix(contenders, settled)
        settled += agreed.size
        yield(SearchEvent.Settled(agreed))
        length++
    }
    val best = finished.firstOrNull() ?: throw noTokenLeft(length)
    yield(SearchEvent.Settled(best.tokenIds.drop(settled)))
    yield(SearchEvent.Finished(finished.take(generation.numReturnSequences)))
}

/**
 * The unfinished sequences, best first.
 *
 * @property cameFrom the beam of the previous step that each beam continues
 * @property totals sums of log-probabilities; negative infinity for beams that do not exist
 */
private class Beams(
    val sequences: Array<IntArray>,
    val cameFrom: IntArray,
    val totals: DoubleArray,
) {
    /**
     * Returns the best continuations after [length] tokens.
     *
     * @param endTokens the number of end tokens
     */
    fun candidates(
        logits: Logits,
        processors: List<Processor>,
        length: Int,
        endTokens: Int,
    ): Candidates {
        val normalizers = logNormalizers(logits)
        processors.process(sequences, length, logits, normalizers)
        val offsets = DoubleArray(totals.size) { totals[it] - normalizers[it] }
        // Enough to continue every beam even if all their end tokens are among the best.
        return largest(logits, offsets, (1 + endTokens) * totals.size)
    }

    /** Returns the continuation of every beam by the forced [token]. */
    fun forced(token: Int): Candidates {
        val rows = totals.indices.filter { totals[it] > Double.NEGATIVE_INFINITY }
        return Candidates(
            rows.toIntArray(),
            IntArray(rows.size) { token },
            DoubleArray(rows.size) { totals[rows[it]] },
        )
    }

    /** Returns the beams of the [candidates] at [places]; any others do not exist. */
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

    /** Returns every sequence that may still win, after [length] generated tokens. */
    fun contenders(length: Int, best: Hypothesis?, divisors: DoubleArray): List<List<Int>> {
        if (best == null) return totals.indices.map { tokenIds(it, length + 1) }
        val rivals = totals.indices.filter { mayWin(totals[it], length, best.score, divisors) }
        return rivals.map { tokenIds(it, length + 1) } + listOf(best.tokenIds)
    }

    /** Returns the first [length] tokens of a beam. */
    fun tokenIds(beam: Int, length: Int): List<Int> = sequences[beam].asList().subList(0, length)
}

/** Returns the beams before the first step, of which only one exists. */
private fun firstBeams(generation: GenerationConfig): Beams = Beams(
    initialSequences(generation, generation.numBeams),
    IntArray(generation.numBeams) { it },
    DoubleArray(generation.numBeams) { if (it == 0) 0.0 else Double.NEGATIVE_INFINITY },
)

/** Inserts a hypothesis into a list sorted by score, after those with an equal score. */
private fun List<Hypothesis>.including(hypothesis: Hypothesis): List<Hypothesis> {
    val (ahead, behind) = partition { it.score >= hypothesis.score }
    return ahead + hypothesis + behind
}

/**
 * Returns whether beam search continues once `numBeams` hypotheses are finished.
 *
 * With `early_stopping` true it stops. With false it compares the best beam's current score, which
 * a longer sequence may exceed; with "never" it compares the best score the beam can still reach.
 *
 * @param total the best beam's sum of log-probabilities, after [length] generated tokens
 * @param worstScore the lowest score of the finished hypotheses
 */
private fun mayImprove(
    total: Double,
    length: Int,
    worstScore: Double,
    divisors: DoubleArray,
    generation: GenerationConfig,
): Boolean {
    val optimistic = generation.earlyStopping == EarlyStopping.NEVER && generation.lengthPenalty > 0
    val scoredLength = if (optimistic) generation.maxLength - 1 else length
    return generation.earlyStopping != EarlyStopping.TRUE &&
        total / divisors[scoredLength] > worstScore
}

/**
 * Returns whether a beam, after [length] generated tokens, can still exceed [bestScore].
 *
 * Log-probabilities are at most 0, so a total never grows; its best possible score is the total
 * divided by the largest divisor still to come.
 */
private fun mayWin(total: Double, length: Int, bestScore: Double, divisors: DoubleArray): Boolean =
    total > bestScore * max(divisors[length + 1], divisors.last()) - ROUNDING

/** Bound on the rounding error in a sum of log-probabilities. */
private const val ROUNDING = 1e-6

/** Returns the longest common run of tokens from index [start]. */
private fun commonPrefix(sequences: List<List<Int>>, start: Int): List<Int> {
    val first = sequences[0]
    var end = start
    while (sequences.all { end < it.size && it[end] == first[end] }) end++
    return first.take(end).drop(start)
}

/**
 * Returns length.pow(lengthPenalty) for each number of generated tokens, float64 (maxLength,).
 *
 * Extreme penalties are clamped, so that no divisor is 0 or infinite.
 */
private fun lengthDivisors(generation: GenerationConfig): DoubleArray =
    DoubleArray(generation.maxLength) {
        max(it, 1).toDouble().pow(generation.lengthPenalty).coerceIn(1e-300, 1e300)
    }
