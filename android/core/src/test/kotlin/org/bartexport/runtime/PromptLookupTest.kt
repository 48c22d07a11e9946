package org.bartexport.runtime

import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import org.bartexport.GenerationConfig
import org.junit.jupiter.api.Test

class PromptLookupTest {
    /** A text and, after each of its [tokens], Python's draft and average. */
    @Serializable
    private class PythonLookup(
        val source: List<Int>,
        @SerialName("max_tokens") val maxTokens: Int,
        val tokens: List<Int>,
        val drafts: List<List<Int>>,
        val averages: List<Double>,
    )

    @Test
    fun `every draft is Python's`() {
        val rows = madeByPython("drafts.jsonl").readLines()
        assertTrue(rows.size >= 50)
        for (row in rows) {
            val expected = Json.decodeFromString<PythonLookup>(row)
            val lookup = PromptLookup(expected.source.toIntArray(), expected.maxTokens)
            for ((place, token) in expected.tokens.withIndex()) {
                lookup.add(token)
                assertEquals(expected.drafts[place], lookup.draft().toList(), row)
                assertEquals(expected.averages[place], lookup.expected, 1e-12, row)
            }
        }
    }

    @Test
    fun `greedy search drafts if it is asked to and there is a source`() {
        val greedy = GenerationConfig(promptLookupNumTokens = 3)
        val source = intArrayOf(0, 5, 2)
        assertEquals(
            listOf(true, false, false, false),
            listOf(
                promptLookup(greedy, source),
                promptLookup(GenerationConfig(), source),
                promptLookup(greedy.copy(doSample = true), source),
                promptLookup(greedy, IntArray(0)),
            ).map { it != null },
        )
    }
}
