/*
 * The weight cache under the real LiteRT: written once, mapped by the next opening, and built again
 * when it is not what it was.
 */
package org.bartexport.desktop

import java.io.File
import java.io.RandomAccessFile
import kotlin.test.assertEquals
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue
import org.bartexport.litert.CompiledModelEngine
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

class WeightCacheTest {
    private val artifact = Mini.artifact
    private val expected = answer(Mini.engine)

    @Test
    fun `a cache is written once and mapped by the next opening`(@TempDir directory: File) {
        assertEquals(expected, open(directory).use(::answer))
        val cache = cache(directory)
        val written = cache.lastModified() to cache.readBytes().toList()
        assertTrue(cache.length() > artifact.manifest.files.getValue(artifact.file).bytes / 2)
        assertTrue(cache.path !in File("/proc/self/maps").readText(), "it is still open")
        open(directory).use { engine ->
            assertTrue(cache.path in File("/proc/self/maps").readText(), "it is not used")
            assertEquals(expected, answer(engine))
        }
        assertEquals(written, cache.lastModified() to cache.readBytes().toList())
        assertEquals(2, directory.list()?.size)
    }

    @ParameterizedTest
    @ValueSource(strings = ["zeros", "cut", "empty", "no record", "another's record"])
    fun `a damaged cache is built again`(how: String, @TempDir directory: File) {
        open(directory).close()
        val cache = cache(directory)
        val record = File("$cache.sha256")
        val whole = record.readText()
        when (how) {
            "zeros" -> cache.writeBytes(ByteArray(cache.length().toInt()))
            "cut" -> RandomAccessFile(cache, "rw").use { it.setLength(it.length() / 2) }
            "empty" -> cache.writeBytes(ByteArray(0))
            "no record" -> record.delete()
            "another's record" -> record.writeText("1 00\n")
        }
        assertEquals(expected, open(directory).use(::answer))
        assertEquals(whole, record.readText())
        assertNotEquals(0, cache.readBytes().last { it != 0.toByte() })
        assertEquals(2, directory.list()?.size)
    }

    @Test
    fun `caches of other models are removed, and files of others are not`(
        @TempDir directory: File,
    ) {
        val other = "0123456789abcdef-litert-2.1.6.xnnpack"
        val names = listOf(other, "$other.sha256", "notes.txt")
        names.forEach { File(directory, it).writeText("old") }
        open(directory).close()
        val left = directory.list().orEmpty().toSet()
        val cache = cache(directory).name
        assertEquals(setOf("notes.txt", cache, "$cache.sha256"), left)
    }

    @Test
    fun `where no cache can be, the file is opened without one`(@TempDir directory: File) {
        val file = File(directory, "a file").apply { writeText("in the way") }
        assertEquals(expected, open(file).use(::answer))
        assertEquals("in the way", file.readText())
    }

    private fun open(directory: File): CompiledModelEngine =
        artifact.engine(OPTIONS.copy(cacheDirectory = directory))

    private fun cache(directory: File): File =
        directory.listFiles().orEmpty().single { it.name.endsWith(".xnnpack") }

    private fun answer(engine: CompiledModelEngine): List<Float> {
        val state = engine.start(intArrayOf(0, 715, 381, 3057, 2), 4, 8)
        val beams = IntArray(4)
        return engine.step(state, IntArray(4) { 2 }, beams).logits.values.toList()
    }
}
