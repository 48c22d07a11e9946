package org.bartexport.desktop

import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.double
import kotlinx.serialization.json.jsonPrimitive
import org.bartexport.runtime.GenerationEvent
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** From text to text, Kotlin's results equal Python's with the same file. */
class GenerationsTest {
    @TestFactory
    fun `texts, ids and scores are Python's for 200 texts`(): List<DynamicTest> =
        SETTINGS.map { (name, generation) ->
            dynamicTest(name) {
                assertEquals(200, ROWS.size)
                generatorOf(MINI.artifact.directory).use { generator ->
                    for (row in ROWS) {
                        val events = runBlocking {
                            generator.generate(row.text, generation, truncate = true).toList()
                        }
                        check(row, name, events)
                    }
                }
            }
        }

    private fun check(row: Row, name: String, events: List<GenerationEvent>) {
        val result = assertIs<GenerationEvent.Finished>(events.last()).result
        val best = result.sequences.single()
        val expected = row.answer(name)
        assertEquals(row.sourceTokenIds, result.sourceTokenIds, row.text)
        assertEquals(row.truncated, result.truncated, row.text)
        assertEquals(integers(expected.getValue("token_ids")), best.tokenIds, row.text)
        assertEquals(expected.getValue("text").jsonPrimitive.content, best.text)
        assertEquals(expected.getValue("score").jsonPrimitive.double, best.score, 1e-3)
        val pieces = events.filterIsInstance<GenerationEvent.Text>().map { it.piece }
        assertEquals(best.text, pieces.joinToString(""))
    }
}
