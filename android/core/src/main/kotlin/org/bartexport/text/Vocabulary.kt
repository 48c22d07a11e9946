/*
 * The two files of a byte-level BPE: tokens with their ids, and merges in order of rank; mirrors
 * bart_export/text/vocabulary.py.
 *
 * Files come in; a checked map and a checked list go out. Known here is how bytes are spelled as
 * printable symbols and which special tokens a BART has, and not how text is cut.
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

/** The token before every source. */
public const val START: String = "<s>"

/** The token that fills a row up. */
public const val PAD: String = "<pad>"

/** The token that ends a sequence. */
public const val END: String = "</s>"

/** The token for what has no other; byte-level BPE never makes it. */
public const val UNKNOWN: String = "<unk>"

/** The token that stands for words left out, as in BART's pre-training. */
public const val MASK: String = "<mask>"

/** The tokens that are no text. */
public val SPECIAL_TOKENS: List<String> = listOf(START, PAD, END, UNKNOWN, MASK)

/**
 * The printable character that stands for each byte in tokens and merges, by byte.
 *
 * GPT-2's spelling (https://github.com/openai/gpt-2/blob/master/src/encoder.py): bytes that
 * Latin-1 prints are themselves, the other 68 are numbered upwards from U+0100.
 */
public val BYTE_SYMBOLS: List<String> = byteSymbols()

private fun byteSymbols(): List<String> {
    var others = '\u0100'
    return List(256) { byte ->
        val printable = byte in 0x21..0x7e || byte in 0xa1..0xff && byte != 0xad
        (if (printable) byte.toChar() else others++).toString()
    }
}

/**
 * Returns the id of every token of a `vocabulary.json` (Hugging Face: `vocab.json`).
 *
 * @throws TokenizerError when the file is missing, is not a JSON object of ids 0 to n-1, or lacks
 *   a special token or the symbol of a byte
 */
public fun readVocabulary(file: File): Map<String, Int> {
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

/** Returns the members of a JSON object whose values are all integers, and at least one. */
private fun integers(file: File, json: JsonElement): Map<String, JsonElement> {
    val members = (json as? JsonObject).orEmpty()
    if (members.isEmpty() || !members.values.all { isInteger(digits(it)) }) {
        throw TokenizerError(
            "$file must be a JSON object of tokens and integer ids. Give the vocabulary.json of " +
                "a Keras preset or the vocab.json of a Hugging Face model.",
        )
    }
    return members
}

/** True for what JSON writes an integer as; a regular expression takes longer than the reading. */
private fun isInteger(content: String): Boolean {
    val digits = content.removePrefix("-")
    return digits.isNotEmpty() &&
        digits.all { it in '0'..'9' } &&
        (digits[0] != '0' || digits.length == 1)
}

private fun digits(json: JsonElement): String =
    (json as? JsonPrimitive)?.takeIf { !it.isString }?.content.orEmpty()

/** Returns the vocabulary once its ids are known to be 0 to n-1, each once. */
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
        "$file must number its ${ids.size} tokens 0 to ${ids.size - 1}, each id once, received " +
            "ids from ${numbers.min()} to ${numbers.max()} with repetitions or gaps. Copy the " +
            "file again from its checkpoint.",
    )
}

private fun require(file: File, vocabulary: Map<String, Int>, tokens: List<String>, words: String) {
    val missing = tokens.filter { it !in vocabulary }
    if (missing.isNotEmpty()) {
        throw TokenizerError(
            "$file must have $words, ${missing.size} are missing, among them " +
                "'${missing.first()}'. Give the byte-level BPE vocabulary of a BART.",
        )
    }
}

/**
 * Returns the pairs of `merges.txt`, the one to merge first first.
 *
 * A first line beginning with "#version" is not a merge. Whether the merges fit a vocabulary is
 * checked by [BartTokenizer], which has both.
 *
 * @throws TokenizerError when the file is missing or a line is not two symbols with a space between
 */
public fun readMerges(file: File): List<Pair<String, String>> {
    // Any line end is one, as Python reads text files.
    val text = read(file).replace("\r\n", "\n").replace('\r', '\n')
    val lines = text.trimEnd('\n').split('\n')
    val header = if (lines[0].isEmpty() || lines[0].startsWith("#version")) 1 else 0
    return lines.drop(header).mapIndexed { index, line ->
        val space = line.indexOf(' ')
        if (space < 1 || space == line.length - 1 || line.indexOf(' ', space + 1) >= 0) {
            throw TokenizerError(
                "$file must have two symbols with a space between on every line, received " +
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
        // The reason alone: what the runtime says around it names the file again.
        val reason = error.message.orEmpty().substringAfterLast('(').removeSuffix(")")
        throw TokenizerError(
            "The tokenizer file $file cannot be read: $reason. A BART has a vocabulary " +
                "(vocabulary.json or vocab.json) and a merges.txt.",
        )
    }
    val text = CharBuffer.allocate(bytes.remaining())
    val decoder = Charsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
    if (decoder.decode(bytes, text, true).isError) {
        throw TokenizerError(
            "The tokenizer file $file must be UTF-8, received another byte at position " +
                "${bytes.position()}. Copy the file again from its checkpoint.",
        )
    }
    text.flip()
    return text.toString()
}
