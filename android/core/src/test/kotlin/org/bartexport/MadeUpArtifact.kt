/*
 * A small artifact, written without the code under test: a placeholder for a static model, a
 * tokenizer of the 256 bytes, and a manifest.
 */
package org.bartexport

import java.io.File
import java.security.MessageDigest
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonObjectBuilder
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonObject
import org.bartexport.text.BYTE_SYMBOLS
import org.bartexport.text.SPECIAL_TOKENS

internal const val MODEL = "tflite/small.static.tflite"
internal const val VOCABULARY = "tokenizer/vocabulary.json"
internal const val MERGES = "tokenizer/merges.txt"
internal const val GOLDEN = "golden.json"
internal const val VOCABULARY_SIZE = 261
internal val SMALL = Json.decodeFromString<BartConfig>(configOf(VOCABULARY_SIZE).toString())

/** Writes the artifact; [golden] is the content of golden.json. */
internal fun writeArtifact(
    directory: File,
    golden: String = "{\"cases\": []}",
    change: (JsonObject) -> JsonObject = { it },
): File {
    val tokens = SPECIAL_TOKENS + BYTE_SYMBOLS
    val vocabulary = tokens.withIndex().associate { (id, token) -> token to JsonPrimitive(id) }
    val files = mapOf(
        MODEL to "a model of some bytes",
        VOCABULARY to JsonObject(vocabulary).toString(),
        MERGES to "#version: 0.2\n",
        GOLDEN to golden,
    )
    for ((name, content) in files) {
        File(directory, name).also { it.parentFile.mkdirs() }.writeText(content)
    }
    writeManifest(directory, change(manifestOf(directory, files.keys)))
    return directory
}

/** Writes a manifest with its hash. */
internal fun writeManifest(directory: File, manifest: JsonObject) {
    val unsealed = PRETTY.encodeToString(JsonObject.serializer(), manifest)
    val seal = digits(unsealed.toByteArray())
    File(directory, "manifest.json").writeText(unsealed.replaceFirst(UNSEALED, seal))
}

internal fun JsonObject.with(name: String, value: JsonElement) = JsonObject(this + (name to value))

/** Returns a copy with a change to the object at a path of [names]. */
internal fun JsonObject.at(vararg names: String, change: (JsonObject) -> JsonObject): JsonObject {
    if (names.isEmpty()) return change(this)
    val child = getValue(names[0]) as JsonObject
    return with(names[0], child.at(*names.drop(1).toTypedArray(), change = change))
}

private val PRETTY = Json { prettyPrint = true }
private val UNSEALED = "0".repeat(64)

private fun digits(content: ByteArray) = MessageDigest.getInstance("SHA-256").digest(content)
    .joinToString("") { "%02x".format(it) }

private fun manifestOf(directory: File, names: Set<String>) = buildJsonObject {
    put("format_version", 1)
    put("manifest_sha256", UNSEALED)
    put("preset", "bart_small")
    putJsonObject("source") { put("handle", "bart_small") }
    put("config", configOf(VOCABULARY_SIZE))
    put("parameter_count", 1234)
    putJsonObject("generation") {
        put("max_length", 16)
        put("forced_bos_token_id", 0)
    }
    put("encoder_sequence_length", 12)
    putJsonObject("special_token_ids") { put("start_token_id", 0) }
    putJsonObject("tokenizer") {
        put("vocabulary", VOCABULARY)
        put("merges", MERGES)
    }
    putJsonObject("signatures") { putJsonObject("tflite") { put("encode", "with words") } }
    putJsonObject("tools") { put("bart-export", "0.1.0") }
    put("exports", 1)
    putJsonObject("files") {
        for (name in names) {
            putJsonObject(name) {
                val content = File(directory, name).readBytes()
                put("bytes", content.size)
                put("sha256", digits(content))
                if (name == MODEL) describeModel()
            }
        }
    }
    for (name in listOf("verification", "measurements", "sensitivity")) {
        put(name, JsonArray(emptyList()))
    }
}

private fun JsonObjectBuilder.describeModel() {
    put("target", "tflite")
    put("recipe", "small")
    putJsonObject("tolerance") { put("kl", 0.5) }
    putJsonObject("runtimes") { put("ai-edge-litert", "2.3.0") }
    putJsonObject("refusals") { put("tflite-runtime", "it cannot") }
    put("contract_version", 2)
    putJsonObject("shapes") {
        put("source_lengths", ints(8, 16))
        put("target_length", 16)
        put("num_beams", ints(1, 4))
    }
    put("signatures", signaturesOf(listOf(8, 16), listOf(1, 4), 16))
}

/** The signatures of a static build with one layer and one head of size 2, for one text. */
internal fun signaturesOf(
    sources: List<Int>,
    beams: List<Int>,
    capacity: Int,
    version: Int = 2,
    draft: Int = 0,
) = buildJsonObject {
    for (source in sources) {
        val crossKey = if (version > 1) listOf(2, source) else listOf(source, 2)
        putJsonObject("encode_$source") {
            put("signature", "encode")
            putJsonObject("sizes") { put("source", source) }
            putJsonObject("inputs") {
                put("encoder_token_ids", tensor("int32", 1, source))
                put("encoder_padding_mask", tensor("int32", 1, source))
            }
            putJsonObject("outputs") { putCross(crossKey, source) }
        }
        for (rows in beams) {
            putJsonObject("decode_${source}_$rows") {
                put("signature", if (rows > 1) "decode" else "decode_single")
                putJsonObject("sizes") {
                    put("source", source)
                    put("beams", rows)
                    put("capacity", capacity)
                    if (version > 1) {
                        put("sources", 1)
                        put("rows", rows)
                    }
                }
                putJsonObject("inputs") {
                    val positions = if (version > 1) rows else 1
                    put("decoder_token_ids", tensor("int32", rows / positions, positions))
                    put("position", tensor("int32", positions))
                    if (rows > 1 && version == 1) put("beam_index", tensor("int32", rows))
                    put("encoder_padding_mask", tensor("int32", 1, source))
                    putCross(crossKey, source)
                    putCaches(rows, capacity)
                }
                putJsonObject("outputs") {
                    put("logits", tensor("float32", rows, VOCABULARY_SIZE))
                    putCaches(rows, if (version > 1) 1 else capacity)
                }
            }
        }
        if (draft > 0) {
            putJsonObject("decode_draft_$source") { putDraft(source, draft, capacity) }
        }
    }
}

private fun JsonObjectBuilder.putDraft(source: Int, draft: Int, capacity: Int) {
    put("signature", "decode_draft")
    putJsonObject("sizes") {
        put("source", source)
        put("draft", draft)
        put("capacity", capacity)
    }
    putJsonObject("inputs") {
        put("decoder_token_ids", tensor("int32", 1, draft))
        put("position", tensor("int32", draft))
        put("encoder_padding_mask", tensor("int32", 1, source))
        putCross(listOf(2, source), source)
        putCaches(1, capacity)
    }
    putJsonObject("outputs") {
        put("logits", tensor("float32", draft, VOCABULARY_SIZE))
        putCaches(1, draft)
    }
}

private fun JsonObjectBuilder.putCross(key: List<Int>, source: Int) {
    put("cross_key_0", tensor("float32", 1, 1, *key.toIntArray()))
    put("cross_value_0", tensor("float32", 1, 1, source, 2))
}

private fun JsonObjectBuilder.putCaches(rows: Int, positions: Int) {
    put("self_key_0", tensor("float32", rows, 1, positions, 2))
    put("self_value_0", tensor("float32", rows, 1, positions, 2))
}

private fun tensor(dtype: String, vararg shape: Int) = buildJsonObject {
    put("dtype", dtype)
    put("shape", ints(*shape))
}

private fun ints(vararg values: Int) = JsonArray(values.map { JsonPrimitive(it) })

private fun configOf(vocabularySize: Int) = buildJsonObject {
    put("vocabulary_size", vocabularySize)
    for (name in listOf("num_layers", "num_heads", "decoder_num_layers", "decoder_num_heads")) {
        put(name, 1)
    }
    put("hidden_dim", 2)
    put("intermediate_dim", 2)
    put("decoder_intermediate_dim", 2)
    put("dropout", 0.1)
    put("max_sequence_length", 256)
    put("scale_embedding", false)
    put("activation_function", "gelu")
    put("final_logits_bias", false)
}
