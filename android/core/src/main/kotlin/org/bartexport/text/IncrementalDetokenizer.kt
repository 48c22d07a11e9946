/*
 * Detokenizes ids one at a time; mirrors bart_export/text/tokenizer.py.
 */
package org.bartexport.text

/**
 * Detokenizes a growing sequence. Not thread-safe.
 *
 * The results of [push] and [finish] concatenate to `tokenizer.detokenize(ids, skipSpecialTokens)`.
 *
 * @param keepFirstSpace whether to keep a leading space, which only marks the start of a word
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
     * Returns the text that this [id] completes, or "" if a character is still incomplete.
     *
     * @throws org.bartexport.InputError if the id is not in the vocabulary; the sequence may then
     *   continue without it
     */
    public fun push(id: Int): String {
        if (id in skipped) return ""
        return shown(StringBuilder().also { decoder.decode(tokenizer.tokenBytes(id), it) })
    }

    /**
     * Returns U+FFFD if the last character is incomplete, otherwise "", and resets the detokenizer
     * for another sequence.
     */
    public fun finish(): String =
        shown(StringBuilder().also { decoder.finish(it) }).also { begun = keepFirstSpace }

    private fun shown(text: StringBuilder): String {
        val first = !begun && text.isNotEmpty()
        begun = begun || first
        return if (first) text.removePrefix(" ").toString() else text.toString()
    }
}
