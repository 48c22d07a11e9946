/*
 * Greedy search, sampling and beam search with the semantics of Hugging Face's `generate()`
 * (transformers 4.57); mirrors bart_export/runtime/search.py.
 *
 * A search is a sequence of events: it requests logits with `Decode`, reports final tokens with
 * `Settled`, and ends with `Finished`. It neither calls a model nor holds caches, so a loop can
 * drive one search (`drive`) or several at the same time.
 */
package org.bartexport.runtime

import org.bartexport.ConfigurationError
import org.bartexport.GenerationConfig

/**
 * A finished sequence, from the start token to the end token or `maxLength`.
 *
 * In beam search the score is `sum of log-probabilities / generatedLength.pow(lengthPenalty)`,
 * Hugging Face's `sequences_scores`. In greedy search and sampling it is the sum of the model's
 * log-probabilities before processors and filters. Forced tokens add 0.
 */
public data class Hypothesis(val tokenIds: List<Int>, val score: Double)

/** An event of a search. */
public sealed interface SearchEvent {
    /**
     * A request to decode one token of every beam.
     *
     * Beam k continues beam `beamIndex[k]` of the previous request with token `tokenIds[k]`; both
     * arrays are (beams,). The driver sets [logits], (beams, vocabulary), before it takes the next
     * event; the search changes them in place.
     *
     * @property position number of preceding tokens
     * @property draft guesses of a single beam's next tokens. The driver may also set the logits
     *     after the first of them, (1 + verified, vocabulary). After a wrong guess, the search
     *     requests its position again
     */
    public class Decode(
        public val tokenIds: IntArray,
        public val beamIndex: IntArray,
        public val position: Int = 0,
        public val draft: IntArray = IntArray(0),
    ) : SearchEvent {
        public lateinit var logits: Logits
    }

    /** An event for the caller of [drive]. */
    public sealed interface Output : SearchEvent

    /** The next tokens of the best sequence that no later step can change; possibly none. */
    public data class Settled(val tokenIds: List<Int>) : Output

    /** The result of the search, best hypothesis first. */
    public data class Finished(val hypotheses: List<Hypothesis>) : Output
}

/**
 * Searches for the best sequences; [source] are the source's token ids, for drafts. The sequence of
 * events is lazy.
 *
 * Each step is followed by a [SearchEvent.Settled]: with the chosen token in greedy search and for
 * a single sample; with no, one or several tokens in beam search; and with all tokens at the end
 * for several samples. Together they are the first hypothesis without its start token. The last
 * event is [SearchEvent.Finished] with `numReturnSequences` hypotheses, or fewer if the settings
 * forbid further ones.
 *
 * A [SearchEvent.Decode] has `numBeams` rows, or one for each of `numReturnSequences` samples.
 *
 * Iterating throws an [org.bartexport.EngineError] if logits are NaN or infinite, and a
 * [ConfigurationError] if the settings forbid every token.
 */
public fun search(
    generation: GenerationConfig,
    source: IntArray = IntArray(0),
): Sequence<SearchEvent> =
    if (generation.numBeams > 1) beamSearch(generation) else tokenSearch(generation, source)

/**
 * Runs a [search] with a [step] function and an initial [state], lazily, and returns its outputs.
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
                val stepped = step(current, event)
                event.logits = stepped.logits
                current = stepped.state
            }

            is SearchEvent.Output -> yield(event)
        }
    }
}

/** Greedy search and sampling: chooses one token per step for each of the independent rows. */
private fun tokenSearch(generation: GenerationConfig, source: IntArray) = sequence {
    val lookup = promptLookup(generation, source)
    var decode: SearchEvent.Decode? = null // the latest request
    var place = 0 // the row of its logits for the next token
    val rows = generation.numReturnSequences
    val chooser = TokenChooser(generation)

    val sequences = initialSequences(generation, rows)
    val beamIndex = IntArray(rows) { it }
    val lengths = IntArray(rows) { generation.maxLength }
    val scores = DoubleArray(rows)
    var running = List(rows) { it }
    for (length in 1 until generation.maxLength) {
        val forced = forcedToken(generation, length)
        if (decode?.verified(place) == sequences[0][length - 1]) {
            place++
        } else if (forced == null || length + 1 < generation.maxLength) {
            val tokens = sequences.tokensAt(length - 1)
            val draft = lookup?.draft() ?: IntArray(0)
            decode = SearchEvent.Decode(tokens, beamIndex, length - 1, draft)
            place = 0
            yield(decode)
        }
        if (forced == null) {
            val decoded = checkNotNull(decode).logits
            val logits = if (lookup == null) decoded else decoded.row(place)
            chooser.choose(logits, running, sequences, length, scores)
        } else {
            for (row in running) sequences[row][length] = forced
        }
        for (row in running) {
            if (sequences[row][length] in generation.eosTokenIds) lengths[row] = length + 1
        }
        lookup?.add(sequences[0][length])
        running = running.filter { lengths[it] > length + 1 }
        yield(SearchEvent.Settled(if (rows == 1) listOf(sequences[0][length]) else listOf()))
        if (running.isEmpty()) break
    }
    val hypotheses = List(rows) { Hypothesis(sequences[it].asList().take(lengths[it]), scores[it]) }
        .sortedByDescending { it.score }
    if (rows > 1) yield(SearchEvent.Settled(hypotheses[0].tokenIds.drop(1)))
    yield(SearchEvent.Finished(hypotheses))
}

/** Returns the guess at [place] of the draft if the logits after it are known, or null. */
private fun SearchEvent.Decode.verified(place: Int): Int? =
    if (place < logits.rows - 1) draft.getOrNull(place) else null

private fun Logits.row(place: Int): Logits = if (rows == 1) {
    this
} else {
    Logits(values.copyOfRange(place * vocabulary, (place + 1) * vocabulary), 1)
}

/** Chooses the next token of each row and adds its score. */
private class TokenChooser(generation: GenerationConfig) {
    private val choice = if (generation.doSample) sampledChoice(generation) else greedyChoice
    private val processors = processors(generation)
    private val rescores = generation.repetitionPenalty != 1.0

    /** Appends a token to each [running] row of [sequences] and adds its score to [scores]. */
    fun choose(
        logits: Logits,
        running: List<Int>,
        sequences: Array<IntArray>,
        length: Int,
        scores: DoubleArray,
    ) {
        val normalizers = logNormalizers(logits)
        val unprocessed = if (rescores) logits.values.copyOf() else logits.values
        processors.process(sequences, length, logits, FloatArray(logits.rows))
        for (row in running) {
            val token = choice.choose(logits, row)
            val place = row * logits.vocabulary + token
            if (logits.values[place] == Float.NEGATIVE_INFINITY) throw noTokenLeft(length)
            sequences[row][length] = token
            scores[row] += (unprocessed[place] - normalizers[row]).toDouble()
        }
    }
}

/** Returns sequences (rows, maxLength) of the start token and padding. */
internal fun initialSequences(generation: GenerationConfig, rows: Int): Array<IntArray> =
    Array(rows) {
        IntArray(generation.maxLength) { place ->
            if (place == 0) generation.decoderStartTokenId else generation.padTokenId
        }
    }

/** Returns the token of each sequence at [place], (rows,). */
internal fun Array<IntArray>.tokensAt(place: Int): IntArray = IntArray(size) { this[it][place] }

/** Returns the error for settings that forbid every token. */
internal fun noTokenLeft(length: Int): ConfigurationError = ConfigurationError(
    "Expected at least one allowed token after the first $length, but the settings forbid all. " +
        "Set no_repeat_ngram_size to 0, or lower min_length or max_length.",
)
