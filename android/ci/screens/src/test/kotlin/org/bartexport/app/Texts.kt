/*
 * Texts, and what Python makes of them with the file of the very bundle that the app installs.
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

/** What tools/android_fixtures.py wrote, in its order. */
val HEADLINES: List<Headlines> by lazy {
    File(folder("bart_export.build"), "generations.jsonl").readLines().map { line ->
        val row = Json.parseToJsonElement(line).jsonObject
        Headlines(row.string("text"), row.answer("greedy"), row.answer("beams"))
    }
}

/** How many tokens the model's tokenizer makes of a text, those of start and end included. */
fun tokensOf(text: String): Int = TOKENIZER.tokenize(text).size + 2

private val TOKENIZER by lazy {
    Artifact.open(File(folder("bart_export.build"), "bart_mini_en")).tokenizer()
}

private fun JsonObject.answer(name: String) = getValue(name).jsonObject.string("text")

private fun JsonObject.string(name: String) = getValue(name).jsonPrimitive.content
