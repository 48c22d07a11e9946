/*
 * Puts a bundle where LiteRT can map its model: into a directory of the app's own.
 *
 * Each artifact has a directory by its manifest's hash, and that manifest is written last: what was
 * interrupted is no artifact, and is gone on with. What lies in the place of a file is kept only if
 * its hash is right.
 */
package org.bartexport.litert

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.channels.FileChannel
import java.util.concurrent.ConcurrentHashMap
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import org.bartexport.Artifact
import org.bartexport.ArtifactError
import org.bartexport.MANIFEST_NAME
import org.bartexport.Manifest
import org.bartexport.PART
import org.bartexport.manifestOf
import org.bartexport.readManifestBytes

/** What happens during an installation: any number of [Progress], then [Installed]. */
public sealed interface InstallEvent {
    /** So many [bytes], [of] all that the bundle has, are in place. */
    public data class Progress(val bytes: Long, val of: Long) : InstallEvent

    /** The artifact in [directory] is whole, and its files are those of its manifest. */
    public data class Installed(val directory: File) : InstallEvent
}

/**
 * Installs bundles in [target], a directory of its own: of all that is installed there, only the
 * last stays.
 */
public class ModelInstaller(private val target: File) {
    /**
     * Installs a bundle, or goes on where an earlier installation of it ended. One that is in place
     * already is only looked at.
     *
     * The flow is cold and may be cancelled at any moment. A second installation into the same
     * directory, here or by another process, waits for the first. Collecting throws
     * [ArtifactError] for a bundle that is damaged, with the file's name, and for too little space.
     */
    public fun install(source: BundleSource): Flow<InstallEvent> = flow {
        val text = readManifest(source)
        val manifest = manifestOf(text, "$MANIFEST_NAME of $source")
        val directory = File(target, manifest.manifestSha256)
        alone {
            val installed = openOrNull(directory)?.takeIf { it.manifest == manifest }
            val missing = manifest.files.filterNot { (name, _) -> installed.holds(name) }
                .map { (name, entry) ->
                    PartialFile(source, name, entry.bytes, entry.sha256, directory)
                }
            val whole = installed != null && missing.isEmpty()
            // The manifest goes first and comes last: what lacks a file is no artifact.
            if (!whole) File(directory, MANIFEST_NAME).remove()
            copy(manifest, missing)
            if (!whole) {
                putManifest(text, directory)
                check(directory)
            }
            removeOthers(directory)
        }
        emit(InstallEvent.Installed(directory))
    }.flowOn(Dispatchers.IO)

    private fun readManifest(source: BundleSource): ByteArray = try {
        source.open(MANIFEST_NAME).use { it.readManifestBytes() }
    } catch (error: IOException) {
        throw ArtifactError("$MANIFEST_NAME of $source cannot be read: ${error.message}.", error)
    }

    /** Runs [installation] while nobody else installs into the directory. */
    private suspend fun alone(installation: suspend () -> Unit) {
        if (!target.isDirectory && !target.mkdirs()) {
            throw ArtifactError("$target is no directory and cannot be made one.")
        }
        // A file's lock is a process's: its own installations have another.
        INSTALLING.getOrPut(target.canonicalFile) { Mutex() }.withLock {
            RandomAccessFile(File(target, LOCK), "rw").use { file ->
                locked(file.channel) { installation() }
            }
        }
    }

    private suspend fun locked(channel: FileChannel, block: suspend () -> Unit) {
        var lock = channel.tryLock()
        while (lock == null) {
            delay(PATIENCE)
            lock = channel.tryLock()
        }
        lock.use { block() }
    }

    private fun openOrNull(directory: File): Artifact? = try {
        Artifact.open(directory)
    } catch (_: ArtifactError) {
        null
    }

    private fun Artifact?.holds(name: String): Boolean = try {
        this?.path(name) != null
    } catch (_: ArtifactError) {
        false
    }

    private suspend fun FlowCollector<InstallEvent>.copy(
        manifest: Manifest,
        missing: List<PartialFile>,
    ) {
        missing.forEach(PartialFile::takeBack)
        checkSpace(manifest, missing)
        val all = manifest.totalBytes
        var before = all - missing.sumOf { it.bytes }
        var shown = System.nanoTime()
        for (file in missing) {
            file.copy { copied ->
                val now = System.nanoTime()
                if (now - shown >= BETWEEN_EVENTS) {
                    emit(InstallEvent.Progress(before + copied, all))
                    shown = now
                }
            }
            before += file.bytes
        }
        emit(InstallEvent.Progress(all, all))
    }

    private fun checkSpace(manifest: Manifest, missing: List<PartialFile>) {
        val needed = missing.sumOf { maxOf(it.bytes - it.copied, 0) }
        val free = target.usableSpace
        if (needed <= free) return
        throw ArtifactError(
            "Installing ${manifest.preset} in $target needs ${megabytes(needed)}, and " +
                "${megabytes(free)} are free: ${megabytes(needed - free)} are missing. Free " +
                "some space.",
        )
    }

    private fun putManifest(text: ByteArray, directory: File) {
        val file = File(directory, MANIFEST_NAME)
        try {
            directory.mkdirs()
            val part = File(directory, "$MANIFEST_NAME$PART")
            part.outputStream().use {
                it.write(text)
                it.fd.sync()
            }
            if (!part.renameTo(file)) throw IOException("it cannot be renamed")
        } catch (error: IOException) {
            throw ArtifactError("$file cannot be written: ${error.message}.", error)
        }
    }

    /** Hashes what was not hashed before, so that the next opening need not. */
    private fun check(directory: File) {
        val artifact = Artifact.open(directory)
        artifact.manifest.files.keys.forEach { artifact.path(it) }
    }

    /** Removes other versions, finished or not, and nothing that the installer did not make. */
    private fun removeOthers(directory: File) {
        target.listFiles().orEmpty()
            .filter { it != directory && ARTIFACT.matches(it.name) }
            .forEach {
                File(it, MANIFEST_NAME).delete()
                it.remove()
            }
    }

    private companion object {
        const val LOCK = ".lock"
        const val PATIENCE = 50L // milliseconds
        const val BETWEEN_EVENTS = 100_000_000L // nanoseconds

        // The directories of artifacts, by the hash in their manifest.
        val ARTIFACT = Regex("[0-9a-f]{64}")

        // By target.
        val INSTALLING = ConcurrentHashMap<File, Mutex>()
    }
}
