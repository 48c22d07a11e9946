/*
 * Installs a bundle in the app's storage, from which LiteRT can map its model.
 *
 * Each artifact has a directory named by its manifest's hash. The manifest is written last, so an
 * interrupted installation is not mistaken for an artifact, and is resumed.
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
import kotlinx.coroutines.flow.catch
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

/** An event of an installation: any number of [Progress], then [Installed]. */
public sealed interface InstallEvent {
    /** The first [bytes] [of] the bundle are installed. */
    public data class Progress(val bytes: Long, val of: Long) : InstallEvent

    /** The artifact in [directory] is complete and verified. */
    public data class Installed(val directory: File) : InstallEvent
}

/**
 * Installs bundles in [target], which must be used for nothing else. Installing a bundle removes
 * any earlier one.
 */
public class ModelInstaller(private val target: File) {
    /**
     * Installs a bundle or resumes an interrupted installation. If it is already installed, this
     * only verifies it.
     *
     * The flow is cold and may be cancelled at any time. A concurrent installation into the same
     * directory, even by another process, waits. Collecting throws an [ArtifactError] if the bundle
     * is damaged, there is too little space, or the directory cannot be written.
     */
    public fun install(source: BundleSource): Flow<InstallEvent> = flow {
        val text = readManifest(source)
        val manifest = manifestOf(text, "$MANIFEST_NAME of $source")
        val directory = File(target, manifest.manifestSha256)
        exclusively {
            val installed = openOrNull(directory)?.takeIf { it.manifest == manifest }
            val missing = manifest.files.filterNot { (name, _) -> installed.holds(name) }
                .map { (name, entry) ->
                    PartialFile(source, name, entry.bytes, entry.sha256, directory)
                }
            val complete = installed != null && missing.isEmpty()
            // Deleted first and written last, so that an incomplete directory is not an artifact.
            if (!complete) File(directory, MANIFEST_NAME).remove()
            copy(manifest, missing)
            if (!complete) {
                writeManifest(text, directory)
                verify(directory)
            }
            removeOthers(directory)
        }
        emit(InstallEvent.Installed(directory))
    }.catch { error ->
        if (error !is IOException) throw error
        throw ArtifactError("$target cannot be written: ${error.message}.", error)
    }.flowOn(Dispatchers.IO)

    private fun readManifest(source: BundleSource): ByteArray = try {
        source.open(MANIFEST_NAME).use { it.readManifestBytes() }
    } catch (error: IOException) {
        throw ArtifactError("$MANIFEST_NAME of $source cannot be read: ${error.message}.", error)
    }

    /** Runs [installation] while holding the locks of the target directory. */
    private suspend fun exclusively(installation: suspend () -> Unit) {
        // In this order, because another installation may create it in between.
        if (!target.mkdirs() && !target.isDirectory) {
            throw ArtifactError("$target is not a directory and cannot be created.")
        }
        // A file lock excludes other processes, the mutex other coroutines of this one.
        INSTALLING.getOrPut(target.canonicalFile) { Mutex() }.withLock {
            RandomAccessFile(File(target, LOCK), "rw").use { file ->
                locked(file.channel) { installation() }
            }
        }
    }

    private suspend fun locked(channel: FileChannel, block: suspend () -> Unit) {
        var lock = channel.tryLock()
        while (lock == null) {
            delay(POLL_INTERVAL)
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
        missing.forEach(PartialFile::reopen)
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
            "Installing ${manifest.preset} in $target needs ${megabytes(needed)}, but only " +
                "${megabytes(free)} are free. Free at least ${megabytes(needed - free)}.",
        )
    }

    private fun writeManifest(text: ByteArray, directory: File) {
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

    /** Verifies and stamps all files, so that opening the artifact does not hash them. */
    private fun verify(directory: File) {
        val artifact = Artifact.open(directory)
        artifact.manifest.files.keys.forEach { artifact.path(it) }
    }

    /** Removes other artifacts, complete or not, and no other files. */
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
        const val POLL_INTERVAL = 50L // milliseconds
        const val BETWEEN_EVENTS = 100_000_000L // nanoseconds

        // An artifact's directory, named by its manifest_sha256.
        val ARTIFACT = Regex("[0-9a-f]{64}")

        // By target directory.
        val INSTALLING = ConcurrentHashMap<File, Mutex>()
    }
}
