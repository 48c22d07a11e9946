/*
 * Texts with Python's results for the same bundle.
 */
package org.bartexport.app

import java.io.File
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.bartexport.Artifact

/** A text with Python's headlines. */
class Headlines(val text: String, val greedy: String, val beams: String)

/** The texts and headlines of tools/android_fixtures.py. */
val HEADLINES: List<Headlines> by lazy {
    File(folder("bart_export.build"), "generations.jsonl").readLines().map { line ->
        val row = Json.parseToJsonElement(line).jsonObject
        Headlines(row.string("text"), row.answer("greedy"), row.answer("beams"))
    }
}

/** Returns a text's number of tokens, including start and end. */
fun tokensOf(text: String): Int = TOKENIZER.tokenize(text).size + 2

private val TOKENIZER by lazy {
    Artifact.open(File(folder("bart_export.build"), "bart_mini_en")).tokenizer()
}

private fun JsonObject.answer(name: String) = getValue(name).jsonObject.string("text")

private fun JsonObject.string(name: String) = getValue(name).jsonPrimitive.content
