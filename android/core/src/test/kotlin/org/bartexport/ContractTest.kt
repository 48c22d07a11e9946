package org.bartexport

import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

class ContractTest {
    private val signatures = signaturesOf(listOf(8, 16), listOf(1, 4), 16)

    @Test
    fun `a bucket has the sizes, tensors and caches of its signature`() {
        val buckets = readBuckets(signatures).associateBy { it.name }
        val encode = buckets.getValue("encode_8")
        assertEquals(mapOf(Axis.SOURCE to 8), encode.sizes)
        assertEquals(listOf("cross_key_0", "cross_value_0"), encode.outputs.keys.toList())
        assertEquals(emptyList(), encode.caches)

        val decode = buckets.getValue("decode_16_4")
        assertEquals(SignatureName.DECODE, decode.signature)
        assertEquals(
            mapOf(Axis.SOURCE to 16, Axis.BEAMS to 4, Axis.CAPACITY to 16),
            decode.sizes,
        )
        assertEquals(listOf("self_key_0", "self_value_0"), decode.caches)
        assertEquals(TensorSpec("float32", listOf(4, 1, 1, 2)), decode.outputs["self_key_0"])
        val cache = decode.inputs.getValue("self_key_0")
        assertEquals(TensorSpec("float32", listOf(4, 1, 16, 2)), cache)
        assertEquals(128, cache.elements)
        assertEquals(SignatureName.DECODE_SINGLE, buckets.getValue("decode_16_1").signature)
    }

    @Test
    fun `version 1 of the contract has the same buckets, with one position and whole caches`() {
        val old = readBuckets(signaturesOf(listOf(8, 16), listOf(1, 4), 16, version = 1))
        val new = readBuckets(signatures)
        assertEquals(new.map { it.name to it.sizes }, old.map { it.name to it.sizes })
        fun positions(buckets: List<Bucket>) = buckets.single { it.name == "decode_8_4" }
            .inputs.getValue(TensorName.POSITION).elements
        assertEquals(1 to 4, positions(old) to positions(new))
        val (decodingOld, decodingNew) = listOf(old, new).map { all -> all.filter { !it.encodes } }
        assertTrue(decodingOld.all { it.returnsCaches })
        assertTrue(decodingNew.none { it.returnsCaches })
    }

    @Test
    fun `buckets for several sources are left out`() {
        val two = signatures.getValue("decode_8_1") as JsonObject
        val decode = two.at("sizes") { it.with("sources", JsonPrimitive(2)) }
        val buckets = readBuckets(signatures.with("decode_2_8_1", decode))
        assertEquals(signatures.keys.toList(), buckets.map { it.name })
    }

    @Test
    fun `a bucket for drafts has caches for one sequence`() {
        val buckets = readBuckets(signaturesOf(listOf(8, 16), listOf(1, 4), 16, draft = 5))
        assertEquals(
            listOf("decode_draft_8", "decode_draft_16"),
            buckets.filter { it.drafts }.map { it.name },
        )
        val draft = buckets.last()
        assertEquals(
            mapOf(Axis.SOURCE to 16, Axis.DRAFT to 5, Axis.CAPACITY to 16),
            draft.sizes,
        )
        assertEquals(listOf("self_key_0", "self_value_0"), draft.caches)
        assertFalse(draft.returnsCaches)
    }

    private class Row(val name: String, val says: String, val change: (JsonObject) -> JsonObject)

    private val refused = listOf(
        Row("no signature at all", "received none.") { JsonObject(emptyMap()) },
        Row("only encoders", "received encode_8.") {
            JsonObject(it.filterKeys { name -> name == "encode_8" })
        },
        Row("a source length without encoder", "for each source length") {
            JsonObject(it - "encode_16")
        },
        Row("a combination of sizes that is missing", "number of beams and capacity") {
            JsonObject(it - "decode_16_4")
        },
        Row("an unknown signature", "must be one of encode, decode, decode_single, decode_draft,") {
            it.at("encode_8") { one -> one.with("signature", JsonPrimitive("x")) }
        },
        Row("an axis that is missing", "signature decode_8_1 lacks beams.") {
            it.at("decode_8_1", "sizes") { sizes -> JsonObject(sizes - "beams") }
        },
        Row("an input that is missing", "signature decode_8_4 lacks position.") {
            it.at("decode_8_4", "inputs") { inputs -> JsonObject(inputs - "position") }
        },
        Row("an output that is missing", "signature decode_8_4 lacks logits.") {
            it.at("decode_8_4", "outputs") { outputs -> JsonObject(outputs - "logits") }
        },
        Row("a draft of unknown length", "signature decode_draft_8 lacks draft.") {
            val drafts = signaturesOf(listOf(8), listOf(1), 16, draft = 5)
            drafts.at("decode_draft_8", "sizes") { sizes -> JsonObject(sizes - "draft") }
        },
        Row("a shape with a word", "signature encode_8 is not a bucket: ") {
            it.at("encode_8", "inputs", "encoder_token_ids") { tensor ->
                tensor.with("shape", JsonArray(listOf(JsonPrimitive("source"))))
            }
        },
    )

    @TestFactory
    fun `is refused`(): List<DynamicTest> = refused.map { row ->
        dynamicTest(row.name) {
            val error = assertFailsWith<ConfigurationError> {
                readBuckets(row.change(signatures))
            }
            assertOneLine(error.message, row.says)
        }
    }
}
