package org.bartexport.desktop

import java.io.File
import java.io.RandomAccessFile
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir

/** XNNPACK's packed weights are built once and reused, unless they are damaged. */
class WeightCacheTest {
    @TempDir
    private lateinit var temporary: File

    private val directory by lazy { File(temporary, "weights") }
    private val row = ROWS.first()
    private val generation = SETTINGS.getValue("greedy")

    private fun files(): List<File> = directory.listFiles().orEmpty().sorted()

    private fun cache(): File = files().single { it.name.endsWith(".xnnpack") }

    private fun mapped(): Boolean = cache().path in File("/proc/self/maps").readText()

    /** Opens an engine with the cache and checks its tokens. */
    private fun open(cacheDirectory: File = directory, whileOpen: () -> Unit = {}) {
        MINI.open(OPTIONS.copy(cacheDirectory = cacheDirectory)).use { engine ->
            whileOpen()
            val received = engine.answer(row.sourceTokenIds, generation).first().tokenIds
            assertEquals(integers(row.answer("greedy").getValue("token_ids")), received)
        }
    }

    /** Opens an engine and returns whether it left the cache unchanged. */
    private fun keeps(): Boolean {
        // File systems may store times in whole seconds.
        files().forEach { check(it.setLastModified(LONG_AGO)) }
        open()
        return files().all { it.lastModified() == LONG_AGO }
    }

    @Test
    fun `a cache is written once and used again`() {
        open()
        assertEquals(2, files().size, "${files()}") // the cache and its record
        val model = File(MINI.artifact.directory, MINI.file).length()
        assertTrue(cache().length() in model / 2..2 * model, "${cache().length()} $model")
        val before = files()
        assertTrue(keeps())
        assertEquals(before, files())
        assertFalse(mapped(), "it is still open")
        open { assertTrue(mapped(), "it is not used") }
    }

    private class Damage(val name: String, val damage: (cache: File) -> Unit)

    private val damages = listOf(
        Damage("cut off") { cache -> resize(cache, cache.length() / 2) },
        Damage("empty") { cache -> resize(cache, 0) },
        Damage("torn: the end was never written") { cache ->
            val length = cache.length()
            resize(cache, length / 2)
            resize(cache, length)
        },
        Damage("other bytes at the beginning") { cache ->
            RandomAccessFile(cache, "rw").use { it.write("something else".toByteArray()) }
        },
        Damage("one byte in the middle") { cache ->
            RandomAccessFile(cache, "rw").use {
                it.seek(it.length() / 2 + 1)
                val byte = it.read()
                it.seek(it.length() / 2 + 1)
                it.write(byte xor 1)
            }
        },
        Damage("with another one's record") { cache -> File("$cache.sha256").writeText("1 00\n") },
        Damage("without its record") { cache -> File("$cache.sha256").delete() },
    )

    private fun resize(file: File, length: Long) =
        RandomAccessFile(file, "rw").use { it.setLength(length) }

    @TestFactory
    fun `a cache that is damaged is built again`(): List<DynamicTest> = damages.map { row ->
        dynamicTest(row.name) {
            directory.deleteRecursively()
            open()
            val before = files()
            val content = cache().readBytes()
            row.damage(cache())
            assertTrue(!keeps(), "the damaged one was kept")
            assertEquals(before, files())
            assertEquals(content.size, cache().readBytes().size)
            assertTrue(keeps(), "the new one was not")
        }
    }

    @Test
    fun `a cache that cannot be put in its place does not stay elsewhere`() {
        open()
        val cache = cache()
        cache.delete()
        check(File(cache, "something").mkdirs())
        open()
        assertEquals(listOf(cache), files())
    }

    @Test
    fun `caches of other models are removed, and nothing else`() {
        val other = TINY.first()
        other.open(OPTIONS.copy(cacheDirectory = directory)).close()
        val own = File(directory, "notes.txt").also { it.writeText("of somebody") }
        val abandoned = File(directory, "${cache().name}.1.building").also { it.writeText("") }
        check(abandoned.setLastModified(LONG_AGO))
        val before = cache()
        open()
        assertNotEquals(before, cache())
        assertEquals(3, files().size, "${files()}")
        assertTrue(own.exists())
    }

    @Test
    fun `without room for a cache there is none`() {
        directory.mkdirs()
        val full = object : File(directory.path) {
            override fun getUsableSpace() = MINI.artifact.manifest.files.getValue(MINI.file).bytes
        }
        open(full)
        assertEquals(emptyList(), files())
    }

    @Test
    fun `a directory that cannot be made is no reason to fail`() {
        directory.writeText("a file is in its place")
        open()
        assertTrue(directory.isFile)
    }

    private companion object {
        const val LONG_AGO = 1_000_000_000_000L
    }
}
