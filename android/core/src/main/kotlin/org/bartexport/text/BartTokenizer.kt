/*
 * BART's byte-level BPE tokenizer; mirrors bart_export/text/tokenizer.py.
 *
 * Scanner.kt splits texts and Merges.kt merges, where Python uses the `tokenizers` library. Any
 * valid Unicode string survives tokenizing and detokenizing unchanged.
 */
package org.bartexport.text

import java.io.File
import org.bartexport.InputError
import org.bartexport.TokenizerError

private const val NO_BYTE = -1

// Upper bound on a prefix's length: no Java string is longer.
private const val MAX_CHARACTERS = Int.MAX_VALUE.toLong()

/**
 * BART's byte-level BPE tokenizer. Thread-safe.
 *
 * A checkpoint's added tokens are recognized in every text. BART's five special tokens are plain
 * text by default, so that an untrusted text cannot end or pad a sequence.
 */
public class BartTokenizer private constructor(
    private val vocabulary: Map<String, Int>,
    private val merges: Merges,
    addedTokens: List<AddedToken>,
    private val addPrefixSpace: Boolean,
) {
    private val allAdded = (BART_TOKENS + addedTokens).associateBy { it.content }
    private val special = Cutter(allAdded.values)
    private val plain = Cutter(allAdded.values.filter { it.content !in SPECIAL_TOKENS })
    private val tokenBytes = tokenBytes(vocabulary, allAdded.keys)
    private val byteIds = IntArray(256) { vocabulary.getValue(BYTE_SYMBOLS[it]) }
    private val cache = PieceCache()

    /** Id of `<s>`, the first token of every source. */
    public val startTokenId: Int = vocabulary.getValue(START)

    /** Id of `<pad>`, the padding token. */
    public val padTokenId: Int = vocabulary.getValue(PAD)

    /** Id of `</s>`, the last token of a sequence. */
    public val endTokenId: Int = vocabulary.getValue(END)

    /** Id of `<unk>`, the unknown token. */
    public val unknownTokenId: Int = vocabulary.getValue(UNKNOWN)

    /** Id of `<mask>`, the placeholder for missing words. */
    public val maskTokenId: Int = vocabulary.getValue(MASK)

    /** Ids of all special tokens. */
    public val specialTokenIds: Set<Int> = allAdded.values
        .filter { it.special || it.content in SPECIAL_TOKENS }
        .map { vocabulary.getValue(it.content) }
        .toSet()

    /** Number of tokens, including special ones. */
    public val vocabularySize: Int
        get() = tokenBytes.size

    /**
     * Returns the token ids of a text, without start and end tokens.
     *
     * @param specialTokens whether `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>` in the text become
     *   their ids, `<mask>` together with the whitespace before it
     * @throws InputError if the text has a lone surrogate, which UTF-8 cannot encode
     */
    public fun tokenize(text: String, specialTokens: Boolean = false): IntArray =
        firstIds(text, Int.MAX_VALUE, specialTokens)

    /** Returns at most the first [count] ids of a text, reading little more than needed. */
    private fun firstIds(text: String, count: Int, specialTokens: Boolean): IntArray {
        refuseLoneSurrogates(text)
        val ids = Ids(minOf(count, text.length / 3 + 8))
        val merging = Merging(merges)
        for (piece in cutter(specialTokens).cut(text)) {
            if (ids.size >= count) break
            if (piece.token == null) {
                addWords(text.substring(piece.start, piece.end), count, merging, ids)
            } else {
                ids.add(intArrayOf(vocabulary.getValue(piece.token.content)))
            }
        }
        return ids.first(count)
    }

    private fun cutter(specialTokens: Boolean) = if (specialTokens) special else plain

    private fun addWords(piece: String, count: Int, merging: Merging, ids: Ids) {
        val text = if (addPrefixSpace && piece[0] != ' ') " $piece" else piece
        var start = 0
        while (start < text.length && ids.size < count) {
            val end = pieceEnd(text, start)
            val size = prefixSize(count - ids.size)
            if (end - start > size) {
                ids.add(longWordIds(text.substring(start, end), count - ids.size, merging))
            } else {
                ids.add(cache.get(text, start, end) { word -> merged(word, merging) })
            }
            start = end
        }
    }

    /** Returns the first length to try for a prefix of [count] tokens: eight characters each. */
    private fun prefixSize(count: Int): Int =
        minOf(count.toLong().coerceAtLeast(merges.longest.toLong()) * 8, MAX_CHARACTERS).toInt()

    /** Returns at least the first [count] ids of a word, if it has as many; see [stableTokens]. */
    private fun longWordIds(word: String, count: Int, merging: Merging): IntArray {
        var size = prefixSize(count).toLong()
        while (size < word.length) {
            val end = size.toInt() - if (word[size.toInt()].isLowSurrogate()) 1 else 0
            val bytes = word.substring(0, end).toByteArray()
            val ids = merged(bytes, bytes.size, merging)
            if (stableTokens(bytes, ids, merging) >= count) return ids.copyOf(count)
            size *= 4
        }
        return merged(word, merging)
    }

    /**
     * Returns how many leading tokens of a prefix stay the same however the word continues.
     *
     * A token is stable if it stays the same when any number of bytes, up to the length of the
     * longest token, is cut off the prefix. All tokens before it are then stable, too; see
     * graph/tokenizer.py.
     */
    private fun stableTokens(bytes: ByteArray, ids: IntArray, merging: Merging): Int {
        val longest = merges.longest
        var anchor = ids.size
        var place = bytes.size
        while (anchor > 0 && bytes.size - place < 3 * longest) {
            anchor--
            place -= tokenBytes[ids[anchor]].size
        }
        if (bytes.size - place < 3 * longest) return 0
        val tail = bytes.copyOfRange(place, bytes.size)
        val same = (0 until longest).all { merged(tail, tail.size - it, merging)[0] == ids[anchor] }
        return if (same) anchor + 1 else 0
    }

    private fun merged(word: String, merging: Merging): IntArray =
        word.toByteArray().let { merged(it, it.size, merging) }

    private fun merged(bytes: ByteArray, size: Int, merging: Merging): IntArray {
        val ids = IntArray(size) { byteIds[bytes[it].toInt() and 0xff] }
        return ids.copyOf(merging.merge(ids, size))
    }

    /**
     * Returns the ids of `<s> text </s>`.
     *
     * Only as much of the text is tokenized as its first ids need.
     *
     * @param maxLength maximum number of ids, including start and end
     * @param truncate whether to drop the end of a longer text instead of failing
     * @param specialTokens as in [tokenize]
     * @throws InputError if the text is longer and [truncate] is not set, it has a lone surrogate,
     *   or [maxLength] is below 2
     */
    public fun encode(
        text: String,
        maxLength: Int,
        truncate: Boolean = false,
        specialTokens: Boolean = false,
    ): IntArray {
        if (truncate) return encodeBeginning(text, maxLength, specialTokens).first
        val room = roomWithin(maxLength)
        if (minTokens(text, specialTokens) > room) {
            val size = utf8Size(text, 0, text.length)
            throw tooLong(maxLength, "$size bytes, which need more")
        }
        val ids = tokenize(text, specialTokens)
        if (ids.size > room) throw tooLong(maxLength, "${ids.size + 2}")
        return framed(ids)
    }

    /** Returns the ids of [encode] with `truncate`, and whether the text was truncated. */
    internal fun encodeBeginning(
        text: String,
        maxLength: Int,
        specialTokens: Boolean,
    ): Pair<IntArray, Boolean> {
        val room = roomWithin(maxLength)
        val ids = firstIds(text, room + 1, specialTokens)
        return framed(ids.copyOf(minOf(ids.size, room))) to (ids.size > room)
    }

    private fun framed(ids: IntArray): IntArray = intArrayOf(startTokenId) + ids + endTokenId

    /** Returns a lower bound on a text's number of tokens, from the longest token's size. */
    private fun minTokens(text: String, specialTokens: Boolean): Long =
        cutter(specialTokens).cut(text).sumOf { piece ->
            if (piece.token != null) {
                1L
            } else {
                (utf8Size(text, piece.start, piece.end) + merges.longest - 1) / merges.longest
            }
        }

    private fun tooLong(maxLength: Int, received: String) = InputError(
        "The text must have at most $maxLength tokens, including start and end, received " +
            "$received. Shorten or truncate it.",
    )

    /**
     * Returns a token's UTF-8 bytes, which may be an incomplete character.
     *
     * @throws InputError if the id is not in the vocabulary
     */
    public fun tokenBytes(id: Int): ByteArray {
        if (id !in tokenBytes.indices) {
            throw InputError("A token id must be from 0 to ${vocabularySize - 1}, received $id.")
        }
        return tokenBytes[id].copyOf()
    }

    /**
     * Returns the text of token ids; invalid UTF-8 becomes U+FFFD.
     *
     * @throws InputError if an id is not in the vocabulary
     */
    public fun detokenize(ids: IntArray, skipSpecialTokens: Boolean = true): String {
        val skipped = if (skipSpecialTokens) specialTokenIds else emptySet()
        val text = StringBuilder()
        val decoder = Utf8Decoder()
        for (id in ids) {
            if (id !in skipped) decoder.decode(tokenBytes(id), text)
        }
        decoder.finish(text)
        return text.toString()
    }

    public companion object {
        /**
         * Reads a vocabulary (JSON, {token: id}) and its merges (one per line).
         *
         * @throws TokenizerError if a file is missing or invalid, or the two do not match
         */
        public fun fromFiles(
            vocabulary: File,
            merges: File,
            addedTokens: List<AddedToken> = emptyList(),
            addPrefixSpace: Boolean = false,
        ): BartTokenizer {
            val tokens = readVocabulary(vocabulary)
            val pairs = readMerges(merges)
            addedTokens.find { it.content.isEmpty() || it.content !in tokens }?.let {
                throw TokenizerError(
                    "$vocabulary must have an id for every added token, received none for " +
                        "'${it.content}'.",
                )
            }
            try {
                return BartTokenizer(tokens, Merges(tokens, pairs), addedTokens, addPrefixSpace)
            } catch (error: UnknownToken) {
                throw TokenizerError(
                    "$merges must merge tokens of $vocabulary, received '${error.token}', which " +
                        "is not one. Use two files from the same checkpoint.",
                )
            }
        }
    }
}

private fun tokenBytes(vocabulary: Map<String, Int>, added: Set<String>): Array<ByteArray> {
    val byteOf = IntArray(BYTE_SYMBOLS.maxOf { it[0].code } + 1) { NO_BYTE }
    BYTE_SYMBOLS.forEachIndexed { byte, symbol -> byteOf[symbol[0].code] = byte }
    val all = Array(vocabulary.size) { ByteArray(0) }
    for ((token, id) in vocabulary) {
        val symbols = token.all { it.code < byteOf.size && byteOf[it.code] != NO_BYTE }
        val spelled = symbols && token !in added
        all[id] = if (spelled) {
            ByteArray(token.length) { byteOf[token[it].code].toByte() }
        } else {
            // An added token, or another token that is not spelled in byte symbols.
            token.toByteArray()
        }
    }
    return all
}

/** Returns how many ids fit between the start and end tokens. */
private fun roomWithin(maxLength: Int): Int {
    if (maxLength < 2) {
        throw InputError(
            "maxLength must be at least 2, for the start and end tokens, received $maxLength.",
        )
    }
    return maxLength - 2
}

private fun refuseLoneSurrogates(text: String) {
    var index = 0
    while (index < text.length) {
        val character = text[index]
        val valid = !character.isSurrogate() ||
            character.isHighSurrogate() &&
            index + 1 < text.length &&
            text[index + 1].isLowSurrogate()
        if (!valid) {
            throw InputError(
                "The text must be valid Unicode, received the lone surrogate U+" +
                    "${character.code.toString(16).uppercase()} at position $index. Decode the " +
                    "text with a decoder that replaces invalid bytes.",
            )
        }
        index += if (character.isSurrogate()) 2 else 1
    }
}

/** Returns the UTF-8 size of a part of a text, in bytes. */
private fun utf8Size(text: String, start: Int, end: Int): Long {
    var size = 0L
    for (index in start until end) {
        val character = text[index]
        size += when {
            character < '\u0080' -> 1
            character < '\u0800' || character.isSurrogate() -> 2
            else -> 3
        }
    }
    return size
}

/** A growing array of token ids. */
private class Ids(capacity: Int) {
    private var values = IntArray(capacity)
    var size = 0
        private set

    fun add(more: IntArray) {
        if (size + more.size > values.size) values = values.copyOf(2 * (size + more.size))
        more.copyInto(values, size)
        size += more.size
    }

    fun first(count: Int): IntArray = values.copyOf(minOf(size, count))
}
