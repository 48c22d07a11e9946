/*
 * XNNPACK's packed weights on disk: a file's second opening takes milliseconds, and its weights are
 * mapped rather than in the process's memory; mirrors bart_export/runtime/weight_cache.py.
 *
 * In goes the manifest's description of a file and a way to open it with a given cache file; out
 * comes what the opening returned. A cache is built under a temporary name and put in place whole,
 * with a record of what it should look like; one that is torn or altered is built again. How LiteRT
 * opens a file is not known here.
 */
package org.bartexport.litert

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.security.MessageDigest
import org.bartexport.EngineError

/**
 * The cache of one `.tflite` file in a [directory] that has no others: those of other models and
 * of other versions of LiteRT are removed.
 *
 * @param sha256 the file's hash in the manifest, hexadecimal
 * @param bytes the file's size; its cache is about as large
 */
internal class WeightCache(
    private val directory: File,
    private val sha256: String,
    private val bytes: Long,
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
            if (unfinished.renameTo(cache)) record.writeText(description)
        } catch (_: IOException) {
            // Without its record it is built again.
        } finally {
            unfinished.delete()
        }
    }

    private fun isWhole(): Boolean = try {
        record.readText() == describe(cache)
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

/** The size of a cache and a hash over pages spread evenly over it. */
private fun describe(cache: File): String = RandomAccessFile(cache, "r").use { file ->
    val digest = MessageDigest.getInstance("SHA-256")
    val size = file.length()
    val page = ByteArray(minOf(size, PAGE).toInt())
    for (sample in 0 until SAMPLES) {
        file.seek((size - page.size) * sample / (SAMPLES - 1))
        file.readFully(page)
        digest.update(page)
    }
    "$size ${hexadecimal(digest.digest())}\n"
}

private const val SAMPLES = 64 // pages that are hashed: all would cost what the cache saves
private const val PAGE = 4096L
