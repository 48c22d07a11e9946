package org.bartexport.text

import kotlin.test.Test
import kotlin.test.assertEquals
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource

class ScannerTest {
    private fun pieces(text: String): List<String> {
        val ends = generateSequence(0) { start ->
            if (start < text.length) pieceEnd(text, start) else null
        }
        return ends.zipWithNext(text::substring).toList()
    }

    @ParameterizedTest
    @MethodSource("cuts")
    fun `a text is cut where GPT-2 cuts it`(expected: List<String>) {
        assertEquals(expected, pieces(expected.joinToString("")))
    }

    @Test
    fun `there are as many letters, numbers and spaces as in Unicode 16`() {
        // Two characters of the same class are one piece.
        val codes = (0..0x10ffff).filter { it !in 0xd800..0xdfff }
        fun staysWith(neighbour: String, code: Int) =
            pieceEnd(neighbour + String(Character.toChars(code)), 0) > 1
        assertEquals(141_028, codes.count { staysWith("a", it) })
        assertEquals(1_911, codes.count { staysWith("1", it) })
        val others = codes.filter { !staysWith("a", it) && !staysWith("1", it) }
        assertEquals(25, others.count { !staysWith("!", it) })
    }

    companion object {
        @JvmStatic
        fun cuts() = listOf(
            listOf(),
            listOf(" "),
            listOf("Hello", " world", "!"),
            listOf("it", "'s", " I", "'ve", " we", "'ll", " you", "'re", " he", "'d", " I", "'m"),
            // Contractions are lower-case with a straight apostrophe, and match first.
            listOf("IT", "'", "S", " it", "’", "s", "'s", "o", " '", "s", "'t", "'"),
            listOf("!'", "s"),
            listOf("in", " 2026", "-", "11", " ½Ⅷ", "x", "²"),
            // The last of several spaces belongs to the word, if it is U+0020.
            listOf("a", "  ", " b", " \n", "\n", "c", "\u00a0", "d", " ", "\u3000", "e"),
            listOf("a", "\t", " b", "\n\n", "\n", "1", " \t "),
            listOf(" !?", "\n", "...", " —"),
            // Not White_Space, though some are whitespace to Java or to its Regex.
            listOf("a", "\u200b\u001c\u180e\ufeff", "b"),
            listOf(" \u0000", "\u0085", "a", "\u2028", "b"),
            // Marks are neither letters nor numbers; surrogate pairs are not split.
            listOf("e", "\u0301", "a", " 👩🏽\u200d🚀", "𝒜𝒷", "𝟘", "🇩🇪"),
            // Letters and a number of Unicode 12, 15.1 and 16, and an unassigned code point.
            listOf(" \ua7ba\ud87a\udff0\u1c89a", "\ud839\uddf1" + "1", " \u0378"),
        )
    }
}
