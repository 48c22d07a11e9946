/*
 * Token ids to text, one id at a time; mirrors bart_export/text/tokenizer.py.
 *
 * Ids come in as a model makes them; text goes out as soon as it is whole. A character whose bytes
 * are spread over several tokens is held back until the last of them. Where the ids come from and
 * where the text is shown is not known here.
 */
package org.bartexport.text

/**
 * Detokenizes one sequence while it grows; for one thread at a time.
 *
 * All pieces that [push] returns and the one of [finish], joined, equal
 * `tokenizer.detokenize(ids, skipSpecialTokens)`, for any ids; without [keepFirstSpace] less the
 * space that the text begins with, if any. That space says no more than that a word begins: it is
 * no part of what a model wrote.
 */
public class IncrementalDetokenizer(
    private val tokenizer: BartTokenizer,
    skipSpecialTokens: Boolean = true,
    private val keepFirstSpace: Boolean = true,
) {
    private var begun = keepFirstSpace
    private val skipped = if (skipSpecialTokens) tokenizer.specialTokenIds else emptySet()
    private val decoder = Utf8Decoder()

    /**
     * Returns the text that this [id] completes, "" while a character is still open.
     *
     * @throws org.bartexport.InputError when the id is not in the vocabulary; the sequence can go
     *   on without it
     */
    public fun push(id: Int): String {
        if (id in skipped) return ""
        return shown(StringBuilder().also { decoder.decode(tokenizer.tokenBytes(id), it) })
    }

    /**
     * Returns what is left at the end: U+FFFD for a character that was never completed.
     *
     * The detokenizer is then ready for another sequence.
     */
    public fun finish(): String =
        shown(StringBuilder().also { decoder.finish(it) }).also { begun = keepFirstSpace }

    private fun shown(text: StringBuilder): String {
        val first = !begun && text.isNotEmpty()
        begun = begun || first
        return if (first) text.removePrefix(" ").toString() else text.toString()
    }
}
