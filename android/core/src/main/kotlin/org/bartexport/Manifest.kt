/*
 * The manifest of an artifact; mirrors the reading half of bart_export/artifact/manifest.py
 * (format_version 1, described in artifacts/README.md).
 *
 * Bundles are untrusted: a manifest's size and nesting are limited before it is parsed, and file
 * names are checked before they become paths.
 */
package org.bartexport

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest
import java.util.Locale
import kotlinx.serialization.DeserializationStrategy
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.decodeFromJsonElement
import kotlinx.serialization.json.intOrNull
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.longOrNull
import org.bartexport.text.AddedToken

/**
 * The fields of manifest.json that a device needs, except `config` and `generation`, which are
 * properties of [Artifact].
 *
 * @property manifestSha256 the hash of the manifest, which identifies the artifact
 * @property preset the preset that was exported
 * @property encoderSequenceLength maximum number of source tokens, including start and end
 * @property parameterCount number of weights; the tied embedding counts once
 * @property specialTokenIds ids by name, such as `start_token_id`
 * @property files entries by relative path, with `/` as the separator
 * @property licence the checkpoint's licence, or null if unknown
 */
@Serializable
public data class Manifest(
    @SerialName("format_version") val formatVersion: Int,
    @SerialName("manifest_sha256") val manifestSha256: String,
    val preset: String,
    @SerialName("encoder_sequence_length") val encoderSequenceLength: Int,
    @SerialName("parameter_count") val parameterCount: Long,
    @SerialName("special_token_ids") val specialTokenIds: Map<String, Int>,
    val tokenizer: TokenizerFiles,
    val files: Map<String, FileEntry>,
    val licence: String? = null,
) {
    /** Total size of all [files]; manifests with a sum above 2^62 are rejected when read. */
    val totalBytes: Long
        get() = files.values.sumOf { it.bytes }
}

/**
 * The tokenizer's files, relative to the artifact, and its options.
 *
 * @property addPrefixSpace whether to prepend a space to texts that do not start with one
 * @property addedTokens the checkpoint's added tokens
 */
@Serializable
public data class TokenizerFiles(
    val vocabulary: String,
    val merges: String,
    @SerialName("add_prefix_space") val addPrefixSpace: Boolean = false,
    @SerialName("added_tokens") val addedTokens: List<AddedToken> = emptyList(),
)

/**
 * A file of the artifact; only exported models have the fields after [sha256].
 *
 * @property sha256 lower-case hexadecimal
 * @property target "tflite", "saved_model" or "edgetpu"
 * @property recipe the quantization recipe, such as `dynamic_wi8_afp32`
 * @property tolerance the bound of each metric that the export verified
 * @property runtimes the oldest verified version of each runtime
 * @property refusals why a runtime must not run this file, by runtime
 * @property shapes the sizes of a static build, or null for any other file
 * @property signatures the signatures of a static build, see [readBuckets]
 * @property contractVersion the contract version of a model's signatures
 */
@Serializable
public data class FileEntry(
    val bytes: Long,
    val sha256: String,
    val target: String? = null,
    val recipe: String? = null,
    val tolerance: Map<String, Double> = emptyMap(),
    val runtimes: Map<String, String> = emptyMap(),
    val refusals: Map<String, String> = emptyMap(),
    val shapes: StaticShapes? = null,
    val signatures: JsonObject? = null,
    @SerialName("contract_version") val contractVersion: Int = 1,
)

/** The sizes of a static build's buckets. */
@Serializable
public data class StaticShapes(
    @SerialName("source_lengths") val sourceLengths: List<Int>,
    @SerialName("target_length") val targetLength: Int,
    @SerialName("num_beams") val numBeams: List<Int>,
)

/** Name of the manifest in an artifact's directory. */
public const val MANIFEST_NAME: String = "manifest.json"

/** Maximum size of a manifest, in bytes; real manifests are smaller than 1 % of this. */
internal const val MAX_MANIFEST_BYTES: Int = 16 shl 20

/** The artifact format that this library reads. */
internal const val FORMAT_VERSION: Int = 1

/** A manifest with its `config` and `generation`. */
internal class ReadManifest(
    val manifest: Manifest,
    val config: BartConfig,
    val generation: GenerationConfig,
)

internal fun readManifest(file: File): ReadManifest {
    val text = try {
        if (!file.isFile) throw IOException("it is not a regular file")
        file.inputStream().use { it.readManifestBytes() }
    } catch (error: IOException) {
        throw ArtifactError("$file cannot be read: ${error.message}. $AGAIN", error)
    }
    return readManifest(text, file.path)
}

/**
 * Reads a manifest's bytes.
 *
 * @throws IOException if reading fails, or there are more than [MAX_MANIFEST_BYTES]
 */
public fun InputStream.readManifestBytes(): ByteArray {
    val content = ByteArrayOutputStream()
    val block = ByteArray(MANIFEST_BLOCK)
    while (true) {
        val count = read(block)
        if (count < 0) return content.toByteArray()
        if (content.size() + count > MAX_MANIFEST_BYTES) {
            throw IOException("it has more than $MAX_MANIFEST_BYTES bytes")
        }
        content.write(block, 0, count)
    }
}

/**
 * Parses and validates a manifest, for example one of a bundle that is not installed yet.
 *
 * @param text the file's bytes, UTF-8
 * @param place the file's location, for error messages
 * @throws ArtifactError if it is not JSON, has another format or a newer contract, was edited,
 *     lacks a field, or names a file outside its directory
 */
public fun manifestOf(text: ByteArray, place: String): Manifest = readManifest(text, place).manifest

private fun readManifest(text: ByteArray, place: String): ReadManifest {
    val content = try {
        if (depth(text) > MAX_DEPTH) throw SerializationException("it nests deeper than $MAX_DEPTH")
        Json.parseToJsonElement(text.toString(Charsets.UTF_8))
    } catch (error: SerializationException) {
        throw ArtifactError("$place is not valid JSON: ${error.firstLine()}. $AGAIN", error)
    }
    val version = (content as? JsonObject)?.get("format_version")
    if (content !is JsonObject || !isVersion(version)) {
        throw ArtifactError(
            "$place must have format_version $FORMAT_VERSION, received ${version.shown()}. " +
                "Export the artifact with this app's version of bart-export, or update the app.",
        )
    }
    if (!sealHolds(text)) {
        throw ArtifactError(
            "$place was modified or damaged after the export: its manifest_sha256 does not " +
                "match. $AGAIN",
        )
    }
    val wrong = FIELDS.filterNot { (name, hasType) -> content[name]?.let(hasType) == true }.keys
    if (wrong.isNotEmpty()) {
        throw ArtifactError(
            "$place has a missing or wrongly typed field: ${wrong.joinToString()}. $AGAIN",
        )
    }
    return decode(place, content)
}

/** Returns the nesting depth of a JSON text; parsing a deep one could overflow the stack. */
private fun depth(text: ByteArray): Int {
    var depth = 0
    var deepest = 0
    var quoted = false
    var escaped = false
    for (byte in text) {
        val character = byte.toInt().toChar()
        when {
            escaped -> escaped = false
            quoted && character == '\\' -> escaped = true
            character == '"' -> quoted = !quoted
            quoted -> Unit
            character in "[{" -> deepest = maxOf(deepest, ++depth)
            character in "]}" -> depth--
        }
    }
    return deepest
}

private fun JsonElement?.shown(): String = toString().let {
    if (it.length > SHOWN) it.take(SHOWN) + "…" else it
}

/**
 * Checks that file names are relative paths inside the directory, not reserved, and distinct on
 * case-insensitive file systems.
 *
 * @throws ConfigurationError with the invalid name
 */
internal fun checkNames(names: Collection<String>) {
    for (name in names) {
        val parts = name.split('/')
        if (!parts.all(::isOrdinary)) {
            throw ConfigurationError("it names $name, which is outside its directory.")
        }
        val reserved = parts[0].startsWith('.') || name.equals(MANIFEST_NAME, ignoreCase = true)
        if (reserved || name.endsWith(PART, ignoreCase = true)) {
            throw ConfigurationError("it names $name, which is a reserved name.")
        }
    }
    val same = names.groupBy { it.lowercase(Locale.ROOT) }.values.firstOrNull { it.size > 1 }
    if (same != null) {
        val both = same.joinToString(" and ")
        throw ConfigurationError("it names $both, which differ only in case.")
    }
}

private fun isOrdinary(part: String): Boolean =
    part.isNotEmpty() && part != "." && part != ".." && part.none { it == '\\' || it.code == 0 }

/** Checks names, sizes and hashes, so that sums of sizes cannot overflow. */
private fun checkFiles(files: Map<String, FileEntry>) {
    checkNames(files.keys)
    var total = 0L
    for ((name, entry) in files) {
        if (entry.bytes !in 0..MAX_BYTES - total) {
            throw ConfigurationError(
                "bytes of $name must be at least 0, and those of all files together at most " +
                    "$MAX_BYTES, received ${entry.bytes}.",
            )
        }
        if (!SHA256.matches(entry.sha256)) {
            throw ConfigurationError("sha256 of $name must be 64 hexadecimal digits.")
        }
        total += entry.bytes
    }
}

/** Checks that this library knows the signatures of every file. */
private fun checkContracts(place: String, files: Map<String, FileEntry>) {
    for ((name, entry) in files) {
        if (entry.contractVersion !in 1..CONTRACT_VERSION) {
            throw ArtifactError(
                "$place: contract_version of $name must be from 1 to $CONTRACT_VERSION, received " +
                    "${entry.contractVersion}. Update the bart-export library for a newer one.",
            )
        }
    }
}

/** The advice in errors about damaged artifacts. */
internal const val AGAIN: String = "Export or install the artifact again."

private fun decode(place: String, content: JsonObject): ReadManifest = try {
    val manifest = MANIFEST_JSON.decodeFromJsonElement<Manifest>(content)
    checkFiles(manifest.files)
    checkContracts(place, manifest.files)
    checkAddedTokens(content)
    ReadManifest(
        manifest,
        decodeStrictly("config", content.getValue("config").jsonObject, BartConfig.serializer()),
        decodeStrictly(
            "generation",
            content.getValue("generation").jsonObject,
            GenerationConfig.serializer(),
        ),
    )
} catch (error: ConfigurationError) {
    throw ArtifactError("$place is damaged: ${error.message} $AGAIN", error)
} catch (error: SerializationException) {
    throw ArtifactError("$place is damaged: ${error.firstLine()}. $AGAIN", error)
}

/** Rejects added tokens with unknown fields, which would change token ids. */
private fun checkAddedTokens(content: JsonObject) {
    val tokens = content.getValue("tokenizer").jsonObject["added_tokens"] as? JsonArray
    for (token in tokens.orEmpty()) {
        decodeStrictly("added_tokens", token.jsonObject, AddedToken.serializer())
    }
}

/** Decodes a record, rejecting unknown fields because they would change what the model computes. */
internal fun <T> decodeStrictly(
    name: String,
    values: JsonObject,
    record: DeserializationStrategy<T>,
): T {
    val known = (0 until record.descriptor.elementsCount).map(record.descriptor::getElementName)
    val unknown = values.keys.firstOrNull { it !in known }
    if (unknown != null) {
        throw ConfigurationError(
            "Unknown parameter ${unknown.take(SHOWN)}=${values[unknown].shown()} in $name. " +
                "Known: ${known.joinToString()}.",
        )
    }
    return Json.decodeFromJsonElement(record, values)
}

/** Checks `manifest_sha256`, which is the hash of the file with its own digits replaced by 0. */
private fun sealHolds(text: ByteArray): Boolean {
    // Latin-1 maps bytes to characters one to one.
    val characters = text.toString(Charsets.ISO_8859_1)
    val seal = SEAL.findAll(characters).singleOrNull()?.groups?.get(1) ?: return false
    val unsealed = characters.replaceRange(seal.range, "0".repeat(seal.value.length))
    val digest = MessageDigest.getInstance("SHA-256")
    return digest.digest(unsealed.toByteArray(Charsets.ISO_8859_1)).toHexadecimal() == seal.value
}

internal fun ByteArray.toHexadecimal(): String =
    joinToString("") { (it.toInt() and BYTE).toString(HEXADECIMAL).padStart(2, '0') }

private const val BYTE = 0xff
private const val HEXADECIMAL = 16
private const val MANIFEST_BLOCK = 1 shl 16

/** Suffix of a file that is still being copied. */
public const val PART: String = ".part"

// More than any file system holds, and far from overflowing a Long.
private const val MAX_BYTES = 1L shl 62

// Levels of nesting; real manifests have six.
private const val MAX_DEPTH = 64
private const val SHOWN = 60
private val SHA256 = Regex("[0-9a-f]{64}")
private val SEAL = Regex("\"manifest_sha256\": \"([0-9a-f]{64})\"")

private fun isVersion(value: JsonElement?) =
    value is JsonPrimitive && !value.isString && value.intOrNull == FORMAT_VERSION

private val isText = { value: JsonElement -> value is JsonPrimitive && value.isString }
private val isInteger = { value: JsonElement ->
    value is JsonPrimitive && !value.isString && value.longOrNull != null
}
private val isObject = { value: JsonElement -> value is JsonObject }
private val isArray = { value: JsonElement -> value is JsonArray }

private val FIELDS = mapOf(
    "format_version" to isInteger,
    "preset" to isText,
    "source" to isObject,
    "config" to isObject,
    "generation" to isObject,
    "encoder_sequence_length" to isInteger,
    "special_token_ids" to isObject,
    "parameter_count" to isInteger,
    "tokenizer" to isObject,
    "signatures" to isObject,
    "files" to isObject,
    "tools" to isObject,
    "verification" to isArray,
    "measurements" to isArray,
    "sensitivity" to isArray,
    "exports" to isInteger,
)
