/*
 * The cases of the golden checkpoints; mirrors tests/support/golden_cases.py.
 *
 * generate.json has settings and transformers' results, forward.npz the sources.
 */
package org.bartexport.desktop

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipFile
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.double
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.bartexport.GenerationConfig

/** A golden case: [sequences] are padded to one length; [scores] are null if none were recorded. */
internal class GoldenCase(
    val sourceTokenIds: List<Int>,
    val generation: GenerationConfig,
    val sequences: List<List<Int>>,
    val scores: List<Double>?,
)

/** Reads the cases of a checkpoint, sorted by the buffers they need. */
internal fun goldenCases(checkpoint: String): List<GoldenCase> {
    val directory = File(System.getProperty("bart_export.golden"), checkpoint)
    val sources = sources(File(directory, "forward.npz"))
    val own = json(File(directory, "generation_config.json").readText()) - FOREIGN
    val cases = Json.parseToJsonElement(File(directory, "generate.json").readText()).jsonArray
    return cases.map { it.jsonObject }.map { case ->
        GoldenCase(
            sources[case.getValue("row").jsonPrimitive.int],
            settings(own, case.getValue("parameters").jsonObject),
            case.getValue("sequences").jsonArray.map(::integers),
            case["scores"]?.jsonArray?.map { it.jsonPrimitive.double },
        )
    }.sortedWith(compareBy({ it.sourceTokenIds.size }, { it.generation.numBeams }))
}

/** A field of generation_config.json that is not a setting. */
private const val FOREIGN = "transformers_version"
private const val DEFAULTS = "defaults"

private fun settings(own: JsonObject, parameters: JsonObject): GenerationConfig {
    val given = JsonObject(parameters - DEFAULTS)
    val all = if (parameters[DEFAULTS] == JsonPrimitive(true)) JsonObject(own + given) else given
    return Json.decodeFromJsonElement(GenerationConfig.serializer(), all)
}

private operator fun JsonObject.minus(name: String) = JsonObject(filterKeys { it != name })

/** Returns the token ids of each row, without padding. */
private fun sources(file: File): List<List<Int>> = ZipFile(file).use { zip ->
    val (ids, masks) = listOf("encoder_token_ids", "encoder_padding_mask").map { name ->
        integerRows(zip.getInputStream(zip.getEntry("$name.npy")).readBytes())
    }
    ids.zip(masks) { row, mask -> row.filterIndexed { place, _ -> mask[place] > 0 } }
}

/** Reads an int32 array (rows, columns) in NumPy's format, version 1.0. */
private fun integerRows(content: ByteArray): List<List<Int>> {
    val buffer = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
    val length = buffer.getShort(LENGTH_AT).toInt()
    val header = String(content, HEADER_AT, length, Charsets.US_ASCII)
    check("'<i4', 'fortran_order': False" in header) { "expected rows of int32, found $header" }
    val columns = checkNotNull(SHAPE.find(header)) { header }.groupValues[1].toInt()
    val values = buffer.position(HEADER_AT + length).slice().order(ByteOrder.LITTLE_ENDIAN)
    return List(values.remaining() / Int.SIZE_BYTES) { values.getInt() }.chunked(columns)
}

private const val LENGTH_AT = 8
private const val HEADER_AT = 10
private val SHAPE = Regex("""\(\d+, (\d+)\)""")
