/*
 * Text to token ids and back: BART's byte-level BPE; mirrors bart_export/text/tokenizer.py.
 *
 * Two files and strings come in, arrays of ids go out, and the other way round. Cutting is done by
 * Scanner.kt and merging by Merges.kt, where Python has the `tokenizers` library. Every string of
 * valid Unicode has ids, and the ids give the same string back. The model is not known here: how
 * many tokens it embeds and how long a text it takes are the caller's to say.
 */
package org.bartexport.text

import java.io.File
import org.bartexport.InputError
import org.bartexport.TokenizerError

private const val NO_BYTE = -1

// Characters of a beginning: more are in no text that Java has.
private const val MOST = Int.MAX_VALUE.toLong()

/**
 * Byte-level BPE of one vocabulary; safe to use from several threads.
 *
 * A checkpoint's added tokens are tokens wherever a text has them. The five special tokens of every
 * BART are ordinary characters unless the caller asks for the tokens, so that a text from outside
 * cannot end a sequence or pad it.
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

    /** Id of the token before every source. */
    public val startTokenId: Int = vocabulary.getValue(START)

    /** Id of the token that fills a row up. */
    public val padTokenId: Int = vocabulary.getValue(PAD)

    /** Id of the token that ends a sequence. */
    public val endTokenId: Int = vocabulary.getValue(END)

    /** Id of the token for what has no other. */
    public val unknownTokenId: Int = vocabulary.getValue(UNKNOWN)

    /** Id of the token that stands for words left out. */
    public val maskTokenId: Int = vocabulary.getValue(MASK)

    /** Ids of all tokens that are no text. */
    public val specialTokenIds: Set<Int> = allAdded.values
        .filter { it.special || it.content in SPECIAL_TOKENS }
        .map { vocabulary.getValue(it.content) }
        .toSet()

    /** Number of tokens, special ones included. */
    public val vocabularySize: Int
        get() = tokenBytes.size

    /**
     * Returns the ids of a text, without start and end tokens.
     *
     * With [specialTokens], `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>` in the text become their
     * ids, `<mask>` together with the whitespace on its left.
     *
     * @throws InputError when the text has a lone surrogate, which no UTF-8 can hold
     */
    public fun tokenize(text: String, specialTokens: Boolean = false): IntArray =
        beginning(text, Int.MAX_VALUE, specialTokens)

    /** Returns the first [count] ids of a text, or all, and reads little more than they need. */
    private fun beginning(text: String, count: Int, specialTokens: Boolean): IntArray {
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
            val size = beginningSize(count - ids.size)
            if (end - start > size) {
                ids.add(ofLongWord(text.substring(start, end), count - ids.size, merging))
            } else {
                ids.add(cache.get(text, start, end) { word -> merged(word, merging) })
            }
            start = end
        }
    }

    /** Characters of a beginning that is tried first: eight a token. */
    private fun beginningSize(count: Int): Int =
        minOf(count.toLong().coerceAtLeast(merges.longest.toLong()) * 8, MOST).toInt()

    /** Returns at least the first [count] ids of a word, or all; see [certain]. */
    private fun ofLongWord(word: String, count: Int, merging: Merging): IntArray {
        var size = beginningSize(count).toLong()
        while (size < word.length) {
            val end = size.toInt() - if (word[size.toInt()].isLowSurrogate()) 1 else 0
            val bytes = word.substring(0, end).toByteArray()
            val ids = merged(bytes, bytes.size, merging)
            if (certain(bytes, ids, merging) >= count) return ids.copyOf(count)
            size *= 4
        }
        return merged(word, merging)
    }

    /**
     * Returns how many tokens of a word's beginning are its own however it goes on.
     *
     * `graph/tokenizer.py` explains why: the tokens up to one that stays the same wherever the
     * beginning ends, within the longest token before it, stay the same.
     */
    private fun certain(bytes: ByteArray, ids: IntArray, merging: Merging): Int {
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
     * Returns `<s> text </s>` as at most [maxLength] ids, both ends counted.
     *
     * With [truncate], a longer text keeps its beginning and both ends. No more of a text is
     * tokenized than its first ids need, and nothing of one that has too many bytes to fit.
     * [specialTokens] are as in [tokenize].
     *
     * @throws InputError when the text is longer and [truncate] is not set, has a lone surrogate,
     *   or [maxLength] has no room for both ends
     */
    public fun encode(
        text: String,
        maxLength: Int,
        truncate: Boolean = false,
        specialTokens: Boolean = false,
    ): IntArray {
        if (maxLength < 2) {
            throw InputError(
                "maxLength must be at least 2, the start and the end token, received $maxLength.",
            )
        }
        val room = maxLength - 2
        if (!truncate && least(text, specialTokens) > room) {
            val size = utf8Size(text, 0, text.length)
            throw tooLong(maxLength, "$size bytes, which no $room tokens hold")
        }
        val ids = beginning(text, if (truncate) room else Int.MAX_VALUE, specialTokens)
        if (ids.size > room) throw tooLong(maxLength, "${ids.size + 2}")
        return intArrayOf(startTokenId) + ids + endTokenId
    }

    /** Returns how many tokens a text has if all are of the longest. */
    private fun least(text: String, specialTokens: Boolean): Long =
        cutter(specialTokens).cut(text).sumOf { piece ->
            if (piece.token != null) {
                1L
            } else {
                (utf8Size(text, piece.start, piece.end) + merges.longest - 1) / merges.longest
            }
        }

    private fun tooLong(maxLength: Int, received: String) = InputError(
        "The text must have at most $maxLength tokens, start and end included, received " +
            "$received. Shorten it, or truncate to keep its beginning.",
    )

    /**
     * Returns the UTF-8 bytes that a token stands for, often a part of a character.
     *
     * @throws InputError when the id is not in the vocabulary
     */
    public fun tokenBytes(id: Int): ByteArray {
        if (id !in tokenBytes.indices) {
            throw InputError("A token id must be in 0 to ${vocabularySize - 1}, received $id.")
        }
        return tokenBytes[id].copyOf()
    }

    /**
     * Returns the text of ids; bytes that are not UTF-8 become U+FFFD.
     *
     * @throws InputError when an id is not in the vocabulary
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
         * Opens a vocabulary (JSON, {token: id}) and its merges (text, one a line).
         *
         * @throws TokenizerError when a file is missing or damaged, or the two do not belong
         *   together
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
                    "$vocabulary must have every added token, received '${it.content}' without id.",
                )
            }
            try {
                return BartTokenizer(tokens, Merges(tokens, pairs), addedTokens, addPrefixSpace)
            } catch (error: UnknownToken) {
                throw TokenizerError(
                    "$merges must merge tokens of $vocabulary, received: token '${error.token}', " +
                        "which it does not have. Give the two files of one checkpoint.",
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
            // An added token, or an entry that no merge makes and that is not spelled in symbols.
            token.toByteArray()
        }
    }
    return all
}

private fun refuseLoneSurrogates(text: String) {
    var index = 0
    while (index < text.length) {
        val character = text[index]
        val whole = !character.isSurrogate() ||
            character.isHighSurrogate() &&
            index + 1 < text.length &&
            text[index + 1].isLowSurrogate()
        if (!whole) {
            throw InputError(
                "The text must be valid Unicode, received the lone surrogate U+" +
                    "${character.code.toString(16).uppercase()} at position $index. Decode its " +
                    "bytes with a charset that replaces what is damaged first.",
            )
        }
        index += if (character.isSurrogate()) 2 else 1
    }
}

/** Returns how many bytes a part of a text has in UTF-8. */
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

/** Ids of one text while they are collected. */
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
