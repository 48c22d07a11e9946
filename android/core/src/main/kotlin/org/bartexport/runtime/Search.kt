/*
 * Generation: from a step function that scores the next token to finished sequences; mirrors
 * bart_export/runtime/search.py.
 *
 * In go a step function, its first state and the settings; out come tokens as soon as they are
 * certain, and at last the hypotheses, best first. The semantics are those of Hugging Face's
 * `generate()` (transformers 4.57): greedy search, multinomial sampling and beam search.
 *
 * The search knows neither the model nor what runs it. The state (a decoder's caches) is a value:
 * what one step returns goes into the next, and nothing here looks inside.
 */
package org.bartexport.runtime

import org.bartexport.ConfigurationError
import org.bartexport.GenerationConfig

/**
 * A finished sequence: its tokens, from the start token to the end token if that was reached, and
 * its score.
 *
 * Beam search scores `sum of log-probabilities / generatedLength.pow(lengthPenalty)`, Hugging
 * Face's `sequences_scores`. Greedy search and sampling score the sum of the log-probabilities that
 * the model, before any processor or filter, gave to the tokens. Forced tokens count 0.
 */
public data class Hypothesis(val tokenIds: List<Int>, val score: Double)

/** What a search tells. */
public sealed interface SearchEvent {
    /**
     * After a step: the tokens, start token excluded, that are now certain to follow in the best
     * sequence whatever later steps say; maybe none.
     */
    public data class Settled(val tokenIds: List<Int>) : SearchEvent

    /** The end: the hypotheses, best first. */
    public data class Finished(val hypotheses: List<Hypothesis>) : SearchEvent
}

/**
 * Generates sequences, best first, telling the tokens of the best as they settle.
 *
 * Gives one [SearchEvent.Settled] after every step: in greedy search and for a single sample each
 * token as it is chosen; in beam search often nothing and then several; among several samples
 * everything at the end. Put together, they are the first hypothesis without its start token. The
 * last event is [SearchEvent.Finished] with `numReturnSequences` hypotheses; fewer only where the
 * settings leave fewer sequences. Nothing happens before the first event is asked for, and no step
 * is made for an event that is not asked for.
 *
 * [step] is called with `numBeams` rows, when sampling with `numReturnSequences` rows that are
 * independent samples, and no more often than needed.
 *
 * The sequence throws [org.bartexport.EngineError] when the step returns NaN or infinite logits,
 * and [ConfigurationError] when the settings forbid every token.
 */
public fun <State> search(
    step: Step<State>,
    state: State,
    generation: GenerationConfig,
): Sequence<SearchEvent> = if (generation.numBeams > 1) {
    beamSearch(step, state, generation)
} else {
    tokenSearch(step, state, generation)
}

/** Chooses one token a step for each of some independent rows: greedy search and sampling. */
private fun <State> tokenSearch(
    step: Step<State>,
    firstState: State,
    generation: GenerationConfig,
): Sequence<SearchEvent> = sequence {
    val rows = generation.numReturnSequences
    val chooser = TokenChooser(generation)

    val sequences = firstTokens(generation, rows)
    val beamIndex = IntArray(rows) { it }
    val lengths = IntArray(rows) { generation.maxLength }
    val scores = DoubleArray(rows)
    var state = firstState
    var running = List(rows) { it }
    for (length in 1 until generation.maxLength) {
        val forced = forcedToken(generation, length)
        if (forced == null) {
            val stepped = step(state, sequences.tokensAt(length - 1), beamIndex)
            state = stepped.state
            chooser.choose(stepped.logits, running, sequences, length, scores)
        } else {
            if (length + 1 < generation.maxLength) {
                state = step(state, sequences.tokensAt(length - 1), beamIndex).state
            }
            for (row in running) sequences[row][length] = forced
        }
        for (row in running) {
            if (sequences[row][length] in generation.eosTokenIds) lengths[row] = length + 1
        }
        running = running.filter { lengths[it] > length + 1 }
        yield(SearchEvent.Settled(if (rows == 1) listOf(sequences[0][length]) else listOf()))
        if (running.isEmpty()) break
    }
    val hypotheses = List(rows) { Hypothesis(sequences[it].asList().take(lengths[it]), scores[it]) }
        .sortedByDescending { it.score }
    if (rows > 1) yield(SearchEvent.Settled(hypotheses[0].tokenIds.drop(1)))
    yield(SearchEvent.Finished(hypotheses))
}

/** Chooses the next token of rows by the settings, and adds up the tokens' scores. */
private class TokenChooser(generation: GenerationConfig) {
    private val choice = if (generation.doSample) sampledChoice(generation) else greedyChoice
    private val processors = processors(generation)
    private val rescores = generation.repetitionPenalty != 1.0

    /** Puts a token at [length] of every row that is [running], and its score into [scores]. */
    fun choose(
        logits: Logits,
        running: List<Int>,
        sequences: Array<IntArray>,
        length: Int,
        scores: DoubleArray,
    ) {
        val normalizers = logNormalizers(logits)
        val unprocessed = if (rescores) logits.values.copyOf() else logits.values
        processors.process(sequences, length, logits, FloatArray(logits.beams))
        for (row in running) {
            val token = choice.choose(logits, row)
            val place = row * logits.vocabulary + token
            if (logits.values[place] == Float.NEGATIVE_INFINITY) throw noTokenLeft(length)
            sequences[row][length] = token
            scores[row] += (unprocessed[place] - normalizers[row]).toDouble()
        }
    }
}

/** Returns sequences (rows, maxLength) that hold the start token, then padding. */
internal fun firstTokens(generation: GenerationConfig, rows: Int): Array<IntArray> = Array(rows) {
    IntArray(generation.maxLength) { place ->
        if (place == 0) generation.decoderStartTokenId else generation.padTokenId
    }
}

/** Returns the token of each sequence at one place: (rows,). */
internal fun Array<IntArray>.tokensAt(place: Int): IntArray = IntArray(size) { this[it][place] }

/** Returns the error for settings under which no sequence can go on. */
internal fun noTokenLeft(length: Int): ConfigurationError = ConfigurationError(
    "Expected at least one token that may follow the first $length, but every one is forbidden. " +
        "Lower no_repeat_ngram_size or min_length, or set a lower max_length.",
)
