/*
 * The manifest of an artifact, read and checked; mirrors the reading half of
 * bart_export/artifact/manifest.py (format_version 1, described in artifacts/README.md).
 *
 * A bundle may come from anywhere, so a manifest is bounded before it is parsed, and each name in it
 * before it becomes a path. Artifact.kt compares the files themselves with what is read here.
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
 * What manifest.json says, as far as a phone needs it; `config` and `generation` are the
 * [Artifact]'s.
 *
 * @property manifestSha256 the seal, which names this very artifact
 * @property preset what the user of bart-export named
 * @property encoderSequenceLength most tokens of a source, start and end included, that the model
 *     was prepared for
 * @property parameterCount trained values, the tied embedding once
 * @property specialTokenIds `start_token_id` and so on
 * @property files by path, relative to the directory, with `/`
 * @property licence what the checkpoint says of its licence, null for nothing
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
    /** The bytes of all [files]; what is read of a manifest cannot overflow here. */
    val totalBytes: Long
        get() = files.values.sumOf { it.bytes }
}

/**
 * The tokenizer: paths of its two files in the artifact, and what changes ids beside them.
 *
 * @property addPrefixSpace whether a text gets a space at its beginning if it has none there
 * @property addedTokens the checkpoint's own; artifacts that do not say have none
 */
@Serializable
public data class TokenizerFiles(
    val vocabulary: String,
    val merges: String,
    @SerialName("add_prefix_space") val addPrefixSpace: Boolean = false,
    @SerialName("added_tokens") val addedTokens: List<AddedToken> = emptyList(),
)

/**
 * A file of the artifact; the fields after [sha256] are those of exported files.
 *
 * @property sha256 in hexadecimal, lower case
 * @property target "tflite", "saved_model" or "edgetpu"
 * @property recipe how weights are stored, as in `dynamic_wi8_afp32`
 * @property tolerance metric to the bound that the file was held to
 * @property runtimes runtime to the oldest version that is known to compute this file rightly
 * @property refusals runtime to why it must not be used for this file
 * @property shapes what a static build was made for, null for any other file
 * @property signatures of a static build, see [readBuckets]
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
)

/** The sizes of a static build's buckets. */
@Serializable
public data class StaticShapes(
    @SerialName("source_lengths") val sourceLengths: List<Int>,
    @SerialName("target_length") val targetLength: Int,
    @SerialName("num_beams") val numBeams: List<Int>,
)

/** Name of the file whose presence makes a directory an artifact. */
public const val MANIFEST_NAME: String = "manifest.json"

/** The most bytes that a manifest may have: real ones have less than a hundredth of it. */
public const val MAX_MANIFEST_BYTES: Int = 16 shl 20

/** The one format of an artifact that this library reads. */
public const val FORMAT_VERSION: Int = 1

/** A manifest and the two records in it that have no unknown fields. */
internal class ReadManifest(
    val manifest: Manifest,
    val config: BartConfig,
    val generation: GenerationConfig,
)

/** Reads and checks the manifest in a file; see the other function of this name. */
internal fun readManifest(file: File): ReadManifest {
    val text = try {
        if (!file.isFile) throw IOException("it is no regular file")
        file.inputStream().use { it.readManifestBytes() }
    } catch (error: IOException) {
        throw ArtifactError("$file cannot be read: ${error.message}. $AGAIN", error)
    }
    return readManifest(text, file.path)
}

/**
 * Reads the bytes of a manifest, wherever they are from.
 *
 * @throws IOException if they cannot be read, or are more than [MAX_MANIFEST_BYTES]
 */
public fun InputStream.readManifestBytes(): ByteArray {
    val content = ByteArrayOutputStream()
    val block = ByteArray(MANIFEST_BLOCK)
    while (true) {
        val count = read(block)
        if (count < 0) return content.toByteArray()
        if (content.size() + count > MAX_MANIFEST_BYTES) {
            throw IOException("a manifest has at most $MAX_MANIFEST_BYTES bytes")
        }
        content.write(block, 0, count)
    }
}

/**
 * Reads and checks a manifest that is not, or not yet, in an artifact directory.
 *
 * @param text its bytes
 * @param place where they are from, for the errors
 * @throws ArtifactError if it is not JSON, of another format, edited, lacks a field, or names a
 *     file outside of its directory
 */
public fun manifestOf(text: ByteArray, place: String): Manifest = readManifest(text, place).manifest

private fun readManifest(text: ByteArray, place: String): ReadManifest {
    val content = try {
        if (depth(text) > MAX_DEPTH) throw SerializationException("it nests over $MAX_DEPTH deep")
        Json.parseToJsonElement(text.toString(Charsets.UTF_8))
    } catch (error: SerializationException) {
        throw ArtifactError("$place is no JSON: ${error.firstLine()}. $AGAIN", error)
    }
    val version = (content as? JsonObject)?.get("format_version")
    if (content !is JsonObject || !isVersion(version)) {
        throw ArtifactError(
            "$place must have format_version $FORMAT_VERSION, received ${version.shown()}. " +
                "Export the artifact again with the bart-export that this app came with, or " +
                "update the app.",
        )
    }
    if (!sealHolds(text)) {
        throw ArtifactError(
            "$place was edited or damaged after the export: its manifest_sha256 does not match. " +
                AGAIN,
        )
    }
    val wrong = FIELDS.filterNot { (name, hasKind) -> content[name]?.let(hasKind) == true }.keys
    if (wrong.isNotEmpty()) {
        throw ArtifactError(
            "$place lacks ${wrong.joinToString()}, or has another type there. $AGAIN",
        )
    }
    return decode(place, content)
}

/** How deep JSON nests at most, without parsing it: a parser may run out of stack. */
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
 * Checks that names in a manifest are paths inside its directory, that none is the manifest's or a
 * reader's own, and that no two are one file where case does not count.
 *
 * @throws ConfigurationError with the name that is none
 */
internal fun checkNames(names: Collection<String>) {
    for (name in names) {
        val parts = name.split('/')
        if (!parts.all(::isOrdinary)) {
            throw ConfigurationError("it names $name, which is outside of its directory.")
        }
        val reserved = parts[0].startsWith('.') || name.equals(MANIFEST_NAME, ignoreCase = true)
        if (reserved || name.endsWith(PART, ignoreCase = true)) {
            throw ConfigurationError("it names $name, which is no file that an export makes.")
        }
    }
    val same = names.groupBy { it.lowercase(Locale.ROOT) }.values.firstOrNull { it.size > 1 }
    if (same != null) {
        val both = same.joinToString(" and ")
        throw ConfigurationError("it names $both, which differ by case only.")
    }
}

private fun isOrdinary(part: String): Boolean =
    part.isNotEmpty() && part != "." && part != ".." && part.none { it == '\\' || it.code == 0 }

/** Checks sizes and hashes of files, so that adding and comparing them needs no care. */
private fun checkFiles(files: Map<String, FileEntry>) {
    checkNames(files.keys)
    var total = 0L
    for ((name, entry) in files) {
        if (entry.bytes !in 0..MAX_BYTES - total) {
            throw ConfigurationError(
                "of $name, bytes must be 0 to $MAX_BYTES for all files together, received " +
                    "${entry.bytes}.",
            )
        }
        if (!SHA256.matches(entry.sha256)) {
            throw ConfigurationError("of $name, sha256 must be 64 hexadecimal digits.")
        }
        total += entry.bytes
    }
}

/** What to do about a damaged artifact. */
internal const val AGAIN: String = "Export or install the artifact again."

private fun decode(place: String, content: JsonObject): ReadManifest = try {
    val manifest = MANIFEST_JSON.decodeFromJsonElement<Manifest>(content)
    checkFiles(manifest.files)
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

/** Refuses an added token with a field that this reader does not know: it would change ids. */
private fun checkAddedTokens(content: JsonObject) {
    val tokens = content.getValue("tokenizer").jsonObject["added_tokens"] as? JsonArray
    for (token in tokens.orEmpty()) {
        decodeStrictly("added_tokens", token.jsonObject, AddedToken.serializer())
    }
}

/** Decodes a record in which an unknown field would change what the model computes. */
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

/** Whether the digest in a manifest is that of its bytes with the digest itself as zeros. */
private fun sealHolds(text: ByteArray): Boolean {
    // Latin-1 maps bytes to characters one to one, there and back.
    val characters = text.toString(Charsets.ISO_8859_1)
    val seal = SEAL.findAll(characters).singleOrNull()?.groups?.get(1) ?: return false
    val unsealed = characters.replaceRange(seal.range, "0".repeat(seal.value.length))
    val digest = MessageDigest.getInstance("SHA-256")
    return digest.digest(unsealed.toByteArray(Charsets.ISO_8859_1)).toHexadecimal() == seal.value
}

/** Digits of bytes, lower case. */
internal fun ByteArray.toHexadecimal(): String =
    joinToString("") { (it.toInt() and BYTE).toString(HEXADECIMAL).padStart(2, '0') }

private const val BYTE = 0xff
private const val HEXADECIMAL = 16
private const val MANIFEST_BLOCK = 1 shl 16

/** The suffix of a file that is not yet installed. */
public const val PART: String = ".part"

// All that a file system can hold, and far from overflowing a Long.
private const val MAX_BYTES = 1L shl 62

// Objects and arrays inside each other; real manifests have six.
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
