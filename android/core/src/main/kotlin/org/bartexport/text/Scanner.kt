/*
 * Cuts a text into the pieces that byte pairs are merged in: GPT-2's pattern
 *
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * which Python's tokenizer leaves to the `tokenizers` library. It is written out by hand because
 * regular expressions of Android and of the JVM differ in what \s is. Classes of characters come
 * from CharacterClasses.kt and not from java.lang.Character: a phone knows the letters of the
 * Unicode version that was current when its Android was made, and would cut newer ones elsewhere.
 * Strings come in, positions go out; token ids are not known here.
 */
package org.bartexport.text

private const val OTHER: Byte = 0
private const val LETTER: Byte = 1
private const val NUMBER: Byte = 2
private const val SPACE: Byte = 3

private val CONTRACTIONS = arrayOf("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

/** Class of every character up to the last one that has any; those beyond are [OTHER]. */
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

/** Made when the first added token asks for it: most tokenizers have none that does. */
private val WORD_CHARACTERS: BooleanArray by lazy {
    val words = ranges(WORDS)
    BooleanArray(words.last().last + 1).also { array ->
        for (range in words) array.fill(true, range.first, range.last + 1)
    }
}

/** Whether a code point is one that an added token's `single_word` keeps off. */
internal fun isWord(codePoint: Int): Boolean =
    codePoint < WORD_CHARACTERS.size && WORD_CHARACTERS[codePoint]

/** Whether there is whitespace at a place; all of it is of one UTF-16 unit. */
internal fun isSpace(text: String, index: Int): Boolean =
    text[index].code < CLASSES.size && CLASSES[text[index].code] == SPACE

/**
 * Returns where the piece ends that begins at [start], which is before the end of [text].
 *
 * Positions count UTF-16 units. The text has no lone surrogates.
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
    // The last space before a word belongs to the word, unless it is the only one.
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
