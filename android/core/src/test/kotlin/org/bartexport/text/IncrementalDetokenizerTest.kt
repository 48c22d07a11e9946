package org.bartexport.text

import java.io.File
import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import org.bartexport.InputError
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

private const val HELLO = 31414

class IncrementalDetokenizerTest {
    @Serializable
    private class Row(val ids: List<Int>, val pieces: List<String>, val finish: String)

    private val detokenizer = IncrementalDetokenizer(bart)
    private val rocket = "🚀".toByteArray().map { byteIds[it.toInt() and 0xff] }

    private fun pieces(ids: List<Int>, detokenizer: IncrementalDetokenizer = this.detokenizer) =
        ids.map(detokenizer::push) + detokenizer.finish()

    @Test
    fun `pieces are those of Python`() {
        val rows = File(System.getProperty("bart_export.build"), "incremental.jsonl").readLines()
        assertTrue(rows.size > 100)
        for (row in rows.map { Json.decodeFromString<Row>(it) }) {
            assertEquals(row.pieces + row.finish, pieces(row.ids), "${row.ids}")
        }
    }

    @Test
    fun `a character is held back until its last byte`() {
        val expected = listOf("Hello", "", "", "", "🚀", "Hello", "")
        assertEquals(expected, pieces(listOf(HELLO) + rocket + HELLO))
    }

    @Test
    fun `an unfinished character is replaced at the end`() {
        assertEquals(listOf("", "", "", "\ufffd"), pieces(rocket.take(3)))
    }

    @Test
    fun `an unfinished character is replaced when another begins`() {
        assertEquals(listOf("", "", "\ufffdHello", ""), pieces(rocket.take(2) + HELLO))
    }

    @Test
    fun `finish leaves nothing for the next sequence`() {
        assertEquals(listOf("", "\ufffd"), pieces(rocket.take(1)))
        assertEquals(listOf("Hello", ""), pieces(listOf(HELLO)))
    }

    @Test
    fun `special tokens are skipped or shown`() {
        assertEquals(listOf("", "Hello", "", ""), pieces(listOf(0, HELLO, 2)))
        val shown = pieces(listOf(0, HELLO, 2), IncrementalDetokenizer(bart, false))
        assertEquals(listOf("<s>", "Hello", "</s>", ""), shown)
    }

    @Test
    fun `an id past the vocabulary is refused and the sequence goes on`() {
        rocket.take(2).forEach(detokenizer::push)
        assertFailsWith<InputError> { detokenizer.push(50265) }
        assertEquals(listOf("", "🚀", ""), pieces(rocket.drop(2)))
    }

    @Test
    fun `texts come piece by piece`() {
        val composed = listOf("👩🏽‍🚀 e\u0301t\u0301e\u0301 🇩🇪", "नमस्ते 한글 \u202bعربي", "漢字かな")
        for (text in composed + goldenTexts().map { it.text }) {
            assertEquals(text, pieces(bart.tokenize(text).toList()).joinToString(""))
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = [true, false])
    fun `pieces joined are the whole for any ids`(skipSpecialTokens: Boolean) {
        // Half of the ids are single bytes and special tokens: most sequences are not UTF-8.
        val random = Random(0)
        val single = byteIds + bart.specialTokenIds
        val detokenizer = IncrementalDetokenizer(bart, skipSpecialTokens)
        var replaced = 0
        repeat(3000) {
            val ids = List(random.nextInt(1, 24)) {
                if (random.nextBoolean()) single.random(random) else random.nextInt(50265)
            }
            val whole = bart.detokenize(ids.toIntArray(), skipSpecialTokens)
            assertEquals(whole, pieces(ids, detokenizer).joinToString(""))
            if ('\ufffd' in whole) replaced++
        }
        assertTrue(replaced > 1000)
    }
}
