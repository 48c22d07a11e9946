/*
 * Repeats the questions of golden.json and compares the answers, which verifies an artifact on a
 * device without its checkpoint; mirrors `replay` of bart_export/verify/checks.py.
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
 * The best sequence for a question.
 *
 * @property tokenIds token ids, including the start token
 * @property score see [Hypothesis]
 */
@Serializable
public data class Answer(
    @SerialName("token_ids") val tokenIds: List<Int>,
    val text: String,
    val score: Double,
)

/**
 * The result of one repeated question.
 *
 * @property number the question's number, from 1
 * @property of the number of questions
 * @property passed whether the answer has the recorded token ids
 * @property tokenized whether the tokenizer gave the recorded ids for the question's text and the
 *     recorded text for the answer's ids; unlike the answer, these do not depend on rounding
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
 * Verifies the hashes of an artifact's files, then repeats the golden questions of one file.
 *
 * The flow is cold and runs in the collector's context; cancelling it takes effect before the
 * engine's next step. Do not use the engine elsewhere in the meantime. Collecting throws an
 * [ArtifactError] if a file is missing or modified, or golden.json has no answers for [file].
 *
 * @param file one of [Artifact.staticFiles]
 * @param engine an engine with that file open
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
 * Returns whether the results of all [cases] are good enough.
 *
 * With float32 weights all answers must match. With quantized weights half is enough, because
 * rounding differs between processors and may decide a near-tie. The tokenizer must always match.
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

/** A question and each file's answer. */
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
        // Some questions are for other targets only.
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
    val searched = drive(search(generation, source), engine.cancellableStep(context), state)
    val finished = searched.last()
    val best = (finished as SearchEvent.Finished).hypotheses.first()
    return Answer(best.tokenIds, tokenizer.detokenize(best.tokenIds.toIntArray()), best.score)
}
