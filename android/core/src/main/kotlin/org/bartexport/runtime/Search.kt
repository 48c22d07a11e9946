/*
 * Greedy search, multinomial sampling and beam search, as Hugging Face's `generate()` has them;
 * mirrors bart_export/runtime/search.py.
 *
 * A search is a sequence of events. It asks for logits with `Decode`, says with `Settled` which
 * tokens are certain, and ends with `Finished`. It calls no model and holds no caches, so that one
 * loop can run one search (`drive`) or many side by side. The semantics are those of transformers
 * 4.57.
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

/** What a search asks for or tells. */
public sealed interface SearchEvent {
    /**
     * A request for the logits that follow one more token of every beam.
     *
     * Beam k continues beam `beamIndex[k]` of the request before, and then has `tokenIds[k]`. Who
     * runs the search sets [logits], (beams, vocabulary), before the next event; the search changes
     * them in place.
     */
    public class Decode(public val tokenIds: IntArray, public val beamIndex: IntArray) :
        SearchEvent {
        public lateinit var logits: Logits
    }

    /** What a search tells. */
    public sealed interface Output : SearchEvent

    /**
     * After a step: the tokens, start token excluded, that are now certain to follow in the best
     * sequence whatever later steps say; maybe none.
     */
    public data class Settled(val tokenIds: List<Int>) : Output

    /** The end: the hypotheses, best first. */
    public data class Finished(val hypotheses: List<Hypothesis>) : Output
}

/**
 * Searches for the best sequences.
 *
 * There is a [SearchEvent.Settled] after every step: in greedy search and for a single sample with
 * the token that was chosen; in beam search often with none and then several; among several samples
 * with everything at the end. Put together, they are the first hypothesis without its start token.
 * The last event is [SearchEvent.Finished] with `numReturnSequences` hypotheses; fewer only where
 * the settings leave fewer sequences. Nothing happens before the first event is asked for.
 *
 * Every [SearchEvent.Decode] has `numBeams` rows, when sampling `numReturnSequences` rows that are
 * independent samples. There are no more than needed.
 *
 * The sequence throws [org.bartexport.EngineError] for logits that are NaN or infinite, and
 * [ConfigurationError] when the settings forbid every token.
 */
public fun search(generation: GenerationConfig): Sequence<SearchEvent> =
    if (generation.numBeams > 1) beamSearch(generation) else tokenSearch(generation)

/**
 * Runs a [search] with a [step] function from its first [state], and gives what it tells. No step
 * is made for an event that is not asked for.
 */
public fun <State> drive(
    search: Sequence<SearchEvent>,
    step: Step<State>,
    state: State,
): Sequence<SearchEvent.Output> = sequence {
    var current = state
    for (event in search) {
        when (event) {
            is SearchEvent.Decode -> {
                val stepped = step(current, event.tokenIds, event.beamIndex)
                event.logits = stepped.logits
                current = stepped.state
            }

            is SearchEvent.Output -> yield(event)
        }
    }
}

/** Chooses one token a step for each of some independent rows: greedy search and sampling. */
private fun tokenSearch(generation: GenerationConfig): Sequence<SearchEvent> = sequence {
    val rows = generation.numReturnSequences
    val chooser = TokenChooser(generation)

    val sequences = firstTokens(generation, rows)
    val beamIndex = IntArray(rows) { it }
    val lengths = IntArray(rows) { generation.maxLength }
    val scores = DoubleArray(rows)
    var running = List(rows) { it }
    for (length in 1 until generation.maxLength) {
        val forced = forcedToken(generation, length)
        val decode = SearchEvent.Decode(sequences.tokensAt(length - 1), beamIndex)
        if (forced == null || length + 1 < generation.maxLength) yield(decode)
        if (forced == null) {
            chooser.choose(decode.logits, running, sequences, length, scores)
        } else {
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
