/*
 * Replays an artifact with golden answers of EchoEngine. BundleReplayTest replays real ones.
 */
package org.bartexport.quality

import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.test.runTest
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.encodeToJsonElement
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonObject
import org.bartexport.Artifact
import org.bartexport.ArtifactError
import org.bartexport.GenerationConfig
import org.bartexport.MODEL
import org.bartexport.SMALL
import org.bartexport.VOCABULARY
import org.bartexport.assertOneLine
import org.bartexport.at
import org.bartexport.runtime.EchoEngine
import org.bartexport.runtime.GenerationEvent
import org.bartexport.runtime.Generator
import org.bartexport.with
import org.bartexport.writeArtifact
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir

class ReplayTest {
    @TempDir
    lateinit var temporary: File

    private val settings = listOf(
        GenerationConfig(maxLength = 24),
        GenerationConfig(maxLength = 24, numBeams = 4),
        GenerationConfig(maxLength = 6, forcedBosTokenId = 0),
    )
    private val texts = listOf("Über 🐈", "a text that is cut, being long")

    /** Returns the answers of [EchoEngine] as cases of golden.json. */
    private fun cases(): List<JsonObject> {
        val opened = Artifact.open(writeArtifact(File(temporary, "first").also { it.mkdir() }))
        val tokenizer = opened.tokenizer()
        val limit = opened.manifest.encoderSequenceLength
        return texts.flatMap { text ->
            settings.map { generation ->
                val result = answer(opened, text, generation)
                buildJsonObject {
                    put("text", text)
                    put("source_token_ids", ids(tokenizer.encode(text, limit, true).toList()))
                    put("setting", "some name")
                    put("generation", PLAIN.encodeToJsonElement(generation))
                    putJsonObject("reference") { put("text", "of another model") }
                    putJsonObject("files") {
                        putJsonObject(MODEL) {
                            put("token_ids", ids(result.sequences.first().tokenIds))
                            put("text", result.text)
                            put("score", result.sequences.first().score)
                        }
                    }
                }
            }
        }
    }

    private fun answer(opened: Artifact, text: String, generation: GenerationConfig) = runBlocking {
        val limit = opened.manifest.encoderSequenceLength
        val generator =
            Generator(opened.tokenizer(), EchoEngine(SMALL), generation, limit, Dispatchers.Default)
        (generator.generate(text, truncate = true).last() as GenerationEvent.Finished).result
    }

    private fun artifact(
        cases: List<JsonObject>,
        change: (JsonObject) -> JsonObject = { it },
    ): Artifact {
        val golden = buildJsonObject { put("cases", JsonArray(cases)) }
        return Artifact.open(writeArtifact(temporary, golden.toString(), change))
    }

    private fun Artifact.replayed(engine: EchoEngine = EchoEngine(SMALL)) =
        replay(this, MODEL, engine, tokenizer())

    private fun JsonObject.answering(vararg tokenIds: Int) =
        at("files", MODEL) { it.with("token_ids", ids(tokenIds.toList())) }

    @Test
    fun `a file that answers as it did passes every case`() = runTest {
        val opened = artifact(cases())
        val replayed = opened.replayed().toList()
        assertEquals((1..6).toList(), replayed.map { it.number })
        for (case in replayed) {
            assertEquals(6, case.of)
            assertTrue(case.passed && case.tokenized, "$case")
            assertEquals(case.expected, case.received)
        }
        assertEquals("Über 🐈", replayed.first().received.text)
        assertTrue(accepted(opened, MODEL, replayed))
    }

    @Test
    fun `an answer with another token does not pass, and says both`() = runTest {
        val (first, second) = cases()
        val opened = artifact(listOf(first.answering(2, 0, 9, 2), second))
        val (changed, same) = opened.replayed().toList()
        assertFalse(changed.passed)
        assertEquals(listOf(2, 0, 9, 2), changed.expected.tokenIds)
        assertEquals("Über 🐈", changed.received.text)
        assertTrue(same.passed)
    }

    @Test
    fun `half of the answers are enough where weights are rounded, all are needed where not`() =
        runTest {
            val all = cases()
            fun withWrong(count: Int) = all.mapIndexed { index, case ->
                if (index >= count) return@mapIndexed case
                val text = JsonPrimitive("$")
                case.answering(2, 0, 41, 2).at("files", MODEL) { it.with("text", text) }
            }
            val exact = { manifest: JsonObject ->
                manifest.at("files", MODEL, "tolerance") { it.with("tokens", JsonPrimitive(1.0)) }
            }
            val rows = listOf(
                Triple(0, false, true),
                Triple(3, false, true),
                Triple(4, false, false),
                Triple(0, true, true),
                Triple(1, true, false),
            )
            for ((wrong, float, expected) in rows) {
                val opened = artifact(withWrong(wrong)) { if (float) exact(it) else it }
                val replayed = opened.replayed().toList()
                assertTrue(replayed.all { it.tokenized })
                assertEquals(6 - wrong, replayed.count { it.passed })
                assertEquals(expected, accepted(opened, MODEL, replayed), "$wrong $float")
            }
            assertFalse(accepted(artifact(all), MODEL, emptyList()))
        }

    @Test
    fun `a tokenizer that makes other ids or another text is not accepted`() = runTest {
        val (first, second) = cases()
        val changes = listOf(
            first.with("text", JsonPrimitive("Uber 🐈")),
            first.at("files", MODEL) { it.with("text", JsonPrimitive("Uber 🐈")) },
        )
        for (changed in changes) {
            val opened = artifact(listOf(changed, second))
            val replayed = opened.replayed().toList()
            assertEquals(listOf(false, true), replayed.map { it.tokenized })
            assertTrue(replayed.all { it.passed })
            assertFalse(accepted(opened, MODEL, replayed))
        }
    }

    @Test
    fun `questions that only other files answered are not asked`() = runTest {
        val (first, second) = cases()
        val other = first.with("files", JsonObject(emptyMap()))
        assertEquals(1, artifact(listOf(other, second)).replayed().toList().single().of)
    }

    private class Refusal(val says: String, val change: (JsonObject) -> List<JsonObject>)

    private val refused = listOf(
        Refusal("has no answers for $MODEL") { emptyList() },
        Refusal("has no answers for $MODEL") { listOf(it.with("files", JsonObject(emptyMap()))) },
        Refusal("golden.json is damaged: ") { listOf(JsonObject(it - "text")) },
        Refusal("golden.json is damaged: ") { case ->
            listOf(case.at("files", MODEL) { JsonObject(it - "score") })
        },
        Refusal("golden.json is damaged: Unknown parameter beams=1 in generation") { case ->
            listOf(case.at("generation") { it.with("beams", JsonPrimitive(1)) })
        },
        Refusal("golden.json is damaged: num_beams must be") { case ->
            listOf(case.at("generation") { it.with("num_beams", JsonPrimitive(0)) })
        },
    )

    @TestFactory
    fun `is refused`(): List<DynamicTest> = refused.map { row ->
        dynamicTest(row.says) {
            val opened = artifact(row.change(cases().first()))
            val error =
                assertFailsWith<ArtifactError> { runBlocking { opened.replayed().toList() } }
            assertOneLine(error.message, row.says)
        }
    }

    @Test
    fun `an artifact with an altered file is refused before anything is asked`() = runTest {
        val opened = artifact(cases())
        val engine = EchoEngine(SMALL)
        val replayed = opened.replayed(engine)
        val vocabulary = File(opened.directory, VOCABULARY)
        vocabulary.writeText(vocabulary.readText().reversed())
        val error = assertFailsWith<ArtifactError> { replayed.toList() }
        assertOneLine(error.message, VOCABULARY, "modified or damaged")
        assertEquals(0, engine.steps.get())
    }

    @Test
    fun `a replay that is cancelled makes no further step`() = runTest {
        val opened = artifact(cases())
        val engine = EchoEngine(SMALL) { number -> if (number == 3) replaying?.cancel() }
        replaying = launch { opened.replayed(engine).toList() }
        replaying?.join()
        assertEquals(3, engine.steps.get())
        assertEquals(1, opened.replayed().first().number)
    }

    private var replaying: Job? = null

    private fun ids(tokenIds: List<Int>) = JsonArray(tokenIds.map { JsonPrimitive(it) })

    private companion object {
        val PLAIN = Json { encodeDefaults = true }
    }
}
