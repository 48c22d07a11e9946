/*
 * Reads the vocabulary and the merges of a byte-level BPE; mirrors bart_export/text/vocabulary.py.
 */
package org.bartexport.text

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.CharBuffer
import java.nio.charset.CodingErrorAction
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import org.bartexport.TokenizerError

/** The first token of every source. */
internal const val START: String = "<s>"

/** The padding token. */
internal const val PAD: String = "<pad>"

/** The last token of a sequence. */
internal const val END: String = "</s>"

/** The unknown token, which byte-level BPE never produces. */
internal const val UNKNOWN: String = "<unk>"

/** The placeholder for missing words, as in BART's pre-training. */
internal const val MASK: String = "<mask>"

/** BART's special tokens. */
internal val SPECIAL_TOKENS: List<String> = listOf(START, PAD, END, UNKNOWN, MASK)

/**
 * The printable character for each byte in the vocabulary and merges.
 *
 * GPT-2's mapping (https://github.com/openai/gpt-2/blob/master/src/encoder.py): bytes printable in
 * Latin-1 stand for themselves, and the other 68 map to U+0100 and above.
 */
internal val BYTE_SYMBOLS: List<String> = byteSymbols()

private fun byteSymbols(): List<String> {
    var others = '\u0100'
    return List(256) { byte ->
        val printable = byte in 0x21..0x7e || byte in 0xa1..0xff && byte != 0xad
        (if (printable) byte.toChar() else others++).toString()
    }
}

/**
 * Returns the ids of the tokens in a `vocabulary.json` (Hugging Face: `vocab.json`).
 *
 * @throws TokenizerError if the file is missing, is not a JSON object with the ids 0 to n-1, or
 *   lacks a special token or byte symbol
 */
internal fun readVocabulary(file: File): Map<String, Int> {
    val json = try {
        Json.parseToJsonElement(read(file))
    } catch (error: SerializationException) {
        throw TokenizerError(
            "$file must be a JSON object of tokens and ids, received invalid JSON: " +
                "${error.message?.lineSequence()?.first()}. Copy the file again from its " +
                "checkpoint.",
        )
    }
    val vocabulary = numbered(file, integers(file, json))
    require(file, vocabulary, SPECIAL_TOKENS, "the special tokens")
    require(file, vocabulary, BYTE_SYMBOLS, "the 256 byte symbols")
    return vocabulary
}

/** Returns the members of a non-empty JSON object of integers. */
private fun integers(file: File, json: JsonElement): Map<String, JsonElement> {
    val members = (json as? JsonObject).orEmpty()
    if (members.isEmpty() || !members.values.all { isInteger(digits(it)) }) {
        throw TokenizerError(
            "$file must be a JSON object of tokens and integer ids. Use the vocabulary.json of " +
                "a Keras preset or the vocab.json of a Hugging Face model.",
        )
    }
    return members
}

/** Returns whether [content] is a JSON integer; a Regex would take longer than reading the file. */
private fun isInteger(content: String): Boolean {
    val digits = content.removePrefix("-")
    return digits.isNotEmpty() &&
        digits.all { it in '0'..'9' } &&
        (digits[0] != '0' || digits.length == 1)
}

private fun digits(json: JsonElement): String =
    (json as? JsonPrimitive)?.takeIf { !it.isString }?.content.orEmpty()

/** Returns the vocabulary if its ids are 0 to n-1, each once. */
private fun numbered(file: File, members: Map<String, JsonElement>): Map<String, Int> {
    val seen = BooleanArray(members.size)
    return members.mapValues { (_, json) ->
        val id = digits(json).toIntOrNull()
        if (id == null || id !in seen.indices || seen[id]) {
            throw notNumbered(file, members.values.map(::digits))
        }
        seen[id] = true
        id
    }
}

private fun notNumbered(file: File, ids: Collection<String>): TokenizerError {
    val numbers = ids.map { it.toBigInteger() }
    return TokenizerError(
        "$file must give its ${ids.size} tokens the ids 0 to ${ids.size - 1}, each once, " +
            "received ids from ${numbers.min()} to ${numbers.max()} with duplicates or gaps. " +
            "Copy the file again from its checkpoint.",
    )
}

private fun require(file: File, vocabulary: Map<String, Int>, tokens: List<String>, kind: String) {
    val missing = tokens.filter { it !in vocabulary }
    if (missing.isNotEmpty()) {
        throw TokenizerError(
            "$file must have $kind, received a vocabulary without ${missing.size} of them, such " +
                "as '${missing.first()}'. Use the byte-level BPE vocabulary of a BART model.",
        )
    }
}

/**
 * Returns the pairs of a `merges.txt`, in the order of their ranks.
 *
 * A first line that begins with "#version" is skipped.
 *
 * @throws TokenizerError if the file is missing, or a line is not two symbols separated by a space
 */
internal fun readMerges(file: File): List<Pair<String, String>> {
    // Universal newlines, as in Python.
    val text = read(file).replace("\r\n", "\n").replace('\r', '\n')
    val lines = text.trimEnd('\n').split('\n')
    val header = if (lines[0].isEmpty() || lines[0].startsWith("#version")) 1 else 0
    return lines.drop(header).mapIndexed { index, line ->
        val space = line.indexOf(' ')
        if (space < 1 || space == line.length - 1 || line.indexOf(' ', space + 1) >= 0) {
            throw TokenizerError(
                "$file must have two symbols separated by a space on every line, received " +
                    "'${line.take(100)}' on line ${index + header + 1}. Copy the file again " +
                    "from its checkpoint.",
            )
        }
        line.substring(0, space) to line.substring(space + 1)
    }
}

/** Returns the text of a file, which must be UTF-8. */
private fun read(file: File): String {
    val bytes = try {
        ByteBuffer.wrap(file.readBytes())
    } catch (error: IOException) {
        // The reason in parentheses: the rest of the message repeats the file's name.
        val reason = error.message.orEmpty().substringAfterLast('(').removeSuffix(")")
        throw TokenizerError(
            "The tokenizer file $file cannot be read: $reason. A BART tokenizer consists of a " +
                "vocabulary.json or vocab.json and a merges.txt.",
        )
    }
    val text = CharBuffer.allocate(bytes.remaining())
    val decoder = Charsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
    if (decoder.decode(bytes, text, true).isError) {
        throw TokenizerError(
            "The tokenizer file $file must be UTF-8, received an invalid byte at position " +
                "${bytes.position()}. Copy the file again from its checkpoint.",
        )
    }
    text.flip()
    return text.toString()
}
