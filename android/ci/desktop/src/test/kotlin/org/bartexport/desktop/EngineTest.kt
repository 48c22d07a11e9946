package org.bartexport.desktop

import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.bartexport.Artifact
import org.bartexport.Axis
import org.bartexport.EngineError
import org.bartexport.GenerationConfig
import org.bartexport.InputError
import org.bartexport.litert.Accelerator
import org.bartexport.litert.CompiledModelEngine
import org.bartexport.runtime.SearchEvent
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir

/** The engine's behavior apart from its tokens. */
class EngineTest {
    private val greedy = SETTINGS.getValue("greedy")
    private val beams = SETTINGS.getValue("beams")
    private val byLength = ROWS.sortedBy { it.sourceTokenIds.size }
    private val short = byLength.first()
    private val long = byLength.last()

    private fun expected(row: Row, settings: String) =
        integers(row.answer(settings).getValue("token_ids"))

    @Test
    fun `the GPU that is asked for and not there is the CPU, and says why`() {
        MINI.open(OPTIONS.copy(accelerator = Accelerator.GPU)).use { engine ->
            assertEquals(Accelerator.CPU, engine.accelerator)
            assertOneLine(assertNotNull(engine.fallback), "GPU")
            val received = engine.answer(long.sourceTokenIds, beams).first().tokenIds
            assertEquals(expected(long, "beams"), received)
        }
        assertEquals(Accelerator.CPU, MINI.engine.accelerator)
        assertNull(MINI.engine.fallback)
    }

    @Test
    fun `changing buckets between generations changes nothing`() {
        val asked = listOf(
            short to greedy,
            long to greedy,
            long to beams,
            short to beams,
            short to greedy,
            long to beams,
        )
        MINI.open().use { engine ->
            for ((row, generation) in asked) {
                val alone = MINI.open().use { it.answer(row.sourceTokenIds, generation) }
                assertEquals(alone, engine.answer(row.sourceTokenIds, generation))
            }
        }
    }

    @Test
    fun `a closed engine is refused, and closed again in peace`() {
        val engine = MINI.open()
        val state = engine.start(short.sourceTokenIds.toIntArray(), 1, greedy.maxLength)
        repeat(2) { engine.close() }
        val one = intArrayOf(0)
        val request = SearchEvent.Decode(one, one)
        val starting = assertFailsWith<EngineError> { engine.start(one, 1, 2) }
        val stepping = assertFailsWith<EngineError> { engine.step(state, request) }
        for (error in listOf(starting, stepping)) assertOneLine(error.message, "closed")
    }

    @TestFactory
    fun `a decoding that another one has ended is refused`(): List<DynamicTest> =
        listOf("the same bucket" to short, "another bucket" to long).map { (name, next) ->
            dynamicTest(name) {
                val engine = MINI.engine
                val start = intArrayOf(greedy.decoderStartTokenId)
                val request = SearchEvent.Decode(start, intArrayOf(0))
                val ended = engine.start(short.sourceTokenIds.toIntArray(), 1, greedy.maxLength)
                val current = engine.start(next.sourceTokenIds.toIntArray(), 1, greedy.maxLength)
                val error = assertFailsWith<EngineError> { engine.step(ended, request) }
                assertOneLine(error.message, "one generation at a time")
                assertEquals(1, engine.step(current, request).logits.rows)
            }
        }

    private val largest = MINI.artifact.buckets(MINI.file).let { buckets ->
        listOf(Axis.SOURCE, Axis.BEAMS, Axis.CAPACITY).associateWith { axis ->
            buckets.mapNotNull { it.sizes[axis] }.max()
        }
    }

    @TestFactory
    fun `more than the largest bucket has room for is refused in one line`(): List<DynamicTest> =
        listOf(
            Triple("num_beams", 1, 0),
            Triple("max_length", 0, 1),
        ).map { (name, moreBeams, moreLength) ->
            dynamicTest(name) {
                val tokenIds = short.sourceTokenIds.toIntArray()
                val beams = largest.getValue(Axis.BEAMS)
                val length = largest.getValue(Axis.CAPACITY)
                val error = assertFailsWith<InputError> {
                    MINI.engine.start(tokenIds, beams + moreBeams, length + moreLength)
                }
                val limit = if (moreBeams > 0) beams else length
                assertOneLine(error.message, name, "at most $limit", "received ${limit + 1}")
                MINI.engine.start(tokenIds, beams, length)
            }
        }

    @Test
    fun `a source is as long as the largest bucket, not as the model`(@TempDir directory: File) {
        val model = TINY.first()
        val sources = model.artifact.buckets(model.file).mapNotNull { it.sizes[Axis.SOURCE] }
        val (longest, shorter) = sources.distinct().sortedDescending()
        reseal(model.copyTo(directory)) { manifest ->
            manifest.at("files", model.file, "signatures") { signatures ->
                signatures.filterValues { source(it) < longest }
            }
        }
        val artifact = Artifact.open(directory)
        CompiledModelEngine.open(artifact, model.file, OPTIONS).use { engine ->
            assertEquals(shorter, engine.sourceLength)
            val error = assertFailsWith<InputError> { engine.start(IntArray(shorter + 1), 1, 2) }
            assertOneLine(error.message, "at most $shorter", "received ${shorter + 1}")
            engine.answer(List(shorter) { 0 }, GenerationConfig(maxLength = 4))
        }
        generatorOf(directory).use { generator ->
            assertEquals(shorter, generator.encoderSequenceLength)
            val text = "word ".repeat(shorter)
            val error = assertFailsWith<InputError> {
                generator.result(text, GenerationConfig(maxLength = 4), truncate = false)
            }
            assertOneLine(error.message, "$shorter")
            val cut = generator.result(text, GenerationConfig(maxLength = 4))
            assertEquals(shorter, cut.sourceTokenIds.size)
        }
    }

    private fun source(signature: JsonElement): Int = signature.jsonObject.getValue("sizes")
        .jsonObject.getValue(Axis.SOURCE).jsonPrimitive.int
}
