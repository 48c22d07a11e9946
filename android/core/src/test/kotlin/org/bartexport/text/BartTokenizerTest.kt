package org.bartexport.text

import java.io.File
import java.util.concurrent.Callable
import java.util.concurrent.Executors
import kotlin.random.Random
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import kotlinx.serialization.json.Json
import org.bartexport.InputError
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.CsvSource
import org.junit.jupiter.params.provider.ValueSource

private const val HELLO = 31414
private const val WORLD = 232

class BartTokenizerTest {
    @Test
    fun `golden texts become their ids and come back`() {
        val rows = goldenTexts()
        assertEquals(600, rows.size)
        for (row in rows) {
            assertEquals(row.ids, bart.tokenize(row.text).toList(), row.text)
            assertEquals(row.text, bart.detokenize(row.ids.toIntArray()))
        }
    }

    @Test
    fun `odd texts have the ids that Python gives them`() {
        val rows = Json.decodeFromString<List<TokenizedText>>(resource("odd_texts.json"))
        assertEquals(300, rows.size)
        for (row in rows) {
            assertEquals(row.ids, bart.tokenize(row.text).toList(), row.text)
            assertEquals(row.text, bart.detokenize(row.ids.toIntArray()))
        }
    }

    @Test
    fun `every character survives the round trip`() {
        val text = buildString {
            for (code in 0..0x10ffff) if (code !in 0xd800..0xdfff) appendCodePoint(code)
        }
        assertEquals(text, bart.detokenize(bart.tokenize(text)))
    }

    @Test
    fun `random texts survive the round trip`() {
        val random = Random(0)
        // A uniform number of bits, so that code points of every UTF-8 size are equally common.
        val any = { random.nextInt(1 shl random.nextInt(1, 21)) }
        repeat(2000) {
            val text = buildString {
                repeat(random.nextInt(40)) {
                    any().takeIf { it !in 0xd800..0xdfff }?.let(::appendCodePoint)
                }
            }
            assertEquals(text, bart.detokenize(bart.tokenize(text)))
        }
    }

    @Test
    fun `what was tokenized before changes nothing`(@TempDir folder: File) {
        // More words than the cache holds, tokenized twice.
        val random = Random(1)
        val words = List(30_000) {
            String(CharArray(random.nextInt(1, 9)) { 'a' + random.nextInt(26) })
        }
        val text = words.joinToString(" ")
        val fresh = BartTokenizer.fromFiles(VOCABULARY, MERGES)
        val ids = fresh.tokenize(text)
        assertContentEquals(ids, fresh.tokenize(text))
        val apart = words.mapIndexed { index, word -> if (index == 0) word else " $word" }
            .flatMap { bart.tokenize(it).toList() }
        assertContentEquals(ids, apart.toIntArray())
    }

    @Test
    fun `several threads get the same ids`() {
        val texts = goldenTexts()
        val tokenizer = BartTokenizer.fromFiles(VOCABULARY, MERGES)
        val threads = Executors.newFixedThreadPool(4)
        try {
            val tasks = List(4) { first ->
                Callable {
                    val turned = texts.drop(100 * first) + texts.take(100 * first)
                    turned.all { it.ids == tokenizer.tokenize(it.text).toList() }
                }
            }
            assertTrue(threads.invokeAll(tasks).all { it.get() })
        } finally {
            threads.shutdownNow()
        }
    }

    @Test
    fun `a text without any space is one piece of any length`() {
        // Quadratic merging would take minutes.
        val text = "かなカナ漢字".repeat(50_000)
        assertEquals(text, bart.detokenize(bart.tokenize(text)))
    }

    @Test
    fun `a pair that is listed twice has its last rank`(@TempDir folder: File) {
        val tokens = SPECIAL_TOKENS + BYTE_SYMBOLS + listOf("ab", "bc", "abc")
        val (vocabulary, merges) = smallFiles(
            folder,
            smallVocabulary(tokens),
            merges = "a b\nb c\na b\n",
        )
        val tokenizer = BartTokenizer.fromFiles(vocabulary, merges)
        assertEquals(listOf("a", "bc"), tokenizer.tokenize("abc").map { tokens[it] })
    }

    @Test
    fun `equal pairs merge from the left`(@TempDir folder: File) {
        val tokens = SPECIAL_TOKENS + BYTE_SYMBOLS + listOf("aa", "aaaa")
        val (vocabulary, merges) = smallFiles(folder, smallVocabulary(tokens), "a a\naa aa\n")
        val tokenizer = BartTokenizer.fromFiles(vocabulary, merges)
        assertEquals(listOf("aaaa", "aa", "a"), tokenizer.tokenize("a".repeat(7)).map(tokens::get))
    }

    @Test
    fun `a merge that a merge makes possible comes first if its rank is lower`(
        @TempDir folder: File,
    ) {
        val tokens = SPECIAL_TOKENS + BYTE_SYMBOLS + listOf("ab", "abab", "aba")
        val (vocabulary, merges) = smallFiles(
            folder,
            smallVocabulary(tokens),
            merges = "ab ab\nab a\na b\n",
        )
        val tokenizer = BartTokenizer.fromFiles(vocabulary, merges)
        assertEquals(listOf("aba", "b", "ab"), tokenizer.tokenize("ababab").map(tokens::get))
    }

    @Test
    fun `special tokens typed in a text are text`() {
        for (token in SPECIAL_TOKENS) {
            val ids = bart.tokenize("one $token two")
            assertTrue(ids.none { it in bart.specialTokenIds })
            assertEquals("one $token two", bart.detokenize(ids))
        }
    }

    @Test
    fun `special ids are those of BART`() {
        val ids = listOf(
            bart.startTokenId,
            bart.padTokenId,
            bart.endTokenId,
            bart.unknownTokenId,
            bart.maskTokenId,
        )
        assertEquals(listOf(0, 1, 2, 3, 50264), ids)
        assertEquals(ids.toSet(), bart.specialTokenIds)
        assertEquals(50265, bart.vocabularySize)
    }

    @Test
    fun `special ids are found by name`(@TempDir folder: File) {
        val tokens = BYTE_SYMBOLS + "Ġa" + SPECIAL_TOKENS.reversed()
        val (vocabulary, merges) = smallFiles(folder, smallVocabulary(tokens))
        val small = BartTokenizer.fromFiles(vocabulary, merges)
        assertEquals(
            listOf(261, 260, 259),
            listOf(small.startTokenId, small.padTokenId, small.endTokenId),
        )
        assertEquals(listOf(258, 257), listOf(small.unknownTokenId, small.maskTokenId))
        assertEquals(listOf(261, 256, 259), small.encode(" a", 3).toList())
    }

    @Test
    fun `encode puts both ends`() {
        assertEquals(listOf(0, HELLO, WORLD, 2), bart.encode("Hello world", 4).toList())
        assertEquals(listOf(0, 2), bart.encode("", 2).toList())
    }

    @Test
    fun `a longer text is refused with both numbers`() {
        val error = assertFailsWith<InputError> { bart.encode("Hello world", 3) }
        assertContains(error.message.orEmpty(), Regex("at most 3 tokens.*received 4\\..*truncate"))
    }

    @Test
    fun `truncation keeps the beginning and both ends`() {
        val text = "Hello world ".repeat(20)
        val whole = bart.tokenize(text).toList()
        for (length in listOf(2, 3, 7, whole.size + 1, whole.size + 2, whole.size + 3)) {
            val expected = listOf(0) + whole.take(length - 2) + 2
            assertEquals(expected, bart.encode(text, length, truncate = true).toList())
        }
    }

    @Test
    fun `a length without room for both ends is refused`() {
        val error = assertFailsWith<InputError> { bart.encode("", 1, truncate = true) }
        assertContains(error.message.orEmpty(), Regex("at least 2.*received 1"))
    }

    @Test
    fun `detokenize skips or shows special tokens`() {
        val ids = intArrayOf(2, 0, HELLO, 3, WORLD, 50264, 2, 1, 1)
        assertEquals("Hello world", bart.detokenize(ids))
        val shown = bart.detokenize(ids, skipSpecialTokens = false)
        assertEquals("</s><s>Hello<unk> world<mask></s><pad><pad>", shown)
    }

    @Test
    fun `an entry that is not spelled in byte symbols is its own text`(@TempDir folder: File) {
        val tokens = SPECIAL_TOKENS + BYTE_SYMBOLS + listOf("Ġa", "a b", "漢")
        val (vocabulary, merges) = smallFiles(folder, smallVocabulary(tokens))
        val small = BartTokenizer.fromFiles(vocabulary, merges)
        assertEquals(" aa b漢", small.detokenize(intArrayOf(261, 262, 263)))
    }

    @Test
    fun `bytes of a token are the caller's to change`() {
        bart.tokenBytes(HELLO).fill(0)
        assertEquals("Hello", bart.tokenBytes(HELLO).decodeToString())
    }

    @ParameterizedTest
    @CsvSource("d83d, 3, 'abc', ''", "d83d, 0, '', 'abc'", "de80, 1, 'a', 'b'", "de80, 2, '🚀', ''")
    fun `a lone surrogate is named with its place`(
        code: String,
        position: Int,
        before: String,
        after: String,
    ) {
        val error = assertFailsWith<InputError> {
            bart.tokenize(before + code.toInt(16).toChar() + after)
        }
        val words = "lone surrogate U+${code.uppercase()} at position $position."
        assertContains(error.message.orEmpty(), words)
    }

    @ParameterizedTest
    @ValueSource(ints = [-1, 50265])
    fun `an id past the vocabulary is refused`(id: Int) {
        val error = assertFailsWith<InputError> { bart.detokenize(intArrayOf(0, id)) }
        assertContains(error.message.orEmpty(), "0 to 50264, received $id")
    }
}
