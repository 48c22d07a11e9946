package org.bartexport

import java.io.File
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.encodeToJsonElement
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** Reads the bundles that Python exported. */
class BundleTest {
    private val bundles = listOf(
        "bart_mini_en",
        "bart_tiny_symmetric",
        "bart_tiny_distilled",
        "one_source",
    ).map { File(System.getProperty("bart_export.build"), it) }

    private fun json(directory: File, name: String) =
        Json.parseToJsonElement(File(directory, name).readText()).jsonObject

    private fun each(test: (File, Artifact) -> Unit): List<DynamicTest> = bundles.map {
        dynamicTest(it.name) { test(it, Artifact.open(it)) }
    }

    @TestFactory
    fun `every file of a bundle is the one that its manifest names`() = each { directory, opened ->
        assertEquals(json(directory, "manifest.json")["files"]?.jsonObject?.keys, files(opened))
        for (name in files(opened)) assertTrue(opened.path(name, rehash = true).isFile, name)
    }

    @TestFactory
    fun `configuration and settings are those of the manifest`() = each { directory, opened ->
        val manifest = json(directory, "manifest.json")
        val written = Json { encodeDefaults = true }
        fun same(name: String, read: String, absent: Map<String, JsonElement> = emptyMap()) {
            val expected = JsonObject(absent + manifest.getValue(name).jsonObject)
            assertEquals<JsonElement>(expected, written.parseToJsonElement(read))
        }
        same("config", written.encodeToString(opened.config))
        // Artifacts from before a setting existed lack it.
        val defaults = written.encodeToJsonElement(GenerationConfig()).jsonObject
        same("generation", written.encodeToString(opened.generation), defaults)
        // The exporter omits default values.
        same("tokenizer", Json.encodeToString(opened.manifest.tokenizer))
        same("special_token_ids", written.encodeToString(opened.manifest.specialTokenIds))
    }

    @TestFactory
    fun `buckets have every shape of the manifest for one source`() = each { directory, opened ->
        val file = opened.staticFiles().single()
        val described = json(directory, "manifest.json").at("files", file, "signatures") { it }
            .getValue("files").jsonObject.getValue(file).jsonObject
        val shapes = opened.manifest.files.getValue(file).shapes
        val buckets = opened.buckets(file)
        val signatures = described.getValue("signatures").jsonObject.filterValues {
            val sources = it.jsonObject.getValue("sizes").jsonObject[Axis.SOURCES]
            (sources?.jsonPrimitive?.int ?: 1) == 1
        }
        assertEquals(signatures.keys.toList(), buckets.map { it.name })
        for (bucket in buckets) {
            val signature = signatures.getValue(bucket.name).jsonObject
            assertEquals(signature["signature"]?.jsonPrimitive?.content, bucket.signature)
            assertEquals(tensors(signature, "inputs"), bucket.inputs)
            assertEquals(tensors(signature, "outputs"), bucket.outputs)
            assertTrue(bucket.sizes[Axis.SOURCE] in shapes?.sourceLengths.orEmpty())
        }
        val layers = opened.config.decoderNumLayers
        assertEquals(setOf(0, 2 * layers), buckets.map { it.caches.size }.toSet())
    }

    @TestFactory
    fun `the tokenizer makes the golden source ids`() = each { directory, opened ->
        val tokenizer = opened.tokenizer()
        val cases = json(directory, "golden.json").getValue("cases").jsonArray
        assertTrue(cases.isNotEmpty())
        for (case in cases.map { it.jsonObject }) {
            val text = case.getValue("text").jsonPrimitive.content
            val expected = case.getValue("source_token_ids").jsonArray.map { it.jsonPrimitive.int }
            assertContentEquals(
                expected.toIntArray(),
                tokenizer.encode(text, opened.manifest.encoderSequenceLength, truncate = true),
            )
        }
    }

    private fun files(opened: Artifact) = opened.manifest.files.keys

    private fun tensors(signature: JsonObject, side: String) =
        signature.getValue(side).jsonObject.mapValues { (_, tensor) ->
            TensorSpec(
                tensor.jsonObject.getValue("dtype").jsonPrimitive.content,
                tensor.jsonObject.getValue("shape").jsonArray.map { it.jsonPrimitive.int },
            )
        }
}
