/*
 * Tests of the weight cache with a fake that writes a cache; android/ci/desktop has the tests with
 * LiteRT.
 */
package org.bartexport.litert

import java.io.File
import java.io.RandomAccessFile
import java.nio.file.Files
import java.nio.file.attribute.PosixFilePermission
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertNotNull
import kotlin.test.assertTrue
import org.bartexport.EngineError
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class WeightCacheTest(@param:TempDir private val directory: File) {
    private val cache = WeightCache(directory, SHA256, 1000)
    private val opened = mutableListOf<File?>()

    @Test
    fun `a cache is built under another name, and then used`() {
        cache.open(::open)
        cache.open(::open)
        val (built, used) = opened.map { assertNotNull(it) }
        assertTrue(built.name.endsWith(".building"))
        assertFalse(built.exists())
        assertEquals("0123456789abcdef-litert-$LITERT_VERSION.xnnpack", used.name)
        assertEquals(setOf(used.name, "${used.name}.sha256"), directory.list().orEmpty().toSet())
    }

    @Test
    fun `without twice the model's size of space there is none`() {
        WeightCache(directory, SHA256, directory.usableSpace / 2 + (1L shl 32)).open(::open)
        assertEquals(listOf<File?>(null), opened)
        assertEquals(0, directory.list().orEmpty().size)
    }

    @Test
    fun `a cache that keeps a model from opening is thrown away and built again`() {
        cache.open(::open)
        cache.open { file ->
            if (opened.size == 1) {
                opened += file
                throw EngineError("LiteRT does not like the cache.")
            }
            open(file)
        }
        assertTrue(assertNotNull(opened[2]).name.endsWith(".building"))
        cache.open(::open)
        assertEquals(opened[1], opened[3])
    }

    @Test
    fun `a model that opens with no cache opens without one`() {
        cache.open { file -> if (file == null) opened += null else throw EngineError("It cannot.") }
        assertEquals(listOf<File?>(null), opened)
        assertEquals(0, directory.list().orEmpty().size)
    }

    @Test
    fun `a model that does not open says why`() {
        val error = assertFailsWith<EngineError> { cache.open { throw EngineError("It is none.") } }
        assertContains(error.message.orEmpty(), "It is none.")
        assertEquals(0, directory.list().orEmpty().size)
    }

    @Test
    fun `an engine that writes no cache leaves none`() {
        repeat(2) { cache.open { file -> opened += file } }
        assertTrue(opened.all { assertNotNull(it).name.endsWith(".building") })
        assertEquals(0, directory.list().orEmpty().size)
    }

    @Test
    fun `unfinished caches that nobody writes any more are removed`() {
        cache.open(::open)
        val name = assertNotNull(opened.single()).name
        val abandoned = File(directory, name).apply { writeText("half") }
        val current = File(directory, "$name.other.building").apply { writeText("half") }
        abandoned.setLastModified(System.currentTimeMillis() - 3_600_000)
        cache.open(::open)
        assertFalse(abandoned.exists())
        assertTrue(current.exists())
    }

    @Test
    fun `a small cache that was altered anywhere is built again, whatever its time says`() {
        cache.open(::open)
        flipByte()
        cache.open(::open)
        assertTrue(assertNotNull(opened.last()).name.endsWith(".building"))
    }

    @Test
    fun `a large cache is hashed once, and again when its time or the boot changed`() {
        val large = WeightCache(directory, SHA256, 1000, large = 1)
        large.open(::open)
        val (file, record) = directory.listFiles().orEmpty().sorted()
        flipByte()
        large.open(::open)
        assertEquals(file, opened.last(), "it was hashed again")
        record.writeText(record.readText().replace(Regex("\n\\S+ "), "\nanother-boot "))
        large.open(::open)
        assertTrue(assertNotNull(opened.last()).name.endsWith(".building"))
        assertTrue(file.setLastModified(1_000_000))
        large.open(::open)
        assertEquals(file, opened.last())
        flipByte()
        assertTrue(file.setLastModified(2_000_000))
        large.open(::open)
        assertTrue(assertNotNull(opened.last()).name.endsWith(".building"))
    }

    @Test
    fun `a directory that everybody can write is not used`() {
        cache.open(::open)
        Files.setPosixFilePermissions(directory.toPath(), PosixFilePermission.entries.toSet())
        cache.open(::open)
        assertEquals(null, opened.last())
    }

    /** Changes one byte of the cache and restores its modification time. */
    private fun flipByte() {
        val file = directory.listFiles().orEmpty().single { it.name.endsWith(".xnnpack") }
        val changed = Files.getLastModifiedTime(file.toPath())
        RandomAccessFile(file, "rw").use {
            it.seek(it.length() / 2 + 1)
            val byte = it.read()
            it.seek(it.length() / 2 + 1)
            it.write(byte xor 1)
        }
        Files.setLastModifiedTime(file.toPath(), changed)
    }

    /** Creates the cache if it is missing, as LiteRT does. */
    private fun open(file: File?) {
        opened += file
        if (file != null && !file.exists()) file.writeBytes(ByteArray(100_000) { it.toByte() })
    }

    private companion object {
        const val SHA256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    }
}
