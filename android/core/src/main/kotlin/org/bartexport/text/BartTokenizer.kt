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

/**
 * Byte-level BPE of one vocabulary; safe to use from several threads.
 *
 * Special tokens typed in a text are ordinary characters, so that a text from outside cannot end a
 * sequence or pad it.
 */
public class BartTokenizer private constructor(
    vocabulary: Map<String, Int>,
    private val merges: Merges,
) {
    private val tokenBytes = tokenBytes(vocabulary)
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
    public val specialTokenIds: Set<Int> = SPECIAL_TOKENS.map(vocabulary::getValue).toSet()

    /** Number of tokens, special ones included. */
    public val vocabularySize: Int
        get() = tokenBytes.size

    /**
     * Returns the ids of a text, without start and end tokens.
     *
     * @throws InputError when the text has a lone surrogate, which no UTF-8 can hold
     */
    public fun tokenize(text: String): IntArray {
        refuseLoneSurrogates(text)
        val ids = Ids(text.length / 3 + 8)
        val merging = Merging(merges)
        var start = 0
        while (start < text.length) {
            val end = pieceEnd(text, start)
            ids.add(cache.get(text, start, end) { piece -> merged(piece, merging) })
            start = end
        }
        return ids.toIntArray()
    }

    private fun merged(piece: String, merging: Merging): IntArray {
        val bytes = piece.toByteArray()
        val ids = IntArray(bytes.size) { byteIds[bytes[it].toInt() and 0xff] }
        return ids.copyOf(merging.merge(ids, ids.size))
    }

    /**
     * Returns `<s> text </s>` as at most [maxLength] ids, both ends counted.
     *
     * With [truncate], a longer text keeps its beginning and both ends.
     *
     * @throws InputError when the text is longer and [truncate] is not set, has a lone surrogate,
     *   or [maxLength] has no room for both ends
     */
    public fun encode(text: String, maxLength: Int, truncate: Boolean = false): IntArray {
        if (maxLength < 2) {
            throw InputError(
                "maxLength must be at least 2, the start and the end token, received $maxLength.",
            )
        }
        val ids = tokenize(text)
        if (ids.size > maxLength - 2 && !truncate) {
            throw InputError(
                "The text must have at most $maxLength tokens, start and end included, received " +
                    "${ids.size + 2}. Shorten it, or truncate to keep its beginning.",
            )
        }
        val kept = minOf(ids.size, maxLength - 2)
        return intArrayOf(startTokenId) + ids.copyOf(kept) + endTokenId
    }

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
        public fun fromFiles(vocabulary: File, merges: File): BartTokenizer {
            val tokens = readVocabulary(vocabulary)
            val pairs = readMerges(merges)
            try {
                return BartTokenizer(tokens, Merges(tokens, pairs))
            } catch (error: UnknownToken) {
                throw TokenizerError(
                    "$merges must merge tokens of $vocabulary, received: token '${error.token}', " +
                        "which it does not have. Give the two files of one checkpoint.",
                )
            }
        }
    }
}

private fun tokenBytes(vocabulary: Map<String, Int>): Array<ByteArray> {
    val byteOf = IntArray(BYTE_SYMBOLS.maxOf { it[0].code } + 1) { NO_BYTE }
    BYTE_SYMBOLS.forEachIndexed { byte, symbol -> byteOf[symbol[0].code] = byte }
    val all = Array(vocabulary.size) { ByteArray(0) }
    for ((token, id) in vocabulary) {
        val spelled = token.all { it.code < byteOf.size && byteOf[it.code] != NO_BYTE }
        all[id] = if (spelled) {
            ByteArray(token.length) { byteOf[token[it].code].toByte() }
        } else {
            // An entry that no merge makes and that is not spelled in byte symbols.
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

/** Ids of one text while they are collected. */
private class Ids(capacity: Int) {
    private var values = IntArray(capacity)
    private var size = 0

    fun add(more: IntArray) {
        if (size + more.size > values.size) values = values.copyOf(2 * (size + more.size))
        more.copyInto(values, size)
        size += more.size
    }

    fun toIntArray() = values.copyOf(size)
}
