/*
 * The artifact directory, as an app has it on its storage; mirrors the reading half of
 * bart_export/artifact.py, and which files LiteRT may run as bart_export/runtime/engine_choice.py does.
 *
 * Files are handed out only while they lie inside the directory and their bytes are those that the
 * manifest names.
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
 * An artifact directory whose manifest has been read and checked; safe to use from several threads.
 *
 * @property directory where it is
 * @property config the model's architecture
 * @property generation settings to generate with where nothing else is asked for
 */
public class Artifact private constructor(
    public val directory: File,
    public val manifest: Manifest,
    public val config: BartConfig,
    public val generation: GenerationConfig,
) {
    // What was hashed before, here or by an earlier process.
    private val stamps: MutableMap<String, Stamp> by lazy { readStamps().toMutableMap() }

    /**
     * Returns a file after checking that its bytes are the manifest's.
     *
     * A file that was hashed before, by this process or an earlier one, and has kept its size,
     * time of change and identity is not read again, unless [rehash].
     *
     * @param name as the manifest has it, relative to the directory
     * @throws ArtifactError for a file the manifest does not name, that is missing, or was altered
     */
    @Synchronized
    public fun path(name: String, rehash: Boolean = false): File {
        val expected = entry(name)
        val file = File(directory, name)
        try {
            if (!file.canonicalFile.startsWith(directory.canonicalFile)) {
                throw ArtifactError("$file is a link that leaves the artifact's directory. $AGAIN")
            }
            val attributes = Files.readAttributes(file.toPath(), BasicFileAttributes::class.java)
            val stamp = Stamp(attributes, expected.sha256)
            if (!rehash && stamps[name] == stamp) return file
            val whole = attributes.isRegularFile && attributes.size() == expected.bytes
            if (!whole || sha256(file) != expected.sha256) {
                val how = if (whole) {
                    "other bytes"
                } else {
                    "${attributes.size()} bytes instead of ${expected.bytes}"
                }
                throw ArtifactError(
                    "$file is not the file its manifest names: it was altered or damaged " +
                        "($how). $AGAIN",
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
     * Returns the names of the `.tflite` files with fixed shapes that LiteRT computes rightly, in
     * the manifest's order.
     *
     * Versions are not compared: the manifest's are those of the Python package, Android's library
     * is numbered apart.
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
        "$directory has no .tflite file with fixed shapes that LiteRT can run. Export one with: " +
            "bart-export --preset ${manifest.preset} --target tflite --android",
    )

    /**
     * Returns the buckets of a static build, in the manifest's order.
     *
     * @throws ArtifactError for a file that is none of [staticFiles], with the reason, or whose
     *     signatures are damaged
     */
    public fun buckets(file: String): List<Bucket> {
        val entry = entry(file)
        val signatures = entry.signatures
        if (entry.target != TFLITE || entry.shapes == null || signatures == null) {
            throw ArtifactError("$file is no .tflite file with fixed shapes. ${staticOnes()}")
        }
        if (LITERT !in entry.runtimes) {
            val reason = entry.refusals[LITERT] ?: "it was not tried with it"
            throw ArtifactError("$file must not be run by $LITERT: $reason. ${staticOnes()}")
        }
        return try {
            readBuckets(signatures)
        } catch (error: ConfigurationError) {
            throw ArtifactError(
                "${File(directory, MANIFEST_NAME)} is damaged: of $file, ${error.message} $AGAIN",
                error,
            )
        }
    }

    /**
     * Opens the tokenizer.
     *
     * @throws ArtifactError for a file that is missing or was altered
     * @throws TokenizerError for files that are damaged or do not belong together
     */
    public fun tokenizer(): BartTokenizer = BartTokenizer.fromFiles(
        path(manifest.tokenizer.vocabulary),
        path(manifest.tokenizer.merges),
        manifest.tokenizer.addedTokens,
        manifest.tokenizer.addPrefixSpace,
    )

    /** Returns the entry of a file. Throws [ArtifactError] with the files that there are. */
    internal fun entry(name: String): FileEntry = manifest.files[name] ?: throw ArtifactError(
        "$directory has no file $name. It has: ${manifest.files.keys.joinToString()}.",
    )

    private fun staticOnes(): String = staticFiles().joinToString().ifEmpty { null }
        ?.let { "$directory has $it." }
        ?: "Export one with: bart-export --preset ${manifest.preset} --target tflite --android."

    private fun readStamps(): Map<String, Stamp> = try {
        Json.decodeFromString(File(File(directory, CACHE), STAMPS).readText())
    } catch (_: IOException) {
        emptyMap()
    } catch (_: SerializationException) {
        emptyMap()
    }

    /** Writes the stamps, where the artifact can be written; otherwise files are hashed again. */
    private fun writeStamps() {
        val cache = File(directory, CACHE)
        try {
            cache.mkdir()
            // Whole or not at all, also when several processes write.
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
         * Reads the manifest of an artifact.
         *
         * @throws ArtifactError for a directory without manifest, or one that is damaged, edited,
         *     incomplete or of another format
         */
        public fun open(directory: File): Artifact {
            val file = File(directory, MANIFEST_NAME)
            if (!directory.isDirectory) {
                throw ArtifactError(
                    "An artifact is a directory with a $MANIFEST_NAME, but $directory is not a " +
                        "directory. Make one with: bart-export --preset NAME --android DIRECTORY",
                )
            }
            if (!file.exists()) {
                throw ArtifactError(
                    "$directory has no $MANIFEST_NAME, so it is not a finished artifact. $AGAIN",
                )
            }
            val read = readManifest(file)
            return Artifact(directory, read.manifest, read.config, read.generation)
        }
    }
}

/** What tells a file that was hashed from one that was changed or put in its place since. */
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

/** Returns the sha256 of a file, in hexadecimal, lower case, read piece by piece. */
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

// A name of its own: Python's readers keep theirs in hashed.json, with other stamps.
private const val STAMPS = "verified.json"
