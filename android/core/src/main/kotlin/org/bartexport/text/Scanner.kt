/*
 * Splits a text into the pieces within which BPE merges, by GPT-2's pattern
 *
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * for which Python uses the `tokenizers` library. It is not a Regex because \s differs between
 * Android and the JVM, and uses CharacterClasses.kt instead of java.lang.Character because the
 * letters that a device knows depend on its Android version.
 */
package org.bartexport.text

private const val OTHER: Byte = 0
private const val LETTER: Byte = 1
private const val NUMBER: Byte = 2
private const val SPACE: Byte = 3

private val CONTRACTIONS = arrayOf("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

/** Class of each code point; those beyond the end are [OTHER]. */
private val CLASSES: ByteArray = characterClasses()

private fun characterClasses(): ByteArray {
    val named = mapOf(
        LETTER to ranges(LETTERS),
        NUMBER to ranges(NUMBERS),
        SPACE to ranges(SPACES),
    )
    val classes = ByteArray(named.values.maxOf { it.last().last } + 1)
    for ((kind, ranges) in named) {
        for (range in ranges) classes.fill(kind, range.first, range.last + 1)
    }
    return classes
}

private fun ranges(text: String): List<IntRange> = text.trim().split(Regex("\\s+")).map { range ->
    range.substringBefore('-').toInt(16)..range.substringAfter('-').toInt(16)
}

/** Whether each code point is a word character; lazy, because few tokenizers need it. */
private val WORD_CHARACTERS: BooleanArray by lazy {
    val words = ranges(WORDS)
    BooleanArray(words.last().last + 1).also { array ->
        for (range in words) array.fill(true, range.first, range.last + 1)
    }
}

/** Returns whether a code point is a word character for an added token's `single_word`. */
internal fun isWord(codePoint: Int): Boolean =
    codePoint < WORD_CHARACTERS.size && WORD_CHARACTERS[codePoint]

/** Returns whether the character at [index] is whitespace, which is always one UTF-16 unit. */
internal fun isSpace(text: String, index: Int): Boolean =
    text[index].code < CLASSES.size && CLASSES[text[index].code] == SPACE

/**
 * Returns the end of the piece that begins at [start].
 *
 * Positions count UTF-16 units. The text must have no lone surrogates.
 */
internal fun pieceEnd(text: String, start: Int): Int {
    val first = text[start]
    if (first == '\'') {
        CONTRACTIONS.find { text.startsWith(it, start) }?.let { return start + it.length }
    }
    val afterSpace = if (first == ' ' && start + 1 < text.length) start + 1 else start
    val kind = classAt(text, afterSpace)
    if (kind != SPACE) return runEnd(text, afterSpace, kind)
    val end = runEnd(text, start, SPACE)
    // The last of several spaces before a word belongs to the word.
    return if (end == text.length || end == start + 1) end else end - 1
}

private fun runEnd(text: String, start: Int, kind: Byte): Int {
    var end = start
    while (end < text.length && classAt(text, end) == kind) {
        end += if (Character.isHighSurrogate(text[end])) 2 else 1
    }
    return end
}

private fun classAt(text: String, index: Int): Byte {
    val codePoint = Character.codePointAt(text, index)
    return if (codePoint < CLASSES.size) CLASSES[codePoint] else OTHER
}
