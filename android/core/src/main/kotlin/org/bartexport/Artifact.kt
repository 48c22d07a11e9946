/*
 * An artifact directory on a device; mirrors the reading half of bart_export/artifact/artifact.py
 * and the choice of a file in bart_export/runtime/engine_choice.py.
 */
package org.bartexport

import java.io.File
import java.io.IOException
import java.nio.file.Files
import java.nio.file.attribute.BasicFileAttributes
import java.security.MessageDigest
import java.util.concurrent.TimeUnit
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json
import org.bartexport.text.BartTokenizer

/**
 * An artifact directory with a valid manifest. Thread-safe.
 *
 * @property config the model's architecture
 * @property generation the default generation settings
 */
public class Artifact private constructor(
    public val directory: File,
    public val manifest: Manifest,
    public val config: BartConfig,
    public val generation: GenerationConfig,
) {
    // The files verified so far, including those that earlier processes verified.
    private val stamps: MutableMap<String, Stamp> by lazy { readStamps().toMutableMap() }

    /**
     * Verifies a file's hash and returns the file.
     *
     * A file that this or an earlier process verified is not hashed again unless its size,
     * modification time or identity has changed, or [rehash] is set.
     *
     * @param name the file's name in the manifest
     * @throws ArtifactError if the manifest does not list the file, or it is missing or modified
     */
    @Synchronized
    public fun path(name: String, rehash: Boolean = false): File {
        val expected = entry(name)
        val file = File(directory, name)
        try {
            if (!file.canonicalFile.startsWith(directory.canonicalFile)) {
                throw ArtifactError("$file is a link that leads outside the artifact. $AGAIN")
            }
            val attributes = Files.readAttributes(file.toPath(), BasicFileAttributes::class.java)
            val stamp = Stamp(attributes, expected.sha256)
            if (!rehash && stamps[name] == stamp) return file
            val sizeMatches = attributes.isRegularFile && attributes.size() == expected.bytes
            if (!sizeMatches || sha256(file) != expected.sha256) {
                val difference = if (sizeMatches) {
                    "its hash differs"
                } else {
                    "${attributes.size()} bytes instead of ${expected.bytes}"
                }
                throw ArtifactError(
                    "$file was modified or damaged after the export ($difference). $AGAIN",
                )
            }
            stamps[name] = stamp
        } catch (error: IOException) {
            throw ArtifactError("$file is missing or cannot be read. $AGAIN", error)
        }
        writeStamps()
        return file
    }

    /**
     * Returns the names of the `.tflite` files with static shapes that were verified with LiteRT,
     * in manifest order.
     *
     * Versions are not compared: the manifest records versions of the Python package, and the
     * Android library is numbered separately.
     */
    public fun staticFiles(): List<String> = manifest.files
        .filterValues { it.target == TFLITE && it.shapes != null && LITERT in it.runtimes }
        .keys.toList()

    /**
     * Returns the first of [staticFiles].
     *
     * @throws ArtifactError if there is none
     */
    public fun staticFile(): String = staticFiles().firstOrNull() ?: throw ArtifactError(
        "$directory has no static .tflite file that LiteRT can run. Export one with: " +
            "bart-export --preset ${manifest.preset} --target tflite --android",
    )

    /**
     * Returns the buckets of a static build, in manifest order.
     *
     * @throws ArtifactError if the file is not one of [staticFiles], or its signatures are invalid
     */
    public fun buckets(file: String): List<Bucket> {
        val entry = entry(file)
        val signatures = entry.signatures
        if (entry.target != TFLITE || entry.shapes == null || signatures == null) {
            throw ArtifactError("$file is not a static .tflite file. ${staticHint()}")
        }
        if (LITERT !in entry.runtimes) {
            val reason = entry.refusals[LITERT] ?: "the export did not verify it"
            throw ArtifactError("$file must not be run with $LITERT: $reason. ${staticHint()}")
        }
        return try {
            readBuckets(signatures)
        } catch (error: ConfigurationError) {
            throw ArtifactError(
                "${File(directory, MANIFEST_NAME)} is damaged: $file: ${error.message} $AGAIN",
                error,
            )
        }
    }

    /**
     * Opens the tokenizer.
     *
     * @throws ArtifactError if a file is missing or modified
     * @throws TokenizerError if a file is invalid, or the two do not match
     */
    public fun tokenizer(): BartTokenizer = BartTokenizer.fromFiles(
        path(manifest.tokenizer.vocabulary),
        path(manifest.tokenizer.merges),
        manifest.tokenizer.addedTokens,
        manifest.tokenizer.addPrefixSpace,
    )

    internal fun entry(name: String): FileEntry = manifest.files[name] ?: throw ArtifactError(
        "$directory has no file $name. It has: ${manifest.files.keys.joinToString()}.",
    )

    private fun staticHint(): String = staticFiles().joinToString().ifEmpty { null }
        ?.let { "Use one of: $it." }
        ?: "Export one with: bart-export --preset ${manifest.preset} --target tflite --android."

    private fun readStamps(): Map<String, Stamp> = try {
        Json.decodeFromString(File(File(directory, CACHE), STAMPS).readText())
    } catch (_: IOException) {
        emptyMap()
    } catch (_: SerializationException) {
        emptyMap()
    }

    /** Writes the stamps; if the artifact is read-only, the next process hashes its files again. */
    private fun writeStamps() {
        val cache = File(directory, CACHE)
        try {
            cache.mkdir()
            // Renamed into place, because other processes may write it too.
            val draft = File.createTempFile(STAMPS, null, cache)
            try {
                draft.writeText(Json.encodeToString<Map<String, Stamp>>(stamps))
                draft.renameTo(File(cache, STAMPS))
            } finally {
                draft.delete()
            }
        } catch (_: IOException) {
            return
        }
    }

    public companion object {
        /**
         * Opens an artifact and reads its manifest.
         *
         * @throws ArtifactError if the manifest is missing, damaged, edited, incomplete, or in
         *     another format
         */
        public fun open(directory: File): Artifact {
            val file = File(directory, MANIFEST_NAME)
            if (!directory.isDirectory) {
                throw ArtifactError(
                    "$directory must be an artifact, a directory with a $MANIFEST_NAME, but is " +
                        "not a directory. Export one with: bart-export --preset NAME --android " +
                        "DIRECTORY",
                )
            }
            if (!file.exists()) {
                throw ArtifactError(
                    "$directory has no $MANIFEST_NAME, so it is not a complete artifact. $AGAIN",
                )
            }
            val read = readManifest(file)
            return Artifact(directory, read.manifest, read.config, read.generation)
        }
    }
}

/** A verified file's hash, and the attributes that show whether it has changed since. */
@Serializable
private data class Stamp(
    val bytes: Long,
    val changed: Long,
    val identity: String,
    val sha256: String,
) {
    constructor(attributes: BasicFileAttributes, sha256: String) : this(
        attributes.size(),
        attributes.lastModifiedTime().to(TimeUnit.NANOSECONDS),
        attributes.fileKey()?.toString().orEmpty(),
        sha256,
    )
}

/** Returns the SHA-256 of a file, lower-case hexadecimal. */
internal fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val buffer = ByteArray(BUFFER)
    file.inputStream().use { stream ->
        while (true) {
            val length = stream.read(buffer)
            if (length < 0) break
            digest.update(buffer, 0, length)
        }
    }
    return digest.digest().toHexadecimal()
}

private const val BUFFER = 1 shl 20
private const val TFLITE = "tflite"
private const val LITERT = "ai-edge-litert"
private const val CACHE = ".cache"

// Python's readers keep their own stamps, in another form, in hashed.json.
private const val STAMPS = "verified.json"
