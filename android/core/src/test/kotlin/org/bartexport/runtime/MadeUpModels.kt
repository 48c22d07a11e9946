/*
 * Synthetic models whose logits are a function of the sequence; mirrors
 * tests/support/made_up_models.py and the step of tools/android_fixtures.py.
 *
 * The state is the tokens of each beam, so a wrong beam index or an old state gives wrong logits.
 */
package org.bartexport.runtime

import java.io.File
import java.util.Random
import org.bartexport.GenerationConfig

typealias Sequences = List<List<Int>>

/** Returns the logits (vocabulary,) of the token after a sequence. */
typealias Model = (sequence: List<Int>) -> FloatArray

const val START = 0
const val END = 1
const val VOCABULARY = 6

/** Settings for models with [VOCABULARY] tokens. */
val SETTINGS = GenerationConfig(
    maxLength = 12,
    decoderStartTokenId = START,
    eosTokenIds = listOf(END),
    padTokenId = 0,
    bosTokenId = 2,
)

/** The step function of a model, which verifies up to [most] drafted tokens; records its calls. */
class CountedStep(private val most: Int = Int.MAX_VALUE, private val model: Model) :
    Step<Sequences> {
    val calls = mutableListOf<List<Int>>()

    /** Number of drafts with a wrong guess. */
    var rejected = 0
        private set

    override fun invoke(state: Sequences, request: SearchEvent.Decode): Stepped<Sequences> {
        calls += request.tokenIds.toList()
        if (state[0].size > request.position) rejected++
        val grown = grown(state, request, most)
        return Stepped(logits(grown.map(model)), grown.takeLast(state.size))
    }
}

/** Returns the tokens of every beam after a request, and of the last one after each guess. */
fun grown(
    beams: Sequences,
    request: SearchEvent.Decode,
    most: Int = Int.MAX_VALUE,
): List<List<Int>> {
    val grown = request.tokenIds.indices.map {
        beams[request.beamIndex[it]].take(request.position) + request.tokenIds[it]
    }
    val guesses = request.draft.take(most)
    return grown.dropLast(1) + guesses.scan(grown.last()) { tokens, guess -> tokens + guess }
}

/** Returns the logits of several rows. */
fun logits(rows: List<FloatArray>): Logits =
    Logits(rows.reduce { values, row -> values + row }, rows.size)

/** Returns the logits of one row. */
fun logitsOf(vararg values: Float): Logits = Logits(values, 1)

/** Returns a model with random logits, determined by the tokens and [seed]. */
fun randomModel(seed: Int, vocabulary: Int = VOCABULARY, sharpness: Double = 1.0): Model =
    { sequence ->
        val chance = Random(31L * sequence.hashCode() + seed)
        FloatArray(vocabulary) { (chance.nextGaussian() * sharpness).toFloat() }
    }

/** Returns a model with a uniform distribution. */
fun flatModel(vocabulary: Int = VOCABULARY): Model = { FloatArray(vocabulary) }

/** Returns the model of tools/android_fixtures.py, bit for bit. */
fun sharedModel(vocabulary: Int): Model = { sequence ->
    val hash = sequence.fold(17L) { hash, token -> (hash * 31 + token + 1) % (1L shl 31) }
    FloatArray(vocabulary) {
        (((hash * (it + 3) + it.toLong() * it * 7) % 1009) / 101.0).toFloat()
    }
}

/** Runs a search over a step function; [source] is looked up for drafts. */
fun events(
    step: Step<Sequences>,
    generation: GenerationConfig,
    source: List<Int> = emptyList(),
): Sequence<SearchEvent.Output> {
    val rows = maxOf(generation.numBeams, generation.numReturnSequences)
    return drive(search(generation, source.toIntArray()), step, List(rows) { emptyList() })
}

/** Returns the hypotheses of a search over a model. */
fun hypotheses(model: Model, generation: GenerationConfig): List<Hypothesis> =
    (events(CountedStep(model = model), generation).last() as SearchEvent.Finished).hypotheses

/** Returns a file of the fixtures that Python generates. */
fun madeByPython(name: String): File {
    val file = File(checkNotNull(System.getProperty("bart_export.build")), name)
    check(file.isFile) { "$file is missing. Run `make test-android`, which generates it." }
    return file
}
