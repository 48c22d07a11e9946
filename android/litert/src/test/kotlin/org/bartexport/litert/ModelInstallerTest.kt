/*
 * Interrupted and concurrent installations, damaged bundles and full devices: the result must be a
 * complete artifact or none.
 */
package org.bartexport.litert

import java.io.File
import java.io.InputStream
import java.io.RandomAccessFile
import java.nio.file.Files
import java.util.Random
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertNotNull
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.bartexport.Artifact
import org.bartexport.ArtifactError
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

class ModelInstallerTest(@param:TempDir private val directory: File) {
    private val bundle by lazy { writeBundle(File(directory, "bundle"), 1) }
    private val target by lazy { File(directory, "installed") }

    @ParameterizedTest
    @ValueSource(strings = ["directory", "zip"])
    fun `a bundle is installed under its manifest's hash, with progress`(kind: String) {
        val source = if (kind == "zip") ZipSource(zipped(bundle)) else DirectorySource(bundle)
        val events = runBlocking { ModelInstaller(target).install(source).toList() }
        val installed = (events.last() as InstallEvent.Installed).directory
        assertWhole(installed)
        assertEquals(Artifact.open(bundle).manifest.manifestSha256, installed.name)
        val progress = events.dropLast(1).map { it as InstallEvent.Progress }
        val all = MODEL_BYTES + 70_001L + 1
        assertEquals(setOf(all), progress.map { it.of }.toSet())
        assertEquals(all, progress.last().bytes)
        assertEquals(progress.map { it.bytes }.sorted(), progress.map { it.bytes })
    }

    @Test
    fun `an installation that is cancelled at any byte is gone on with, not begun again`() {
        val random = Random(5)
        var copied = 0L
        val interruptions = 12
        repeat(interruptions) {
            val end = 1 + random.nextInt(MODEL_BYTES / 4).toLong()
            val job = Job()
            val source = Watched(DirectorySource(bundle)) { if (it >= end) job.cancel() }
            runBlocking {
                launch(job, CoroutineStart.UNDISPATCHED) {
                    ModelInstaller(target).install(source).collect()
                }.join()
            }
            copied += source.bytes
            val unfinished = target.listFiles().orEmpty().filter { it.isDirectory }
            if (unfinished.any { File(it, "manifest.json").exists() }) assertWhole(unfinished[0])
        }
        val last = Watched(DirectorySource(bundle))
        assertWhole(install(last))
        // Each interruption may lose one block.
        assertTrue(copied + last.bytes <= MODEL_BYTES + 70_002 + interruptions * (1 shl 18))
        assertTrue(last.bytes < MODEL_BYTES, "the copy was restarted")
    }

    @Test
    fun `what is installed is only looked at`() {
        val installed = install(DirectorySource(bundle))
        val changed = File(installed, MODEL).lastModified()
        val again = Watched(DirectorySource(bundle))
        assertEquals(installed, install(again))
        assertEquals(listOf("manifest.json"), again.opened)
        assertEquals(changed, File(installed, MODEL).lastModified())
    }

    @Test
    fun `a file of another hash is refused by its name and leaves nothing`() {
        flipBit(File(bundle, MERGES))
        val error = assertFailsWith<ArtifactError> { install(DirectorySource(bundle)) }
        assertContains(assertNotNull(error.message), MERGES)
        assertEquals(1, error.message?.lines()?.size)
        val name = Artifact.open(bundle).manifest.manifestSha256
        assertFalse(File(target, "$name/$MERGES").exists())
        assertFalse(File(target, "$name/$MERGES.part").exists())
        assertFalse(File(target, "$name/manifest.json").exists())
    }

    @ParameterizedTest
    @ValueSource(ints = [-1, 1])
    fun `a file that is shorter or longer is refused by its name`(difference: Int) {
        RandomAccessFile(File(bundle, MERGES), "rw").use { it.setLength(it.length() + difference) }
        val error = assertFailsWith<ArtifactError> { install(DirectorySource(bundle)) }
        assertContains(assertNotNull(error.message), MERGES)
    }

    @Test
    fun `a missing file and a damaged manifest are refused by their names`() {
        File(bundle, MERGES).delete()
        val missing = assertFailsWith<ArtifactError> { install(DirectorySource(bundle)) }
        assertContains(assertNotNull(missing.message), MERGES)
        flipBit(File(bundle, "manifest.json"))
        val damaged = assertFailsWith<ArtifactError> { install(DirectorySource(bundle)) }
        assertContains(assertNotNull(damaged.message), "manifest.json of $bundle")
        File(bundle, "manifest.json").delete()
        val none = assertFailsWith<ArtifactError> { install(DirectorySource(bundle)) }
        assertContains(assertNotNull(none.message), "manifest.json")
    }

    @Test
    fun `a part that was damaged is copied anew`() {
        val name = Artifact.open(bundle).manifest.manifestSha256
        val part = File(target, "$name/$MODEL.part")
        part.parentFile.mkdirs()
        part.writeBytes(ByteArray(1_000_000))
        assertWhole(install(DirectorySource(bundle)))
    }

    @ParameterizedTest
    @ValueSource(strings = [MODEL, MERGES, "manifest.json"])
    fun `an installed file that was damaged since is copied again`(name: String) {
        val installed = install(DirectorySource(bundle))
        flipBit(File(installed, name))
        File(installed, name).setLastModified(1_000_000)
        assertWhole(install(DirectorySource(bundle)))
    }

    @Test
    fun `an old version stays until the new one is whole`() {
        val old = install(DirectorySource(bundle))
        val stranger = File(target, "notes").apply { writeText("not the installer's") }
        val newer = writeBundle(File(directory, "newer"), 2)
        val whole = File(newer, MERGES).readBytes()
        flipBit(File(newer, MERGES))
        assertFailsWith<ArtifactError> { install(DirectorySource(newer)) }
        assertWhole(old)
        File(newer, MERGES).writeBytes(whole)
        val installed = install(DirectorySource(newer))
        assertEquals(newer.files(), installed.files())
        assertFalse(old.exists())
        assertTrue(stranger.exists())
    }

    @Test
    fun `two installations at once copy every file once`() {
        val sources = List(2) { Watched(DirectorySource(bundle)) }
        val installed = runBlocking {
            sources.map { source ->
                async(Dispatchers.IO) { ModelInstaller(target).install(source).last() }
            }.awaitAll()
        }
        assertEquals(1, installed.toSet().size)
        assertWhole((installed.first() as InstallEvent.Installed).directory)
        assertEquals(1, sources.flatMap { it.opened }.count { it == MODEL })
    }

    @Test
    fun `a model that no disk has room for is refused before a byte is copied`() {
        val huge = writeBundle(File(directory, "huge"), 3, mapOf(MODEL to (1L shl 60)))
        val source = Watched(DirectorySource(huge))
        val error = assertFailsWith<ArtifactError> { install(source) }
        assertContains(assertNotNull(error.message), "1152921504606")
        assertContains(assertNotNull(error.message), "Free at least 1152")
        assertEquals(listOf("manifest.json"), source.opened)
    }

    @Test
    fun `sizes that overflow when they are added are refused`() {
        val sizes = listOf(MODEL, MERGES, "golden.json", "a/b").associateWith { 1L shl 62 }
        for (claimed in listOf(sizes, mapOf(MODEL to -1L))) {
            val bundle = writeBundle(File(directory, "overflowing"), 3, claimed)
            val source = Watched(DirectorySource(bundle))
            val error = assertFailsWith<ArtifactError> { install(source) }
            val expected = "at least 0, and those of all files together at most 461168"
            assertContains(assertNotNull(error.message), expected)
            assertEquals(listOf("manifest.json"), source.opened)
        }
    }

    @Test
    fun `a target that cannot be written is named in one line`() {
        val lock = File(target, ".lock").apply { mkdirs() }
        val error = assertFailsWith<ArtifactError> { install(DirectorySource(bundle)) }
        assertContains(assertNotNull(error.message), "$target cannot be written: $lock")
        assertEquals(1, error.message?.lines()?.size)
    }

    @Test
    fun `a manifest without end is refused before it fills the memory`() {
        val endless = object : BundleSource {
            override fun open(name: String) = object : InputStream() {
                override fun read() = ' '.code
            }
        }
        val error = assertFailsWith<ArtifactError> { install(endless) }
        assertContains(assertNotNull(error.message), "has more than")
    }

    /** Leftovers at the model's path of an installation without a manifest. */
    private val leftovers = mapOf<String, (File) -> Unit>(
        "other bytes of the same length" to { it.writeBytes(ByteArray(MODEL_BYTES)) },
        "a directory" to { File(it, "full").mkdirs() },
        "a link" to { Files.createSymbolicLink(it.toPath(), outside.toPath()) },
        "a part that is a link" to {
            Files.createSymbolicLink(File(it.path + ".part").toPath(), outside.toPath())
        },
        "a folder that is a link" to {
            it.parentFile.delete()
            Files.createSymbolicLink(it.parentFile.toPath(), outside.parentFile.toPath())
        },
    )
    private val outside by lazy {
        File(directory, "elsewhere/photo.jpg").apply {
            parentFile.mkdirs()
            writeText("somebody's")
        }
    }

    @TestFactory
    fun `a leftover is healed in the same installation, and links are not followed`() =
        leftovers.map { (name, leave) ->
            dynamicTest(name) {
                target.deleteRecursively()
                val hash = Artifact.open(bundle).manifest.manifestSha256
                leave(File(target, "$hash/$MODEL").apply { parentFile.mkdirs() })
                assertWhole(install(DirectorySource(bundle)))
                assertEquals("somebody's", outside.readText())
                assertEquals(listOf("photo.jpg"), outside.parentFile.list().orEmpty().toList())
            }
        }

    @Test
    fun `removing another version does not follow links`() {
        val old = File(target, "0".repeat(64)).apply { mkdirs() }
        Files.createSymbolicLink(File(old, "photos").toPath(), outside.parentFile.toPath())
        install(DirectorySource(bundle))
        assertFalse(old.exists())
        assertEquals("somebody's", outside.readText())
    }

    @Test
    fun `a file of a bundle that is a pipe is refused, not waited for`() {
        File(bundle, MERGES).delete()
        ProcessBuilder("mkfifo", File(bundle, MERGES).path).start().waitFor()
        val error = assertFailsWith<ArtifactError> { install(DirectorySource(bundle)) }
        assertContains(assertNotNull(error.message), MERGES)
    }

    private fun install(source: BundleSource): File = runBlocking {
        (ModelInstaller(target).install(source).last() as InstallEvent.Installed).directory
    }

    private fun assertWhole(installed: File) = assertEquals(bundle.files(), installed.files())

    /** Hashes by name, except those of stamps. */
    private fun File.files(): Map<String, String> = walk()
        .onEnter { it.name != ".cache" }
        .filter { it.isFile }
        .associate { it.relativeTo(this).path to sha256(it.readBytes()) }

    private fun zipped(bundle: File): File = File(directory, "bundle.zip").also { file ->
        ZipOutputStream(file.outputStream()).use { zip ->
            for (one in bundle.walk().filter { it.isFile }) {
                zip.putNextEntry(ZipEntry(one.relativeTo(bundle).path))
                one.inputStream().use { it.copyTo(zip) }
            }
        }
    }

    private fun flipBit(file: File) = RandomAccessFile(file, "rw").use {
        it.seek(it.length() / 2)
        val byte = it.read()
        it.seek(it.length() / 2)
        it.write(byte xor 1)
    }
}
