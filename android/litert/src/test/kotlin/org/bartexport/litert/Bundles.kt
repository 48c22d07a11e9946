/*
 * Bundles for tests of the installer, written without the code under test, and a source that
 * counts and interrupts reads.
 */
package org.bartexport.litert

import java.io.File
import java.io.FilterInputStream
import java.io.InputStream
import java.security.MessageDigest
import java.util.Random
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonObject

internal const val MODEL = "tflite/model.tflite"
internal const val MERGES = "tokenizer/merges.txt"
internal const val MODEL_BYTES = 3_000_017

/**
 * Writes a bundle of random bytes and returns its directory.
 *
 * @param claimed wrong sizes for the manifest, by name
 */
internal fun writeBundle(
    directory: File,
    seed: Long,
    claimed: Map<String, Long> = emptyMap(),
): File {
    val random = Random(seed)
    val files = mapOf(MODEL to MODEL_BYTES, MERGES to 70_001, "golden.json" to 0, "a/b" to 1)
        .mapValues { (_, size) -> ByteArray(size).also(random::nextBytes) }
    for ((name, content) in files) {
        File(directory, name).also { it.parentFile.mkdirs() }.writeBytes(content)
    }
    val manifest = manifest {
        for ((name, content) in files) {
            putJsonObject(name) {
                put("bytes", claimed[name] ?: content.size.toLong())
                put("sha256", sha256(content))
            }
        }
    }
    val unsealed = PRETTY.encodeToString(JsonObject.serializer(), manifest)
    val sealed = unsealed.replaceFirst(UNSEALED, sha256(unsealed.toByteArray()))
    File(directory, "manifest.json").writeText(sealed)
    return directory
}

/** A source that records reads and calls [during] with the number of bytes after every block. */
internal class Watched(private val source: BundleSource, private val during: (Long) -> Unit = {}) :
    BundleSource {
    val opened = mutableListOf<String>()
    var bytes = 0L
        private set

    override fun open(name: String): InputStream {
        synchronized(opened) { opened += name }
        val counts = name != "manifest.json"
        return object : FilterInputStream(source.open(name)) {
            override fun read(block: ByteArray, offset: Int, length: Int): Int =
                super.read(block, offset, length).also { count ->
                    if (counts && count > 0) {
                        bytes += count
                        during(bytes)
                    }
                }
        }
    }

    override fun toString(): String = source.toString()
}

internal fun sha256(content: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(content).joinToString("") { "%02x".format(it) }

private fun manifest(files: kotlinx.serialization.json.JsonObjectBuilder.() -> Unit) =
    buildJsonObject {
        put("format_version", 1)
        put("manifest_sha256", UNSEALED)
        put("preset", "bart_small")
        putJsonObject("source") { }
        put("config", Json.parseToJsonElement(CONFIG))
        putJsonObject("generation") { }
        put("encoder_sequence_length", 12)
        putJsonObject("special_token_ids") { }
        put("parameter_count", 1234)
        putJsonObject("tokenizer") {
            put("vocabulary", "a/b")
            put("merges", MERGES)
        }
        putJsonObject("signatures") { }
        putJsonObject("tools") { }
        put("exports", 1)
        putJsonObject("files", files)
        for (name in listOf("verification", "measurements", "sensitivity")) {
            put(name, JsonArray(emptyList()))
        }
    }

private const val CONFIG = """{"vocabulary_size": 261, "num_layers": 1, "num_heads": 1,
    "hidden_dim": 8, "intermediate_dim": 8, "dropout": 0.1, "max_sequence_length": 16,
    "decoder_num_layers": 1, "decoder_num_heads": 1, "decoder_intermediate_dim": 8,
    "scale_embedding": false, "activation_function": "gelu", "final_logits_bias": false}"""
private val PRETTY = Json { prettyPrint = true }
private val UNSEALED = "0".repeat(64)
