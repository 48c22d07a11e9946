/*
 * An incremental UTF-8 decoder, equivalent to Python's `codecs` with errors="replace".
 *
 * The decoders of the JVM, Android and Python differ in the number of replacement characters for
 * invalid bytes. As in Python, each maximal subpart of a character becomes one U+FFFD (Unicode 16,
 * section 3.9, "U+FFFD Substitution of Maximal Subparts").
 */
package org.bartexport.text

private const val REPLACEMENT = '\ufffd'
private val CONTINUATION = 0x80..0xbf

// The code of a surrogate's first two bytes. Python replaces both, but only once it has the third.
private val CUT_SURROGATE = (0xd800 shr 6)..(0xdfff shr 6)

// The valid second bytes, where others would be overlong or above U+10FFFF.
private val SECOND_BYTE = mapOf(
    0xe0 to 0xa0..0xbf,
    0xf0 to 0x90..0xbf,
    0xf4 to 0x80..0x8f,
)

/** Decodes UTF-8 incrementally. Not thread-safe. */
internal class Utf8Decoder {
    private var codePoint = 0
    private var missing = 0
    private var accepted = CONTINUATION

    /** Appends to [text] the characters that [bytes] complete or invalidate. */
    fun decode(bytes: ByteArray, text: StringBuilder) {
        for (byte in bytes) {
            val value = byte.toInt() and 0xff
            if (missing > 0 && value !in accepted) finish(text)
            if (missing == 0) begin(value, text) else proceed(value, text)
        }
    }

    /** Appends U+FFFD to [text] for an incomplete character. */
    fun finish(text: StringBuilder) {
        if (missing > 0) text.append(REPLACEMENT)
        if (missing > 0 && accepted.isEmpty()) text.append(REPLACEMENT)
        missing = 0
    }

    private fun begin(byte: Int, text: StringBuilder) {
        missing = when (byte) {
            in 0xc2..0xdf -> 1
            in 0xe0..0xef -> 2
            in 0xf0..0xf4 -> 3
            else -> 0
        }
        if (missing == 0) text.append(if (byte < 0x80) byte.toChar() else REPLACEMENT)
        codePoint = byte and (0x3f shr missing)
        accepted = SECOND_BYTE[byte] ?: CONTINUATION
    }

    private fun proceed(byte: Int, text: StringBuilder) {
        codePoint = codePoint shl 6 or (byte and 0x3f)
        missing--
        accepted = if (missing == 1 && codePoint in CUT_SURROGATE) IntRange.EMPTY else CONTINUATION
        if (missing == 0) text.appendCodePoint(codePoint)
    }
}
