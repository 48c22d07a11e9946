/*
 * What the engine over the real LiteRT keeps: its memory, one generation at a time, and a line for
 * everything that cannot be.
 */
package org.bartexport.desktop

import java.io.File
import java.util.concurrent.atomic.AtomicInteger
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.bartexport.EngineError
import org.bartexport.GenerationConfig
import org.bartexport.InputError
import org.bartexport.litert.Accelerator
import org.bartexport.litert.openGenerator
import org.bartexport.runtime.Decoding
import org.bartexport.runtime.GenerationEvent
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.Stepped
import org.junit.jupiter.api.Test

class EngineTest {
    @Test
    fun `memory is flat over 200 generations that take every bucket`() {
        val engine = Mini.engine
        val buckets = listOf(20 to 1, 300 to 4, 20 to 4, 300 to 1)
        fun generate(times: Int) = repeat(times) { number ->
            val (source, beams) = buckets[number % buckets.size]
            generateShortly(engine, source, beams)
        }
        generate(WARM_UP)
        val before = residentBytes()
        generate(200)
        val grown = residentBytes() - before
        println("memory grew by ${grown / 1e6} MB to ${residentBytes() / 1e6} MB")
        assertTrue(grown < FLAT, "200 generations took ${grown / 1e6} MB more")
    }

    @Test
    fun `no step begins after a generation was cancelled, and the next one is right`() =
        runBlocking {
            val text = "The river rose two metres overnight, and by morning the bridge was closed."
            val expected = openGenerator(Mini.artifact.directory, OPTIONS).use { it.text(text) }
            val job = Job()
            val steps = AtomicInteger()
            val cancelling = object : Seq2SeqEngine by Mini.engine {
                override fun step(
                    state: Decoding,
                    tokenIds: IntArray,
                    beamIndex: IntArray,
                ): Stepped<Decoding> {
                    if (steps.incrementAndGet() == STOPPED_AT) job.cancel()
                    return Mini.engine.step(state, tokenIds, beamIndex)
                }
            }
            val generator = Mini.artifact.generator(cancelling)
            launch(job, CoroutineStart.UNDISPATCHED) { generator.text(text) }.join()
            assertEquals(STOPPED_AT, steps.get())
            assertEquals(expected, generator.text(text))
            assertTrue(steps.get() > 2 * STOPPED_AT)
        }

    @Test
    fun `a GPU that is not there is replaced by the CPU, and why is said in a line`() {
        val options = OPTIONS.copy(accelerator = Accelerator.GPU)
        val artifact = bundle(TINY_MODELS.first())
        artifact.engine(options).use { engine ->
            assertEquals(Accelerator.CPU, engine.accelerator)
            val reason = assertNotNull(engine.fallback)
            assertContains(reason, "GPU")
            assertEquals(1, reason.lines().size)
            artifact.engine().use { other ->
                assertNull(other.fallback)
                assertEquals(firstLogits(other), firstLogits(engine))
            }
        }
    }

    @Test
    fun `more than the largest bucket is refused in a line, and the next request is answered`() {
        bundle(TINY_MODELS.first()).engine().use { engine ->
            val tooMuch = mapOf(
                Triple(65, 1, 8) to "64",
                Triple(8, 5, 8) to "num_beams",
                Triple(8, 1, 25) to "max_length",
            )
            for ((request, word) in tooMuch) {
                val (source, beams, length) = request
                val error = assertFailsWith<InputError> {
                    engine.start(IntArray(source), beams, length)
                }
                assertContains(assertNotNull(error.message), word)
                assertEquals(1, error.message?.lines()?.size)
            }
            engine.start(IntArray(64), 4, 24)
        }
    }

    @Test
    fun `a decoding that another one has ended, and a closed engine, are refused`() {
        val engine = bundle(TINY_MODELS.first()).engine()
        val first = engine.start(IntArray(3), 1, 8)
        engine.start(IntArray(3), 1, 8)
        val ended = assertFailsWith<EngineError> { engine.step(first, IntArray(1), IntArray(1)) }
        assertContains(assertNotNull(ended.message), "another one has begun")
        engine.close()
        engine.close()
        val closed = assertFailsWith<EngineError> { engine.start(IntArray(3), 1, 8) }
        assertContains(assertNotNull(closed.message), "closed")
    }

    private fun generateShortly(engine: Seq2SeqEngine, source: Int, beams: Int) {
        var state = engine.start(IntArray(source) { it + 5 }, beams, 8)
        val beamIndex = IntArray(beams) { it }
        repeat(2) { state = engine.step(state, IntArray(beams), beamIndex).state }
    }

    private fun firstLogits(engine: Seq2SeqEngine): List<Float> {
        val state = engine.start(intArrayOf(0, 7, 2), 1, 8)
        return engine.step(state, intArrayOf(2), intArrayOf(0)).logits.values.toList()
    }

    private suspend fun org.bartexport.runtime.Generator.text(text: String): String =
        (generate(text, SETTINGS).last() as GenerationEvent.Finished).result.text

    private companion object {
        val SETTINGS = GenerationConfig(maxLength = 24, minLength = 16, forcedBosTokenId = 0)
        const val WARM_UP = 40
        const val STOPPED_AT = 5

        // 200 sets of buffers have 1.4 GB.
        const val FLAT = 50_000_000L
    }
}

/** What this process has in memory. */
internal fun residentBytes(): Long =
    File("/proc/self/statm").readText().split(" ")[1].toLong() * PAGE_BYTES

private const val PAGE_BYTES = 4096
