package org.bartexport.text

import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json

private val GOLDEN = File(System.getProperty("bart_export.golden"))
private val VOCABULARY = File(GOLDEN, "../vocabulary/vocabulary.json")
private val MERGES = File(GOLDEN, "../vocabulary/merges.txt")

@Serializable
private class Row(val text: String, val ids: List<Int>)

class BartTokenizerTest {
    private val tokenizer = BartTokenizer.fromFiles(VOCABULARY, MERGES)

    @Test
    fun `golden texts become their ids and come back`() {
        val rows = Json.decodeFromString<List<Row>>(File(GOLDEN, "tokenization.json").readText())
        assertEquals(600, rows.size)
        for (row in rows) {
            assertEquals(row.ids, tokenizer.tokenize(row.text).toList(), row.text)
            assertEquals(row.text, tokenizer.detokenize(row.ids.toIntArray()))
        }
    }
}
