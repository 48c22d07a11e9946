package org.bartexport.text

import java.io.File
import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import org.bartexport.InputError
import org.bartexport.TokenizerError
import org.junit.jupiter.api.io.TempDir

/** The options of a small tokenizer, and Python's results with it. */
@Serializable
private class Answers(
    @SerialName("added_tokens") val addedTokens: List<AddedToken>,
    @SerialName("add_prefix_space") val addPrefixSpace: Boolean,
    val texts: List<Text>,
) {
    @Serializable
    class Text(
        val text: String,
        val ids: List<Int>,
        @SerialName("with_special") val withSpecial: List<Int>,
        val shown: String,
    )
}

// In the order of their ids in tools/android_text.py.
private val CONTENTS = listOf(
    "<hl>", "<h", "hl>", "a", "ab", " a", "\n", "<hl><hl>", "é", "'s", "<s>x", "aa", "x y",
    "\u3000", "🚀", "a<",
)

class AddedTokensTest {
    @TempDir
    lateinit var folder: File

    private fun small(added: List<AddedToken>, addPrefixSpace: Boolean = false): BartTokenizer {
        val tokens = SPECIAL_TOKENS + BYTE_SYMBOLS + "Ġa" + CONTENTS
        val (vocabulary, merges) = smallFiles(folder, smallVocabulary(tokens.distinct()))
        return BartTokenizer.fromFiles(vocabulary, merges, added, addPrefixSpace)
    }

    @Test
    fun `texts with added tokens have the ids that Python gives them, whole and cut`() {
        val rows = Json.decodeFromString<List<Answers>>(resource("added_tokens.json"))
        assertEquals(20, rows.size)
        for (row in rows) {
            val tokenizer = small(row.addedTokens, row.addPrefixSpace)
            for (case in row.texts) {
                assertEquals(case.ids, tokenizer.tokenize(case.text).toList(), case.text)
                val special = tokenizer.tokenize(case.text, specialTokens = true).toList()
                assertEquals(case.withSpecial, special, case.text)
                assertEquals(case.shown, tokenizer.detokenize(case.ids.toIntArray()))
                for (length in listOf(2, 3, 6)) {
                    val cut = tokenizer.encode(case.text, length, truncate = true).toList()
                    assertEquals(listOf(0) + case.ids.take(length - 2) + 2, cut, case.text)
                }
            }
        }
    }

    @Test
    fun `a mask is a token when it is asked for`() {
        val text = "Hello \n<mask> world"
        assertTrue(bart.maskTokenId !in bart.tokenize(text))
        val hello = bart.tokenize("Hello").single()
        val world = bart.tokenize(" world").single()
        val ids = bart.encode(text, 5, specialTokens = true).toList()
        assertEquals(listOf(0, hello, bart.maskTokenId, world, 2), ids)
    }

    @Test
    fun `long words are cut where the whole word is`() {
        val random = Random(4)
        val words = listOf("a", "ÃÂ", "漢字", "abc", "-", "🚀", " ").map { it.repeat(4000) } +
            List(20) { String(CharArray(20_000) { "abcdet"[random.nextInt(6)] }) }
        for (word in words) {
            val whole = bart.tokenize(word).toList()
            for (length in listOf(3, 20, 101)) {
                val cut = bart.encode(word, length, truncate = true).toList()
                assertEquals(listOf(0) + whole.take(length - 2) + 2, cut, word.take(9))
            }
        }
    }

    @Test
    fun `15 megabytes of one letter are cut, and refused by their bytes`() {
        val text = "a".repeat(15_000_000)
        val whole = bart.tokenize(text.take(200_000)).toList()
        val cut = bart.encode(text, 1024, truncate = true).toList()
        assertEquals(listOf(0) + whole.take(1022) + 2, cut)
        val refused = assertFailsWith<InputError> { bart.encode(text, 1024) }
        assertTrue("received 15000000 bytes, which need more." in refused.message!!)
    }

    @Test
    fun `whitespace that a token takes does not make a text too long`() {
        val tokenizer = small(listOf(AddedToken("<hl>", lstrip = true)))
        val text = " ".repeat(100_000) + "<hl>"
        assertEquals(listOf(0, 262, 2), tokenizer.encode(text, 3).toList())
    }

    @Test
    fun `an added token without an id is refused`() {
        val error = assertFailsWith<TokenizerError> { small(listOf(AddedToken("<nope>"))) }
        assertTrue("<nope>" in error.message!!)
    }
}
