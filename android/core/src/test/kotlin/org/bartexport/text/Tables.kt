/*
 * Data for tests of the tokenizer: BART's vocabulary, golden texts, Python's results, and files of
 * a minimal tokenizer.
 */
package org.bartexport.text

import java.io.File
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json

internal val GOLDEN = File(System.getProperty("bart_export.golden"))
internal val VOCABULARY = File(GOLDEN, "../vocabulary/vocabulary.json")
internal val MERGES = File(GOLDEN, "../vocabulary/merges.txt")

internal val bart: BartTokenizer by lazy { BartTokenizer.fromFiles(VOCABULARY, MERGES) }

/** The token id of each byte. */
internal val byteIds: List<Int> by lazy {
    val vocabulary = readVocabulary(VOCABULARY)
    BYTE_SYMBOLS.map(vocabulary::getValue)
}

@Serializable
internal class TokenizedText(val text: String, val ids: List<Int>)

internal fun goldenTexts(): List<TokenizedText> =
    Json.decodeFromString(File(GOLDEN, "tokenization.json").readText())

/** Returns a file written by tools/android_text.py. */
internal fun resource(name: String): String =
    checkNotNull(TokenizedText::class.java.getResource(name)) { "$name is missing" }.readText()

/** Returns a vocabulary of the special tokens, the bytes and one merge, as JSON. */
internal fun smallVocabulary(
    tokens: List<String> = SPECIAL_TOKENS + BYTE_SYMBOLS + "Ġa",
    change: Map<String, String> = emptyMap(),
): String {
    val ids = tokens.withIndex().associate { (id, token) -> token to id.toString() } + change
    return ids.entries.joinToString(", ", "{", "}") { (token, id) ->
        "${Json.encodeToString(token)}: $id"
    }
}

/** Writes the vocabulary and merges of a tokenizer. */
internal fun smallFiles(
    folder: File,
    vocabulary: String = smallVocabulary(),
    merges: String = "Ġ a\n",
): Pair<File, File> {
    val files = File(folder, "vocabulary.json") to File(folder, "merges.txt")
    files.first.writeText(vocabulary)
    files.second.writeText(merges)
    return files
}
