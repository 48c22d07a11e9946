/*
 * Added tokens, which are cut out of a text before it is split into words; mirrors
 * bart_export/text/added_tokens.py, which cites the source of the rules.
 */
package org.bartexport.text

import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable

/**
 * An added token, an entry of `tokenizer.added_tokens` in the manifest.
 *
 * @property content the characters to find
 * @property singleWord match only where no letter, digit or underscore is next to it
 * @property lstrip include the whitespace before it
 * @property rstrip include the whitespace after it
 * @property normalized match after all tokens without this flag, in the text between them
 * @property special omit it from generated text
 */
@Serializable
public data class AddedToken(
    val content: String,
    @SerialName("single_word") val singleWord: Boolean = false,
    val lstrip: Boolean = false,
    val rstrip: Boolean = false,
    val normalized: Boolean = false,
    val special: Boolean = false,
)

/** BART's five special tokens; `<mask>` includes the space before it. */
internal val BART_TOKENS: List<AddedToken> =
    SPECIAL_TOKENS.map { AddedToken(it, lstrip = it == MASK, special = true) }

/** The part of a text from [start] until [end]: an added [token], or other text if it is null. */
internal class Piece(val start: Int, val end: Int, val token: AddedToken?)

/** Splits texts at added tokens. */
internal class Cutter(tokens: Collection<AddedToken>) {
    private val passes = listOf(false, true)
        .map { kind -> tokens.filter { it.normalized == kind } }
        .filter { it.isNotEmpty() }
        .map(::Pass)

    /** Returns the pieces of a text in order, lazily. */
    fun cut(text: String): Sequence<Piece> {
        val whole = if (text.isEmpty()) emptySequence() else sequenceOf(Piece(0, text.length, null))
        return passes.fold(whole) { pieces, pass ->
            pieces.flatMap { if (it.token == null) pass.cut(text, it) else sequenceOf(it) }
        }
    }
}

/** A trie of the added tokens that are searched for in the same pass. */
private class Pass(tokens: List<AddedToken>) {
    private class Node(val following: MutableMap<Char, Node> = HashMap()) {
        var token: AddedToken? = null
    }

    private val root = Node()

    init {
        for (token in tokens) {
            val last = token.content.fold(root) { node, character ->
                node.following.getOrPut(character) { Node() }
            }
            last.token = token
        }
    }

    fun cut(text: String, piece: Piece): Sequence<Piece> = sequence {
        var begin = piece.start
        var place = piece.start
        while (place < piece.end) {
            val token = longestAt(text, place, piece.end)
            if (token == null) {
                place++
                continue
            }
            var start = place
            var end = place + token.content.length
            place = end
            if (token.singleWord && touchesWord(text, start, end, piece)) continue
            if (token.lstrip) while (start > begin && isSpace(text, start - 1)) start--
            if (token.rstrip) while (end < piece.end && isSpace(text, end)) end++
            if (begin < start) yield(Piece(begin, start, null))
            yield(Piece(start, end, token))
            begin = end
        }
        if (begin < piece.end) yield(Piece(begin, piece.end, null))
    }

    private fun longestAt(text: String, start: Int, limit: Int): AddedToken? {
        var node = root
        var found: AddedToken? = null
        for (place in start until limit) {
            node = node.following[text[place]] ?: break
            found = node.token ?: found
        }
        return found
    }

    private fun touchesWord(text: String, start: Int, end: Int, piece: Piece): Boolean =
        start > piece.start &&
            isWord(text.codePointBefore(start)) ||
            end < piece.end &&
            isWord(text.codePointAt(end))
}
