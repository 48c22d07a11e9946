/*
 * XNNPACK's packed weights on disk: a file's second opening takes milliseconds, and its weights are
 * mapped rather than in the process's memory; mirrors bart_export/runtime/weight_cache.py.
 *
 * A cache is built under a temporary name and put in place whole, with a record of its hash; one that
 * is torn or altered is built again. Small caches are hashed at every opening, large ones once after
 * each start of the device and after each change that the file system shows.
 */
package org.bartexport.litert

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.file.Files
import java.nio.file.attribute.BasicFileAttributes
import java.nio.file.attribute.PosixFileAttributes
import java.nio.file.attribute.PosixFilePermission
import java.security.MessageDigest
import java.util.concurrent.TimeUnit
import org.bartexport.EngineError

/**
 * The cache of one `.tflite` file in a [directory] that has no others: those of other models and
 * of other versions of LiteRT are removed.
 *
 * @param sha256 the file's hash in the manifest, hexadecimal
 * @param bytes the file's size; its cache is about as large
 * @param large size of the caches that are not hashed at every opening, in bytes
 */
internal class WeightCache(
    private val directory: File,
    private val sha256: String,
    private val bytes: Long,
    private val large: Long = LARGE,
) {
    private val name = "${sha256.take(HASH_CHARACTERS)}-litert-$LITERT_VERSION.xnnpack"
    private val cache = File(directory, name)
    private val record = File(directory, "$name.sha256")

    /**
     * Opens the file with its cache, building that first where it is not whole, and without one
     * where there is no room for it.
     *
     * @param openModel opens the file with a cache, which it creates if it is missing; with null it
     *   opens it without one
     * @throws EngineError as [openModel] does without a cache
     */
    fun <Opened> open(openModel: (File?) -> Opened): Opened {
        directory.mkdirs()
        if (!isPrivate()) return openModel(null)
        removeOthers()
        return openWhole(openModel) ?: build(openModel) ?: openModel(null)
    }

    private fun <Opened> openWhole(openModel: (File?) -> Opened): Opened? {
        if (!isWhole()) return null
        return orNull(cache, record) { openModel(cache) }
    }

    private fun <Opened> build(openModel: (File?) -> Opened): Opened? {
        // LiteRT ends the process when the disk is full.
        if (directory.usableSpace < ROOM * bytes) return null
        val unfinished = try {
            File.createTempFile("$name.", BUILDING, directory)
        } catch (_: IOException) {
            return null
        }
        unfinished.delete()
        return orNull(unfinished) { openModel(unfinished) }.also { putInPlace(unfinished) }
    }

    /** LiteRT has mapped the file; its name may change under it. */
    private fun putInPlace(unfinished: File) {
        try {
            RandomAccessFile(unfinished, "r").use { it.fd.sync() }
            val description = describe(unfinished)
            record.delete()
            if (unfinished.renameTo(cache)) writeRecord(description)
        } catch (_: IOException) {
            // Without its record it is built again.
        } finally {
            unfinished.delete()
        }
    }

    private fun isWhole(): Boolean = try {
        val (expected, seen) = (record.readLines() + listOf("", "")).take(2)
        val isLarge = cache.length() >= large
        val known = isLarge && seen.isNotEmpty() && seen == identity()
        known || (expected == describe(cache)).also { if (it && isLarge) writeRecord(expected) }
    } catch (_: IOException) {
        false
    }

    /** Writes what the cache's bytes are, and what tells that they were not changed since. */
    private fun writeRecord(description: String) {
        record.writeText("$description\n${identity().orEmpty()}\n")
    }

    /** The boot, and what the file system shows of changes; null where a boot has no name. */
    private fun identity(): String? = try {
        val attributes = Files.readAttributes(cache.toPath(), BasicFileAttributes::class.java)
        val changed = attributes.lastModifiedTime().to(TimeUnit.NANOSECONDS)
        "${BOOT.readText().trim()} ${attributes.fileKey()} $changed"
    } catch (_: IOException) {
        null
    }

    /** Whether nobody but this user can write there: the model computes with what lies there. */
    private fun isPrivate(): Boolean = try {
        val attributes = Files.readAttributes(directory.toPath(), PosixFileAttributes::class.java)
        PosixFilePermission.OTHERS_WRITE !in attributes.permissions() &&
            attributes.owner() == Files.getOwner(PROCESS.toPath())
    } catch (_: UnsupportedOperationException) {
        true // no such permissions on this system
    } catch (_: IOException) {
        false
    }

    private fun removeOthers() {
        val now = System.currentTimeMillis()
        for (file in directory.listFiles().orEmpty()) {
            val abandoned = file.name.endsWith(BUILDING) && now - file.lastModified() > ABANDONED
            val other = CACHES.matches(file.name) && !file.name.startsWith(name)
            if (abandoned || other) file.delete()
        }
    }

    private companion object {
        const val HASH_CHARACTERS = 16
        const val BUILDING = ".building"

        // What this class puts into its directory.
        val CACHES = Regex("[0-9a-f]{$HASH_CHARACTERS}-litert-[0-9.]+\\.xnnpack(\\..*)?")

        // A cache is begun only where this many times the model's size is free.
        const val ROOM = 2

        // Bytes. Hashing less takes less time than opening the model.
        const val LARGE = 32L shl 20

        val BOOT = File("/proc/sys/kernel/random/boot_id")
        val PROCESS = File("/proc/self")

        // Milliseconds after which an unfinished cache belongs to nobody.
        const val ABANDONED = 600_000L
    }
}

/** Returns what [open] returns, or removes the [files] that kept it from opening. */
private inline fun <Opened> orNull(vararg files: File, open: () -> Opened): Opened? = try {
    open()
} catch (_: EngineError) {
    files.forEach(File::delete)
    null
}

/** The size and the hash of a cache. */
private fun describe(cache: File): String = cache.inputStream().use { stream ->
    val digest = MessageDigest.getInstance("SHA-256")
    val block = ByteArray(BLOCK)
    while (true) {
        val count = stream.read(block)
        if (count < 0) break
        digest.update(block, 0, count)
    }
    "${cache.length()} ${hexadecimal(digest.digest())}"
}

private const val BLOCK = 1 shl 18
