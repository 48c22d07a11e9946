package org.bartexport.runtime

import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import org.bartexport.Bucket
import org.bartexport.InputError
import org.bartexport.SMALL
import org.bartexport.VOCABULARY_SIZE
import org.bartexport.assertOneLine
import org.bartexport.readBuckets
import org.bartexport.signaturesOf
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

class BucketsTest {
    // Largest first: the order in the file does not matter.
    private val buckets = readBuckets(signaturesOf(listOf(16, 8), listOf(4, 1), 16))

    private fun ids(count: Int) = IntArray(count) { it + 1 }

    private class Row(
        val tokens: Int,
        val beams: Int,
        val maxLength: Int,
        val encode: String,
        val decode: String,
    )

    private val fitting = listOf(
        Row(1, 1, 2, "encode_8", "decode_8_1"),
        Row(8, 1, 16, "encode_8", "decode_8_1"),
        Row(9, 1, 16, "encode_16", "decode_16_1"),
        Row(16, 4, 16, "encode_16", "decode_16_4"),
        Row(3, 2, 16, "encode_8", "decode_8_4"),
        Row(3, 4, 3, "encode_8", "decode_8_4"),
    )

    @TestFactory
    fun `the smallest buckets with room are taken`(): List<DynamicTest> = fitting.map { row ->
        dynamicTest("${row.tokens} tokens, ${row.beams} beams, ${row.maxLength} long") {
            val fitted = fit(SMALL, buckets, ids(row.tokens), row.beams, row.maxLength)
            assertEquals(row.encode, fitted.encode.name)
            assertEquals(row.decode, fitted.decode.name)
        }
    }

    @Test
    fun `drafts have the bucket of their source, with one beam`() {
        val drafting = readBuckets(signaturesOf(listOf(16, 8), listOf(4, 1), 16, draft = 5))
        fun draft(of: List<Bucket>, tokens: Int, beams: Int) =
            fit(SMALL, of, ids(tokens), beams, 16).draft?.name
        assertEquals("decode_draft_8", draft(drafting, 8, 1))
        assertEquals("decode_draft_16", draft(drafting, 9, 1))
        assertEquals(null, draft(drafting, 9, 2))
        assertEquals(null, draft(buckets, 8, 1))
    }

    @Test
    fun `a source is filled up and the filling is masked`() {
        val fitted = fit(SMALL, buckets, ids(3), 1, 16)
        assertContentEquals(intArrayOf(1, 2, 3, 0, 0, 0, 0, 0), fitted.tokenIds)
        assertContentEquals(intArrayOf(1, 1, 1, 0, 0, 0, 0, 0), fitted.paddingMask)
        assertContentEquals(IntArray(8) { 1 }, fit(SMALL, buckets, ids(8), 1, 16).paddingMask)
    }

    @Test
    fun `a source that is filled up is a copy`() {
        val source = ids(8)
        fit(SMALL, buckets, source, 1, 16).tokenIds[0] = 99
        assertEquals(1, source[0])
    }

    private class Refusal(
        val says: String,
        val tokenIds: IntArray,
        val beams: Int = 1,
        val maxLength: Int = 16,
    )

    private val refused = listOf(
        Refusal("A source's number of tokens must be at most 16 in this static build", ids(17)),
        Refusal("its sizes: 8, 16), received 17", ids(17)),
        Refusal("num_beams, or num_return_sequences, must be at most 4", ids(3), beams = 5),
        Refusal("max_length must be at most 16", ids(3), maxLength = 17),
        Refusal("A source must have 1 to 256 tokens, received 0", ids(0)),
        Refusal("A source must have 1 to 256 tokens, received 257", IntArray(257)),
        Refusal("Token ids must be from 0 to 260, received -1", intArrayOf(0, -1)),
        Refusal("Token ids must be from 0 to 260, received 261", intArrayOf(VOCABULARY_SIZE)),
    )

    @TestFactory
    fun `is refused`(): List<DynamicTest> = refused.map { row ->
        dynamicTest(row.says) {
            val error = assertFailsWith<InputError> {
                fit(SMALL, buckets, row.tokenIds, row.beams, row.maxLength)
            }
            assertOneLine(error.message, row.says)
        }
    }

    @Test
    fun `spare beams keep their place`() {
        val (tokenIds, beamIndex) = fillRows(4, intArrayOf(7, 8), intArrayOf(1, 0))
        assertContentEquals(intArrayOf(7, 8, 0, 0), tokenIds)
        assertContentEquals(intArrayOf(1, 0, 2, 3), beamIndex)
        val (all, same) = fillRows(2, intArrayOf(7, 8), intArrayOf(1, 1))
        assertContentEquals(intArrayOf(7, 8), all)
        assertContentEquals(intArrayOf(1, 1), same)
    }
}
