/*
 * Text in, text out, piece by piece: a tokenizer, an engine and the search behind a Flow; mirrors
 * bart_export/runtime/generator.py.
 *
 * A text and settings go in, events come out: the source is encoded, text is certain, all is done.
 * Nothing here knows how a step is computed, how the next token is chosen, or who shows the text.
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
import org.bartexport.EngineError
import org.bartexport.GenerationConfig
import org.bartexport.text.BartTokenizer
import org.bartexport.text.IncrementalDetokenizer

/**
 * Where the time of one generation went.
 *
 * @property encode seconds that the engine took to encode the source
 * @property decode seconds from then until the last token
 * @property firstToken seconds from the beginning of [encode] until the first token was chosen
 * @property tokens of the best sequence, the start token excluded
 */
public data class Timings(
    val encode: Double,
    val decode: Double,
    val firstToken: Double,
    val tokens: Int,
) {
    /** Generated tokens, the start token excluded, per second of decoding. */
    val tokensPerSecond: Double
        get() = if (decode > 0) tokens / decode else 0.0
}

/**
 * One generated text.
 *
 * @property tokenIds from the start token on
 * @property score that of [Hypothesis]
 */
public data class GeneratedSequence(val text: String, val tokenIds: List<Int>, val score: Double)

/**
 * What one source text gave.
 *
 * @property sequences the `numReturnSequences` best, best first
 * @property sourceTokenIds start and end token included
 */
public data class GenerationResult(
    val sequences: List<GeneratedSequence>,
    val sourceTokenIds: List<Int>,
    val timings: Timings,
) {
    /** The best text. */
    val text: String
        get() = sequences.first().text
}

/** What happens during a generation, in this order: [Encoded], any number of [Text], [Finished]. */
public sealed interface GenerationEvent {
    /** The source of [sourceTokens] tokens, start and end included, was encoded in [seconds]. */
    public data class Encoded(val sourceTokens: Int, val seconds: Double) : GenerationEvent

    /**
     * A step was made.
     *
     * @property piece text that is certain now, often "": with beams it is certain once all beams
     *     agree on it, and a character may need several tokens. Put together, all pieces are the
     *     text of the result
     * @property tokens tokens that each beam has so far, the start token excluded
     */
    public data class Text(val piece: String, val tokens: Int) : GenerationEvent

    /** The generation is done. */
    public data class Finished(val result: GenerationResult) : GenerationEvent
}

/**
 * Generates text with an exported BART, one text at a time: a second collector waits for the first.
 *
 * @param tokenizer text to ids and back
 * @param engine runs the model; the generator closes it
 * @property generation settings used where a call gives none
 * @property encoderSequenceLength most tokens of a source, start and end included, that the model
 *     was prepared for and the engine has room for
 * @param dispatcher where the work is done, for best caches a single thread
 */
public class Generator(
    private val tokenizer: BartTokenizer,
    private val engine: Seq2SeqEngine,
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
     * Generates from a text. The flow is cold: every collection generates anew.
     *
     * When the collecting coroutine is cancelled the work ends before the engine's next step, and
     * the next generation may begin.
     *
     * Collecting throws [org.bartexport.InputError] for a text that is too long or is no Unicode,
     * or a `maxLength` or `numBeams` that the engine has no room for,
     * [org.bartexport.ConfigurationError] for token ids that the model does not have, and
     * [EngineError] where the engine fails or the generator is closed.
     *
     * @param generation settings for this text
     * @param truncate cut a source that is too long at its end; otherwise it is an error
     * @param specialTokens take `<mask>` and the other special tokens of BART in a text for the
     *     tokens; texts of strangers could then end or pad a source
     */
    public fun generate(
        text: String,
        generation: GenerationConfig = this.generation,
        truncate: Boolean = false,
        specialTokens: Boolean = false,
    ): Flow<GenerationEvent> = flow {
        alone {
            val ids = tokenizer.encode(text, encoderSequenceLength, truncate, specialTokens)
            generate(ids, generation)
        }
    }.flowOn(dispatcher)

    /**
     * Returns what [generate] gives in the end, and fails as collecting it does. Cancelling the
     * coroutine ends the work before the engine's next step.
     */
    public suspend fun summarize(
        text: String,
        generation: GenerationConfig = this.generation,
        truncate: Boolean = false,
    ): String {
        val finished = generate(text, generation, truncate).last() as GenerationEvent.Finished
        return finished.result.text
    }

    /** Returns the number of tokens of a text as a source, start and end token included. */
    public fun countTokens(text: String): Int = tokenizer.tokenize(text).size + 2

    /** Ends a generation that runs, before its next step, and closes the engine once it has. */
    override fun close() {
        closed = true
        // Otherwise the generation that has the lock comes here when it gives it back.
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

    private suspend fun alone(generation: suspend () -> Unit) {
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
        val step = Step<Decoding> { decoding, ids, beamIndex ->
            checkOpen()
            cancellable(decoding, ids, beamIndex).also { progress.steps += 1 }
        }
        val hypotheses = emitText(drive(search(generation), step, state), progress)
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
        emit(
            GenerationEvent.Finished(GenerationResult(sequences, tokenIds.toList(), timings)),
        )
    }

    /** Emits the text of a search's tokens as they settle, and returns its hypotheses. */
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
        throw IllegalStateException("A search must end with its hypotheses.")
    }

    private fun checkOpen() {
        if (closed) throw EngineError("This generator is closed. Open another one.")
    }
}

/** How far a generation is. */
private class Progress {
    var steps = 0
    var firstToken: Long? = null
        private set
    private var settled = 0

    /** Tokens of each sequence; a forced one takes no step, one that beams differ on is open. */
    val tokens: Int
        get() = max(steps, settled)

    fun settle(tokens: Int) {
        settled += tokens
        firstToken = firstToken ?: System.nanoTime()
    }
}

/** Returns an engine's step that is not begun once the coroutine of [context] is cancelled. */
internal fun Seq2SeqEngine.cancellableStep(context: CoroutineContext): Step<Decoding> =
    Step { state, tokenIds, beamIndex ->
        context.ensureActive()
        step(state, tokenIds, beamIndex)
    }

private fun seconds(from: Long, until: Long) = (until - from) / NANOSECONDS

private const val NANOSECONDS = 1e9
