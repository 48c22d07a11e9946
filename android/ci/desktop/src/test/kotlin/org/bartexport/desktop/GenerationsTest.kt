/*
 * From text to text, through the classes that the app uses: what Python's engine and tokenizer make
 * of 200 texts with the very same file.
 */
package org.bartexport.desktop

import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.decodeFromJsonElement
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.bartexport.Artifact
import org.bartexport.GenerationConfig
import org.bartexport.quality.replay
import org.bartexport.runtime.GenerationEvent
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

class GenerationsTest {
    @ParameterizedTest
    @ValueSource(strings = ["greedy", "beams"])
    fun `200 texts give Python's tokens and text`(setting: String) = runBlocking {
        val settings: GenerationConfig = Json.decodeFromJsonElement(
            Json.parseToJsonElement(File(BUILD, "generations.json").readText())
                .jsonObject.getValue(setting),
        )
        val rows = File(BUILD, "generations.jsonl").readLines()
            .map { Json.parseToJsonElement(it).jsonObject }
        assertEquals(200, rows.size)
        val wrong = rows.filterNot { row ->
            val text = row.getValue("text").jsonPrimitive.content
            val events = Mini.generator.generate(text, settings, truncate = true).toList()
            val result = (events.last() as GenerationEvent.Finished).result
            val pieces = events.filterIsInstance<GenerationEvent.Text>()
                .joinToString("") { it.piece }
            val expected = row.getValue(setting).jsonObject
            result.sourceTokenIds == ids(row, "source_token_ids") &&
                result.sequences.first().tokenIds == ids(expected, "token_ids") &&
                result.text == expected.getValue("text").jsonPrimitive.content &&
                pieces == result.text
        }
        assertEquals(emptyList(), wrong.take(1), "${wrong.size} of ${rows.size} differ")
    }

    @ParameterizedTest
    @ValueSource(strings = ["bart_mini_en", "bart_tiny_symmetric", "bart_tiny_distilled"])
    fun `a bundle's golden answers are given again`(name: String) = runBlocking {
        val artifact = bundle(name)
        artifact.engine().use { engine ->
            val cases = replay(artifact, artifact.file, engine, artifact.tokenizer()).toList()
            assertTrue(cases.isNotEmpty())
            assertEquals(emptyList(), cases.filterNot { it.passed && it.tokenized })
        }
    }

    @Test
    fun `an edited golden answer is not given`(@TempDir directory: File) = runBlocking {
        val copy = copyOf(TINY_MODELS.first(), directory)
        val golden = File(copy, "golden.json").readText()
        val (file) = Artifact.open(copy).staticFiles()
        val answer = Regex("\"${Regex.escape(file)}\": \\{\\s*\"token_ids\": \\[\\s*2,\\s*")
        val begins = checkNotNull(answer.find(golden)).range.last + 1
        val edited = golden.replaceRange(begins, golden.indexOf(',', begins), "5")
        assertTrue(edited != golden, "nothing was edited")
        replaceFile(copy, "golden.json", edited.toByteArray())
        val artifact = Artifact.open(copy)
        artifact.engine().use { engine ->
            val cases = replay(artifact, artifact.file, engine, artifact.tokenizer()).toList()
            assertEquals(1, cases.count { !it.passed })
        }
    }

    private fun ids(row: JsonObject, name: String) =
        row.getValue(name).jsonArray.map { it.jsonPrimitive.int }
}
