/*
 * One file of a bundle on its way to where it is installed.
 *
 * Its bytes are appended to a file called `.part` and hashed on the way; whatever ends the copy,
 * the next one goes on where it ended. Only a file whose hash is right loses that suffix.
 */
package org.bartexport.litert

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.nio.file.Files
import java.nio.file.LinkOption
import java.security.MessageDigest
import kotlin.coroutines.coroutineContext
import kotlinx.coroutines.ensureActive
import org.bartexport.ArtifactError
import org.bartexport.PART

/**
 * A file that is copied from a bundle.
 *
 * @param source the bundle
 * @param name the file's, in the bundle and in [directory]
 * @param bytes its size
 * @param sha256 its hash, hexadecimal
 */
internal class PartialFile(
    private val source: BundleSource,
    private val name: String,
    val bytes: Long,
    private val sha256: String,
    private val directory: File,
) {
    private val file = File(directory, name)
    private val part = File(directory, "$name$PART")

    /** Bytes that earlier copies left. */
    val copied: Long
        get() = part.length()

    /**
     * Makes what lies in the file's place its part, so that its hash decides; links and whatever else
     * can be no part are removed, and never followed.
     */
    fun takeBack() {
        writing {
            var place = directory
            place.removeUnless(File::isDirectory)
            for (folder in name.split('/').dropLast(1)) {
                place = File(place, folder)
                place.removeUnless(File::isDirectory)
            }
            part.removeUnless(File::isFile)
            file.removeUnless(File::isFile)
            if (file.exists() && !file.renameTo(part)) throw IOException("it cannot be renamed")
        }
    }

    /**
     * Copies what is missing, cancellable between two blocks.
     *
     * @param progress is called with the number of bytes that are there
     * @throws ArtifactError if the source's bytes are not those of the manifest, it cannot be read,
     *   or this device cannot keep them
     */
    suspend fun copy(progress: suspend (Long) -> Unit) {
        writing { part.parentFile?.mkdirs() }
        val resumed = copied > 0
        // A part may be damaged where the source is not: it is the source that is asked twice.
        val whole = append(progress) || resumed && append(progress)
        if (!whole) throw damaged()
        writing {
            if (!part.renameTo(file)) throw IOException("it cannot be renamed")
        }
    }

    /** Appends the rest; returns whether all is right, and removes the part where it is not. */
    private suspend fun append(progress: suspend (Long) -> Unit): Boolean {
        val digest = MessageDigest.getInstance("SHA-256")
        val right = hashPart(digest) &&
            appendRest(digest, progress) == bytes &&
            hexadecimal(digest.digest()) == sha256
        if (!right) part.delete()
        return right
    }

    /** Hashes what is there; returns whether it can be the beginning of the file. */
    private suspend fun hashPart(digest: MessageDigest): Boolean {
        if (copied > bytes) return false
        if (!part.exists()) return true
        writing { part.inputStream() }.use { stream ->
            eachBlock({ writing { stream.read(it) } }) { block, count ->
                digest.update(block, 0, count)
            }
        }
        return true
    }

    /** Returns how many bytes the part has then: one block too many, where the source has more. */
    private suspend fun appendRest(digest: MessageDigest, progress: suspend (Long) -> Unit): Long {
        var position = copied
        reading { source.open(name) }.use { stream ->
            reading { stream.skipFully(position) }
            writing { FileOutputStream(part, true) }.use { output ->
                val next = { block: ByteArray ->
                    if (position > bytes) -1 else reading { stream.read(block) }
                }
                eachBlock(next) { block, count ->
                    writing { output.write(block, 0, count) }
                    digest.update(block, 0, count)
                    position += count
                    progress(minOf(position, bytes))
                }
                writing { output.fd.sync() }
            }
        }
        return position
    }

    private inline fun <Result> reading(block: () -> Result): Result = try {
        block()
    } catch (error: IOException) {
        throw ArtifactError("$name of $source cannot be read: ${error.message}.", error)
    }

    private inline fun <Result> writing(block: () -> Result): Result = try {
        block()
    } catch (error: IOException) {
        val free = megabytes(directory.usableSpace)
        throw ArtifactError("$file cannot be written ($free are free): ${error.message}.", error)
    }

    private fun damaged() = ArtifactError(
        "$name of $source is not the file its manifest names ($bytes bytes): it was altered or " +
            "damaged. Get the bundle again.",
    )
}

/** Removes a file, a link, or a directory with all that is in it; links in it are not followed. */
internal fun File.remove() {
    if (!Files.exists(toPath(), LinkOption.NOFOLLOW_LINKS)) return
    Files.walk(toPath()).use { it.sorted(Comparator.reverseOrder()).forEach(Files::delete) }
}

private fun File.removeUnless(isRight: File.() -> Boolean) {
    if (Files.isSymbolicLink(toPath()) || !isRight()) remove()
}

/** Reads blocks until there are no more, or the coroutine is cancelled. */
private suspend inline fun eachBlock(read: (ByteArray) -> Int, use: (ByteArray, Int) -> Unit) {
    val block = ByteArray(BLOCK)
    while (true) {
        coroutineContext.ensureActive()
        val count = read(block)
        if (count < 0) return
        use(block, count)
    }
}

/** Skips bytes; a stream may skip fewer than asked, or none. */
private fun InputStream.skipFully(bytes: Long) {
    var left = bytes
    while (left > 0) {
        val skipped = skip(left)
        left -= when {
            skipped > 0 -> skipped
            read() >= 0 -> 1
            else -> return
        }
    }
}

/** Bytes in words: "181.4 MB". */
internal fun megabytes(bytes: Long): String = "%.1f MB".format(java.util.Locale.ROOT, bytes / 1e6)

/** Bytes as hexadecimal digits, as a manifest has them. */
internal fun hexadecimal(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }

private const val BLOCK = 1 shl 18
