package org.bartexport.desktop

import java.io.File
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.bartexport.Bucket
import org.bartexport.litert.openGenerator
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir

/** Nothing leaks native memory; the heap has a fixed size. */
class MemoryTest {
    @Test
    fun `memory is flat over 200 generations that each need other buffers`() {
        // Consecutive sources need different buffers.
        val byLength = ROWS.sortedBy { it.sourceTokenIds.size }
        val sources = listOf(byLength.first(), byLength.last())
        val settings = listOf("greedy", "beams").map {
            SETTINGS.getValue(it).copy(maxLength = 4)
        }
        MINI.open().use { engine ->
            val generator = MINI.generator(engine)
            fun generate(times: Int) = repeat(times) {
                generator.result(sources[it % 2].text, settings[it % 2])
            }
            generate(WARM_UP)
            val before = residentBytes()
            generate(GENERATIONS)
            val grown = residentBytes() - before
            // A tenth of what leaking the smallest buffers each time would add.
            val bound = GENERATIONS / 10 * smallestBuffers()
            assertTrue(grown < bound, "grown by $grown bytes, the bound is $bound")
        }
    }

    @Test
    @Timeout(600) // against waiting without end
    fun `a generator that is cancelled while it opens is closed`(@TempDir directory: File) {
        MINI.copyTo(directory)
        fun isMapped() = directory.path in File("/proc/self/maps").readText()
        runBlocking {
            val opening = launch(start = CoroutineStart.UNDISPATCHED) {
                openGenerator(directory, OPTIONS)
            }
            while (!isMapped()) Thread.sleep(1) // it opens on another thread
            opening.cancelAndJoin()
        }
        assertFalse(isMapped())
    }

    private fun smallestBuffers(): Long =
        MINI.artifact.buckets(MINI.file).filter { !it.encodes }.minOf(::bytes)

    private fun bytes(bucket: Bucket): Long {
        val tensors = bucket.inputs.values + bucket.outputs.values
        return tensors.sumOf { it.elements.toLong() * Float.SIZE_BYTES }
    }

    private fun residentBytes(): Long {
        System.gc()
        return File("/proc/self/statm").readText().split(" ")[1].toLong() * PAGE
    }

    private companion object {
        const val WARM_UP = 40
        const val GENERATIONS = 200
        const val PAGE = 4096L
    }
}
