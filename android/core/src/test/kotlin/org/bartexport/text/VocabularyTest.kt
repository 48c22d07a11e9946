package org.bartexport.text

import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import org.bartexport.TokenizerError
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import org.junit.jupiter.params.provider.ValueSource

private val TOKENS = SPECIAL_TOKENS + BYTE_SYMBOLS + "Ġa"

class VocabularyTest {
    @TempDir
    lateinit var folder: File

    private fun open(files: Pair<File, File>) = BartTokenizer.fromFiles(files.first, files.second)

    class Damage(
        val message: String,
        val vocabulary: String = smallVocabulary(),
        val merges: String = "Ġ a\n",
    ) {
        override fun toString() = message
    }

    @ParameterizedTest
    @MethodSource("damages")
    fun `files that are no tokenizer are refused by name`(damage: Damage) {
        val error = assertFailsWith<TokenizerError> {
            open(smallFiles(folder, damage.vocabulary, damage.merges))
        }
        assertContains(error.message.orEmpty(), Regex(damage.message))
        assertFalse('\n' in error.message.orEmpty())
    }

    @ParameterizedTest
    @ValueSource(strings = ["vocabulary.json", "merges.txt"])
    fun `a file that is missing or not text is refused by name`(name: String) {
        val files = smallFiles(folder)
        val file = File(folder, name)
        for ((bytes, position) in listOf("aé".toByteArray().copyOf(2) to 1, byteArrayOf(-1) to 0)) {
            file.writeBytes(bytes)
            val error = assertFailsWith<TokenizerError> { open(files) }
            val words = "$name must be UTF-8, received an invalid byte at position $position."
            assertContains(error.message.orEmpty(), words)
        }
        file.delete()
        val error = assertFailsWith<TokenizerError> { open(files) }
        val words = "$file cannot be read: No such file or directory."
        assertContains(error.message.orEmpty(), words)
    }

    @Test
    fun `merges open with and without a version line`() {
        val (first, rest) = MERGES.readText().split("\n", limit = 2)
        assertEquals("#version", first.substringBefore(':'))
        val bare = File(folder, "merges.txt").also { it.writeText(rest) }
        assertEquals(readMerges(MERGES), readMerges(bare))
        // " t" is the result of the first merge.
        val tokenizer = BartTokenizer.fromFiles(VOCABULARY, bare)
        assertEquals(listOf(326), tokenizer.tokenize(" t").toList())
    }

    @ParameterizedTest
    @ValueSource(strings = ["\r\n", "\r", "\n"])
    fun `every line end is one`(end: String) {
        val files = smallFiles(folder, merges = "#version: 0.2${end}Ġ a$end$end")
        assertEquals(listOf("Ġ" to "a"), readMerges(files.second))
    }

    @Test
    fun `a vocabulary without merges spells bytes`() {
        val tokenizer = open(smallFiles(folder, merges = ""))
        assertEquals(listOf("Ġ", "a").map(TOKENS::indexOf), tokenizer.tokenize(" a").toList())
    }

    @Test
    fun `bytes are spelled as GPT-2 spells them`() {
        // The byte 0x20 is "Ġ" (U+0120) and 0x0A "Ċ" (U+010A) in every GPT-2 vocabulary.
        assertEquals("\u0120", BYTE_SYMBOLS[0x20])
        assertEquals("\u010a", BYTE_SYMBOLS[0x0a])
        val bytes = byteIds.flatMap { bart.tokenBytes(it).toList() }
        assertEquals(List(256) { it.toByte() }, bytes)
    }

    companion object {
        @JvmStatic
        fun damages() = listOf(
            Damage("vocabulary\\.json must be a JSON object.*invalid JSON", "{\"<s>\": 0"),
            Damage("vocabulary\\.json must be.*invalid JSON", "{\"a\":".repeat(100_000)),
            Damage("vocabulary\\.json must be.*invalid JSON", "\ufeff${smallVocabulary()}"),
            Damage("vocabulary\\.json must be a JSON object", "[]"),
            Damage("vocabulary\\.json must be a JSON object", "{}"),
            Damage("vocabulary\\.json must be a JSON object", "null"),
            Damage("vocabulary\\.json .*integer ids", changed("\"7\"")),
            Damage("vocabulary\\.json .*integer ids", changed("true")),
            Damage("vocabulary\\.json .*integer ids", changed("7.0")),
            Damage("vocabulary\\.json .*integer ids", changed("+7")),
            Damage("vocabulary\\.json .*integer ids", changed("007")),
            Damage("vocabulary\\.json .*integer ids", changed("{}")),
            Damage("vocabulary\\.json must give its 262 tokens", changed("9")),
            Damage("ids from 0 to 999 ", changed("999")),
            Damage("ids from -1 to 261 ", changed("-1")),
            Damage("ids from 0 to 99999999999 ", changed("99999999999")),
            Damage("vocabulary\\.json .*special.*'<mask>'", without("<mask>")),
            Damage("vocabulary\\.json .*special.*'</s>'", without("</s>")),
            Damage("256 byte symbols.*without 1 of.*'Ġ'", without("Ġ", "Ġa")),
            Damage("merges\\.txt must merge tokens.*'Ġb'", merges = "Ġ a\nĠ b\n"),
            Damage("merges\\.txt must merge tokens.*'漢'", merges = "Ġ a\n漢 a\n"),
            Damage("merges\\.txt .*received '' on line 2", merges = "Ġ a\n\nĠ a\n"),
            Damage("merges\\.txt .*'Ġ a b' on line 2", merges = "#version: 0.2\nĠ a b\n"),
            Damage("merges\\.txt .*received ' a' on line 1", merges = " a\n"),
            Damage("merges\\.txt .*received 'a ' on line 1", merges = "a \n"),
            Damage("merges\\.txt .*received '\\{}' on line 1", merges = "{}"),
            Damage("received '.{100}' on line 1", merges = "x".repeat(100_000)),
        )

        private fun changed(id: String) = smallVocabulary(change = mapOf("a" to id))

        private fun without(vararg tokens: String) = smallVocabulary(TOKENS - tokens.toSet())
    }
}
