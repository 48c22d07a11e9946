/*
 * Added tokens: what is cut out of a text before it is split into words, each one id; mirrors
 * bart_export/text/added_tokens.py, which says where the rules are from.
 */
package org.bartexport.text

import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable

/**
 * A token that is looked for in the text itself, as the manifest's `tokenizer.added_tokens` has it.
 *
 * @property content the characters to find
 * @property singleWord find it only where no letter, digit or underscore is beside it
 * @property lstrip take the whitespace before it, too
 * @property rstrip take the whitespace after it, too
 * @property normalized look for it after those that are not, in what they leave
 * @property special leave it out of generated text
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

/** The five tokens of every BART; `<mask>` stands for a word and the space before it. */
internal val BART_TOKENS: List<AddedToken> =
    SPECIAL_TOKENS.map { AddedToken(it, lstrip = it == MASK, special = true) }

/** A piece of a text, from [start] up to [end]; [token] is null for what is between tokens. */
internal class Piece(val start: Int, val end: Int, val token: AddedToken?)

/** Cuts texts at added tokens. */
internal class Cutter(tokens: Collection<AddedToken>) {
    private val passes = listOf(false, true)
        .map { kind -> tokens.filter { it.normalized == kind } }
        .filter { it.isNotEmpty() }
        .map(::Pass)

    /** Returns the pieces of a text in order, found as they are asked for. */
    fun cut(text: String): Sequence<Piece> {
        val whole = if (text.isEmpty()) emptySequence() else sequenceOf(Piece(0, text.length, null))
        return passes.fold(whole) { pieces, pass ->
            pieces.flatMap { if (it.token == null) pass.cut(text, it) else sequenceOf(it) }
        }
    }
}

/** The added tokens that are looked for at the same time, as a tree of their characters. */
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
            if (token.singleWord && besideWord(text, start, end, piece)) continue
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

    private fun besideWord(text: String, start: Int, end: Int, piece: Piece): Boolean =
        start > piece.start &&
            isWord(text.codePointBefore(start)) ||
            end < piece.end &&
            isWord(text.codePointAt(end))
}
