/*
 * Replay: a file of an artifact is asked again what golden.json says it answered; mirrors
 * `replay` of bart_export/verify/checks.py and `ask` of golden.py.
 *
 * An artifact that was copied to a phone can be checked there, without the checkpoint. In go an
 * artifact and the engine that has the file open; out comes a row for each question.
 */
package org.bartexport.quality

import java.io.IOException
import kotlin.coroutines.CoroutineContext
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.JsonObject
import org.bartexport.AGAIN
import org.bartexport.Artifact
import org.bartexport.ArtifactError
import org.bartexport.ConfigurationError
import org.bartexport.GenerationConfig
import org.bartexport.MANIFEST_JSON
import org.bartexport.decodeStrictly
import org.bartexport.firstLine
import org.bartexport.runtime.Hypothesis
import org.bartexport.runtime.SearchEvent
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.cancellableStep
import org.bartexport.runtime.drive
import org.bartexport.runtime.search
import org.bartexport.text.BartTokenizer

/**
 * The best sequence that a file gave.
 *
 * @property tokenIds from the start token on
 * @property score that of [Hypothesis]
 */
@Serializable
public data class Answer(
    @SerialName("token_ids") val tokenIds: List<Int>,
    val text: String,
    val score: Double,
)

/**
 * One question that was asked again.
 *
 * @property number from 1
 * @property of how many questions there are
 * @property passed whether the file gave its recorded answer, token for token
 * @property tokenized whether the tokenizer made the recorded ids of the question's text, and the
 *     recorded text of the answer's ids; it has no room for rounding
 */
public data class ReplayedCase(
    val number: Int,
    val of: Int,
    val passed: Boolean,
    val tokenized: Boolean,
    val expected: Answer,
    val received: Answer,
)

/**
 * Checks every hash of an artifact, then asks one of its files its golden questions again.
 *
 * The flow is cold and works where it is collected; cancelling ends it before the engine's next
 * step. Nothing else may use the engine meanwhile. Collecting throws [ArtifactError] for a file
 * that is missing or altered, and for a golden.json without answers of [file].
 *
 * @param file a name of [Artifact.staticFiles]
 * @param engine has that file open
 */
public fun replay(
    artifact: Artifact,
    file: String,
    engine: Seq2SeqEngine,
    tokenizer: BartTokenizer,
): Flow<ReplayedCase> = flow {
    val context = currentCoroutineContext()
    for (name in artifact.manifest.files.keys) {
        context.ensureActive()
        artifact.path(name, rehash = true)
    }
    val cases = readCases(artifact, file)
    cases.forEachIndexed { index, case ->
        val expected = case.files.getValue(file)
        val received = ask(engine, tokenizer, case, context)
        val sourceTokenIds =
            tokenizer.encode(case.text, artifact.manifest.encoderSequenceLength, truncate = true)
        emit(
            ReplayedCase(
                number = index + 1,
                of = cases.size,
                passed = received.tokenIds == expected.tokenIds,
                tokenized = sourceTokenIds.toList() == case.sourceTokenIds &&
                    tokenizer.detokenize(expected.tokenIds.toIntArray()) == expected.text,
                expected = expected,
                received = received,
            ),
        )
    }
}

/**
 * Says whether a file computes rightly, by all of its [cases].
 *
 * All answers must be the recorded ones where the file's recipe keeps float32 weights. Rounded
 * weights leave near-ties that another processor may decide otherwise: half is enough there. The
 * tokenizer must be right everywhere.
 */
public fun accepted(artifact: Artifact, file: String, cases: List<ReplayedCase>): Boolean {
    val exact = artifact.entry(file).tolerance["tokens"] == 1.0
    val needed = cases.size * if (exact) 1.0 else ROUNDED_SHARE
    return cases.isNotEmpty() && cases.all { it.tokenized } && cases.count { it.passed } >= needed
}

private const val ROUNDED_SHARE = 0.5
private const val GOLDEN = "golden.json"

@Serializable
private class Golden(val cases: List<GoldenCase>)

/** A question with the answer of every file that was asked. */
@Serializable
private class GoldenCase(
    val text: String,
    @SerialName("source_token_ids") val sourceTokenIds: List<Int>,
    @SerialName("generation") private val settings: JsonObject,
    val files: Map<String, Answer>,
) {
    val generation: GenerationConfig by lazy {
        decodeStrictly("generation", settings, GenerationConfig.serializer())
    }
}

private fun readCases(artifact: Artifact, file: String): List<GoldenCase> {
    val path = artifact.path(GOLDEN)
    val cases = try {
        // The others are questions for another target.
        MANIFEST_JSON.decodeFromString<Golden>(path.readText()).cases
            .filter { file in it.files }
            .onEach { it.generation }
    } catch (error: SerializationException) {
        throw ArtifactError("$path is damaged: ${error.firstLine()}. $AGAIN", error)
    } catch (error: ConfigurationError) {
        throw ArtifactError("$path is damaged: ${error.message} $AGAIN", error)
    } catch (error: IOException) {
        throw ArtifactError("$path cannot be read: ${error.message}. $AGAIN", error)
    }
    return cases.ifEmpty { throw ArtifactError("$path has no answers for $file. $AGAIN") }
}

private fun ask(
    engine: Seq2SeqEngine,
    tokenizer: BartTokenizer,
    case: GoldenCase,
    context: CoroutineContext,
): Answer {
    val generation = case.generation
    val source = case.sourceTokenIds.toIntArray()
    val state = engine.start(source, generation.numBeams, generation.maxLength)
    val finished = drive(search(generation), engine.cancellableStep(context), state).last()
    val best = (finished as SearchEvent.Finished).hypotheses.first()
    return Answer(best.tokenIds, tokenizer.detokenize(best.tokenIds.toIntArray()), best.score)
}
