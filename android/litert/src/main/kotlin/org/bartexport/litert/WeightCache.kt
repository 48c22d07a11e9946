/*
 * XNNPACK's packed weights on disk, so that reopening a file takes milliseconds and its weights are
 * mapped instead of copied to memory; mirrors bart_export/runtime/weight_cache.py.
 *
 * A cache is built under a temporary name, renamed, and recorded with its hash; a damaged one is
 * rebuilt. Small caches are hashed at every opening, large ones once per boot and after each change
 * visible in their attributes.
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
 * The cache of one `.tflite` file. Caches in [directory] of other models or LiteRT versions are
 * removed.
 *
 * @param sha256 the file's hash in the manifest, hexadecimal
 * @param bytes the file's size; its cache is about as large
 * @param large the size, in bytes, from which a cache is not hashed at every opening
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
     * Opens the file with its cache, which is built first if it is missing or damaged, or without
     * one if there is too little space.
     *
     * @param openModel opens the file with the given cache, creating it if missing, or without one
     *   if null
     * @throws EngineError if [openModel] fails without a cache
     */
    fun <Opened> open(openModel: (File?) -> Opened): Opened {
        directory.mkdirs()
        if (!isPrivate()) return openModel(null)
        removeOthers()
        return openCached(openModel) ?: build(openModel) ?: openModel(null)
    }

    private fun <Opened> openCached(openModel: (File?) -> Opened): Opened? {
        if (!isValid()) return null
        return orNull(cache, record) { openModel(cache) }
    }

    private fun <Opened> build(openModel: (File?) -> Opened): Opened? {
        // LiteRT aborts the process when the disk is full.
        if (directory.usableSpace < ROOM * bytes) return null
        val unfinished = try {
            File.createTempFile("$name.", BUILDING, directory)
        } catch (_: IOException) {
            return null
        }
        unfinished.delete()
        return orNull(unfinished) { openModel(unfinished) }.also { install(unfinished) }
    }

    /** Renames a complete cache, which LiteRT keeps mapped, and records its hash. */
    private fun install(unfinished: File) {
        try {
            RandomAccessFile(unfinished, "r").use { it.fd.sync() }
            val description = describe(unfinished)
            record.delete()
            if (unfinished.renameTo(cache)) writeRecord(description)
        } catch (_: IOException) {
            // A cache without a record is rebuilt.
        } finally {
            unfinished.delete()
        }
    }

    private fun isValid(): Boolean = try {
        val (expected, seen) = (record.readLines() + listOf("", "")).take(2)
        val isLarge = cache.length() >= large
        val known = isLarge && seen.isNotEmpty() && seen == identity()
        known || (expected == describe(cache)).also { if (it && isLarge) writeRecord(expected) }
    } catch (_: IOException) {
        false
    }

    /** Records the cache's hash and identity. */
    private fun writeRecord(description: String) {
        record.writeText("$description\n${identity().orEmpty()}\n")
    }

    /** The boot's id and the cache's file key and modification time, or null if there is no id. */
    private fun identity(): String? = try {
        val attributes = Files.readAttributes(cache.toPath(), BasicFileAttributes::class.java)
        val changed = attributes.lastModifiedTime().to(TimeUnit.NANOSECONDS)
        "${BOOT.readText().trim()} ${attributes.fileKey()} $changed"
    } catch (_: IOException) {
        null
    }

    /** Whether only this user can write to the directory, so that its weights can be trusted. */
    private fun isPrivate(): Boolean = try {
        val attributes = Files.readAttributes(directory.toPath(), PosixFileAttributes::class.java)
        PosixFilePermission.OTHERS_WRITE !in attributes.permissions() &&
            attributes.owner() == Files.getOwner(PROCESS.toPath())
    } catch (_: UnsupportedOperationException) {
        true // not a POSIX file system
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

        // The files of this class.
        val CACHES = Regex("[0-9a-f]{$HASH_CHARACTERS}-litert-[0-9.]+\\.xnnpack(\\..*)?")

        // Free space required to build a cache, in multiples of the model's size.
        const val ROOM = 2

        // In bytes. Hashing a smaller cache takes less time than opening the model.
        const val LARGE = 32L shl 20

        val BOOT = File("/proc/sys/kernel/random/boot_id")
        val PROCESS = File("/proc/self")

        // In milliseconds: an older unfinished cache has been abandoned.
        const val ABANDONED = 600_000L
    }
}

/** Calls [open]; if it fails, deletes [files] and returns null. */
private inline fun <Opened> orNull(vararg files: File, open: () -> Opened): Opened? = try {
    open()
} catch (_: EngineError) {
    files.forEach(File::delete)
    null
}

/** Returns a cache's size and hash. */
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
