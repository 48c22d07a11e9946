/*
 * Text generation as a Flow: a tokenizer, an engine and a search; mirrors
 * bart_export/runtime/generator.py.
 */
package org.bartexport.runtime

import kotlin.coroutines.CoroutineContext
import kotlin.math.max
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.serialization.json.JsonPrimitive
import org.bartexport.EngineError
import org.bartexport.GenerationConfig
import org.bartexport.InputError
import org.bartexport.text.BartTokenizer
import org.bartexport.text.IncrementalDetokenizer

/**
 * Durations of one generation, in seconds.
 *
 * @property encode time to encode the source
 * @property decode time from then until the last token
 * @property firstToken time from the start of encoding until the first token
 * @property tokens number of tokens in the best sequence, excluding the start token
 */
public data class Timings(
    val encode: Double,
    val decode: Double,
    val firstToken: Double,
    val tokens: Int,
) {
    /** Generated tokens per second of decoding. */
    val tokensPerSecond: Double
        get() = if (decode > 0) tokens / decode else 0.0
}

/**
 * One generated text.
 *
 * @property tokenIds token ids, including the start token
 * @property score see [Hypothesis]
 */
public data class GeneratedSequence(val text: String, val tokenIds: List<Int>, val score: Double)

/**
 * The result for one source text.
 *
 * @property sequences the `numReturnSequences` best sequences, best first
 * @property sourceTokenIds token ids of the source, including start and end
 * @property truncated whether only the beginning of the source was used
 */
public data class GenerationResult(
    val sequences: List<GeneratedSequence>,
    val sourceTokenIds: List<Int>,
    val timings: Timings,
    val truncated: Boolean,
) {
    /** The best text. */
    val text: String
        get() = sequences.first().text

    /** The token ids of the best text, including the start token. */
    val tokenIds: List<Int>
        get() = sequences.first().tokenIds

    /** The score of the best text. */
    val score: Double
        get() = sequences.first().score
}

/** An event of a generation: [Encoded], then any number of [Text], then [Finished]. */
public sealed interface GenerationEvent {
    /** The source, [sourceTokens] tokens including start and end, was encoded in [seconds]. */
    public data class Encoded(val sourceTokens: Int, val seconds: Double) : GenerationEvent

    /**
     * A decoding step is done.
     *
     * @property piece new text that is final, possibly empty: in beam search, text is final once
     *     all beams agree on it, and one character may take several tokens. The pieces concatenate
     *     to the text of the result
     * @property tokens number of tokens in each beam so far, excluding the start token
     */
    public data class Text(val piece: String, val tokens: Int) : GenerationEvent

    /** The generation is done. */
    public data class Finished(val result: GenerationResult) : GenerationEvent
}

/**
 * Generates text with an exported BART, one text at a time: a second collector waits for the first.
 *
 * @property tokenizer converts text to ids and back
 * @property engine runs the model; closed together with the generator
 * @property generation default settings
 * @property encoderSequenceLength maximum number of source tokens, including start and end
 * @param dispatcher runs the generation; a single thread makes the best use of CPU caches
 */
public class Generator(
    public val tokenizer: BartTokenizer,
    public val engine: Seq2SeqEngine,
    public val generation: GenerationConfig,
    public val encoderSequenceLength: Int,
    private val dispatcher: CoroutineDispatcher,
) : AutoCloseable {
    private val running = Mutex()

    @Volatile
    private var closed = false

    // Under `running`.
    private var engineClosed = false

    /**
     * Generates from a text. The flow is cold: each collection generates again.
     *
     * Cancelling the collecting coroutine ends the generation before the engine's next step.
     *
     * Collecting throws an [InputError] if the text is blank, too long or not valid Unicode, or the
     * engine has no room for `maxLength` or `numBeams`; an [org.bartexport.ConfigurationError] if a
     * token id of the settings is not in the vocabulary; and an [EngineError] if the engine fails
     * or the generator is closed.
     *
     * @param truncate whether to truncate a source that is too long, and set `truncated` in the
     *     result, instead of failing
     * @param allowEmpty whether to accept a blank text, for which the model makes up a result
     * @param specialTokens whether `<mask>` and BART's other special tokens in the text become
     *     their ids. This would let an untrusted text end or pad a source
     */
    public fun generate(
        text: String,
        generation: GenerationConfig = this.generation,
        truncate: Boolean = false,
        allowEmpty: Boolean = false,
        specialTokens: Boolean = false,
    ): Flow<GenerationEvent> = flow {
        exclusively {
            if (!allowEmpty) checkText(text)
            val (ids, truncated) = if (truncate) {
                tokenizer.encodeBeginning(text, encoderSequenceLength, specialTokens)
            } else {
                tokenizer.encode(text, encoderSequenceLength, false, specialTokens) to false
            }
            generate(ids, truncated, generation)
        }
    }.flowOn(dispatcher)

    /**
     * Returns the generated text. Errors and cancellation are those of collecting [generate].
     */
    public suspend fun summarize(
        text: String,
        generation: GenerationConfig = this.generation,
        truncate: Boolean = false,
    ): String {
        val finished = generate(text, generation, truncate).last() as GenerationEvent.Finished
        return finished.result.text
    }

    /**
     * Returns the number of source tokens of a text, including start and end. It reads the whole
     * text, so a long one should not be counted on the main thread.
     *
     * @throws InputError if the text is not valid Unicode
     */
    public fun countTokens(text: String): Int = tokenizer.tokenize(text).size + 2

    /** Ends any running generation before its next step, then closes the engine. */
    override fun close() {
        closed = true
        // Otherwise the running generation calls this function when it ends.
        if (!running.tryLock()) return
        try {
            if (!engineClosed) {
                engineClosed = true
                engine.close()
            }
        } finally {
            running.unlock()
        }
    }

    private suspend fun exclusively(generation: suspend () -> Unit) {
        try {
            running.withLock {
                checkOpen()
                generation()
            }
        } finally {
            if (closed) close()
        }
    }

    private suspend fun FlowCollector<GenerationEvent>.generate(
        tokenIds: IntArray,
        truncated: Boolean,
        generation: GenerationConfig,
    ) {
        generation.checkTokenIds(engine.config.vocabularySize)
        val began = System.nanoTime()
        val rows = max(generation.numBeams, generation.numReturnSequences)
        val state = engine.start(tokenIds, rows, generation.maxLength)
        val encoded = System.nanoTime()
        emit(GenerationEvent.Encoded(tokenIds.size, seconds(began, encoded)))

        val progress = Progress()
        val cancellable = engine.cancellableStep(currentCoroutineContext())
        val step = Step<Decoding> { decoding, request ->
            checkOpen()
            cancellable(decoding, request).also { progress.steps += 1 }
        }
        val hypotheses = emitText(drive(search(generation, tokenIds), step, state), progress)
        val decoded = System.nanoTime()
        val sequences = hypotheses.map { hypothesis ->
            val ids = hypothesis.tokenIds.toIntArray()
            val text = tokenizer.detokenize(ids).removePrefix(" ")
            GeneratedSequence(text, hypothesis.tokenIds, hypothesis.score)
        }
        val timings = Timings(
            encode = seconds(began, encoded),
            decode = seconds(encoded, decoded),
            firstToken = seconds(began, progress.firstToken ?: decoded),
            tokens = sequences.first().tokenIds.size - 1,
        )
        val result = GenerationResult(sequences, tokenIds.toList(), timings, truncated)
        emit(GenerationEvent.Finished(result))
    }

    /** Emits the text of a search's settled tokens and returns its hypotheses. */
    private suspend fun FlowCollector<GenerationEvent>.emitText(
        events: Sequence<SearchEvent.Output>,
        progress: Progress,
    ): List<Hypothesis> {
        val detokenizer = IncrementalDetokenizer(tokenizer, keepFirstSpace = false)
        for (event in events) {
            when (event) {
                is SearchEvent.Settled -> {
                    progress.settle(event.tokenIds.size)
                    val piece = event.tokenIds.joinToString("") { detokenizer.push(it) }
                    emit(GenerationEvent.Text(piece, progress.tokens))
                }

                is SearchEvent.Finished -> {
                    val rest = detokenizer.finish()
                    if (rest.isNotEmpty()) emit(GenerationEvent.Text(rest, progress.tokens))
                    return event.hypotheses
                }
            }
        }
        throw IllegalStateException("A search must end with Finished.")
    }

    private fun checkOpen() {
        if (closed) throw EngineError("This generator is closed. Open another one.")
    }
}

/** The progress of a generation. */
private class Progress {
    var steps = 0
    var firstToken: Long? = null
        private set
    private var settled = 0

    /** Tokens of each sequence: some settle without a step of their own, others settle later. */
    val tokens: Int
        get() = max(steps, settled)

    fun settle(tokens: Int) {
        settled += tokens
        firstToken = firstToken ?: System.nanoTime()
    }
}

/** Returns the engine's step, preceded by a check that [context] is not cancelled. */
internal fun Seq2SeqEngine.cancellableStep(context: CoroutineContext): Step<Decoding> =
    Step { state, request ->
        context.ensureActive()
        step(state, request)
    }

private fun checkText(text: String) {
    if (text.isNotBlank()) return
    throw InputError(
        "A text must not be blank, received ${JsonPrimitive(text.take(SHOWN))}. With " +
            "allowEmpty = true the model makes up a text instead.",
    )
}

private fun seconds(from: Long, until: Long) = (until - from) / NANOSECONDS

private const val NANOSECONDS = 1e9
private const val SHOWN = 20
