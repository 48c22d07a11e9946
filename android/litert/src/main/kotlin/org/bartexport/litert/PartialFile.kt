/*
 * Copies one file of a bundle resumably: bytes are hashed and appended to a `.part` file, which is
 * renamed once its hash is right.
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
 * @param name the path relative to both [source] and [directory]
 * @param bytes the file's size
 * @param sha256 the file's hash, lower-case hexadecimal
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

    /** Size of the part that is already copied. */
    val copied: Long
        get() = part.length()

    /**
     * Renames an existing file back to its part, so that [copy] verifies it. Anything that is not a
     * regular file, such as a symbolic link, is removed.
     */
    fun reopen() {
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
     * Copies the missing bytes; cancellable between blocks.
     *
     * @param progress called with the number of bytes copied so far
     * @throws ArtifactError if the source cannot be read or its hash is wrong, or the file cannot
     *   be written
     */
    suspend fun copy(progress: suspend (Long) -> Unit) {
        writing { part.parentFile?.mkdirs() }
        val resumed = copied > 0
        // If a resumed part was damaged, copy the whole file once more.
        val complete = append(progress) || resumed && append(progress)
        if (!complete) throw damaged()
        writing {
            if (!part.renameTo(file)) throw IOException("it cannot be renamed")
        }
    }

    /** Appends the rest and returns whether the file is valid; if not, the part is removed. */
    private suspend fun append(progress: suspend (Long) -> Unit): Boolean {
        val digest = MessageDigest.getInstance("SHA-256")
        val valid = hashPart(digest) &&
            appendRest(digest, progress) == bytes &&
            hexadecimal(digest.digest()) == sha256
        if (!valid) part.delete()
        return valid
    }

    /** Hashes the existing part; returns false if it is longer than the file. */
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

    /** Appends the rest and returns the part's size; a longer source is read one block too far. */
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
        "$name of $source was modified or damaged: it does not match its manifest ($bytes bytes)." +
            " Get the bundle again.",
    )
}

/** Deletes a file, a link or a directory tree, without following links. */
internal fun File.remove() {
    if (Files.isDirectory(toPath(), LinkOption.NOFOLLOW_LINKS)) {
        listFiles().orEmpty().forEach(File::remove)
    }
    Files.deleteIfExists(toPath())
}

private fun File.removeUnless(hasType: File.() -> Boolean) {
    if (Files.isSymbolicLink(toPath()) || !hasType()) remove()
}

/** Reads blocks until the end or cancellation. */
private suspend inline fun eachBlock(read: (ByteArray) -> Int, use: (ByteArray, Int) -> Unit) {
    val block = ByteArray(BLOCK)
    while (true) {
        coroutineContext.ensureActive()
        val count = read(block)
        if (count < 0) return
        use(block, count)
    }
}

/** Skips exactly this number of bytes, if the stream has as many; `skip` may skip fewer. */
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

/** Formats a size as "181.4 MB". */
internal fun megabytes(bytes: Long): String = "%.1f MB".format(java.util.Locale.ROOT, bytes / 1e6)

/** Formats bytes as lower-case hexadecimal digits. */
internal fun hexadecimal(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }

private const val BLOCK = 1 shl 18
