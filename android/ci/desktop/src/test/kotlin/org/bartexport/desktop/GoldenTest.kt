/*
 * The tiny checkpoints' golden cases, which transformers answered, through the app's own engine and
 * search; mirrors tests/runtime/test_golden_static.py.
 */
package org.bartexport.desktop

import java.io.File
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipFile
import kotlin.math.abs
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.decodeFromJsonElement
import kotlinx.serialization.json.double
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.bartexport.GenerationConfig
import org.bartexport.runtime.Hypothesis
import org.bartexport.runtime.SearchEvent
import org.bartexport.runtime.search
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

class GoldenTest {
    @ParameterizedTest
    @ValueSource(strings = ["bart_tiny_symmetric", "bart_tiny_distilled"])
    fun `every golden case is answered token for token, and with its scores`(name: String) {
        val directory = File(GOLDEN, name)
        val sources = sources(File(directory, "forward.npz"))
        val cases = json(directory, "generate.json").jsonArray.map { it.jsonObject }
        val defaults = json(directory, "generation_config.json").jsonObject - "transformers_version"
        bundle(name).engine().use { engine ->
            val wrong = cases.filterNot { case ->
                val settings = settings(case.getValue("parameters").jsonObject, defaults)
                val source = sources[case.getValue("row").jsonPrimitive.int]
                val state = engine.start(source, settings.numBeams, settings.maxLength)
                val events = search(engine::step, state, settings)
                matches(case, (events.last() as SearchEvent.Finished).hypotheses, settings)
            }
            assertEquals(emptyList(), wrong.take(1), "${wrong.size} of ${cases.size} differ")
        }
        assertTrue(cases.size > SOME)
    }

    private fun settings(parameters: JsonObject, defaults: Map<String, *>): GenerationConfig {
        val own = parameters - "defaults"
        val merged = if ("defaults" in parameters) defaults + own else own
        @Suppress("UNCHECKED_CAST")
        return Json.decodeFromJsonElement(
            JsonObject(merged as Map<String, kotlinx.serialization.json.JsonElement>),
        )
    }

    private fun matches(
        case: JsonObject,
        hypotheses: List<Hypothesis>,
        settings: GenerationConfig,
    ): Boolean {
        val longest = hypotheses.maxOf { it.tokenIds.size }
        val received = hypotheses.map { one ->
            one.tokenIds + List(longest - one.tokenIds.size) { settings.padTokenId }
        }
        val expected = case.getValue("sequences").jsonArray
            .map { row -> row.jsonArray.map { it.jsonPrimitive.int } }
        val scores = case["scores"]?.jsonArray?.map { it.jsonPrimitive.double }
        return received == expected &&
            (
                scores == null ||
                    scores.zip(hypotheses).all { (one, two) -> abs(one - two.score) < TOLERANCE }
                )
    }

    private fun json(directory: File, name: String) =
        Json.parseToJsonElement(File(directory, name).readText())

    /** The source token ids of each row, without padding. */
    private fun sources(npz: File): List<IntArray> = ZipFile(npz).use { zip ->
        fun array(name: String) = zip.getInputStream(zip.getEntry("$name.npy")).use(::rows)
        array("encoder_token_ids").zip(array("encoder_padding_mask")).map { (ids, mask) ->
            ids.filterIndexed { position, _ -> mask[position] > 0 }.toIntArray()
        }
    }

    /** Reads a matrix of integers that NumPy saved. */
    private fun rows(stream: InputStream): List<IntArray> {
        val bytes = ByteBuffer.wrap(stream.readAllBytes()).order(ByteOrder.LITTLE_ENDIAN)
        val begins = HEADER + bytes.getShort(HEADER - 2)
        val header = String(bytes.array(), HEADER, begins - HEADER, Charsets.US_ASCII)
        val (width) = checkNotNull(Regex("'<i([48])', 'fortran_order': False").find(header))
            .destructured
        val (count, length) = checkNotNull(Regex("\\((\\d+), (\\d+)\\)").find(header))
            .destructured
        bytes.position(begins)
        return List(count.toInt()) {
            IntArray(length.toInt()) {
                if (width == "8") bytes.getLong().toInt() else bytes.getInt()
            }
        }
    }

    private companion object {
        const val TOLERANCE = 1e-3
        const val SOME = 200
        const val HEADER = 10
    }
}
