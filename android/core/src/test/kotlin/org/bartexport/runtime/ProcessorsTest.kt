package org.bartexport.runtime

import java.util.Random
import kotlin.test.Test
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import org.bartexport.GenerationConfig

class ProcessorsTest {
    private val vocabulary = 5

    @Test
    fun `a token is banned exactly when its n-gram was seen`() {
        val chance = Random(1)
        for (size in listOf(1, 2, 3, 4, 30)) {
            for (length in listOf(1, 2, 3, 7, 25, 25, 25)) {
                val tokens = List(length) { chance.nextInt(3) }
                val seen = tokens.windowed(size).toSet()
                val last = tokens.drop(maxOf(length - size + 1, 0))
                val expected = (0 until vocabulary).filter { length >= size && last + it in seen }
                assertEquals(expected, banned(noRepeatNgram(size), tokens), "$size $tokens")
            }
        }
    }

    @Test
    fun `only tokens of the sequence so far are looked at`() {
        val found = processed(noRepeatNgram(1), listOf(3, 4), length = 1)
        assertContentEquals(floatArrayOf(0f, 0f, 0f, Float.NEGATIVE_INFINITY, 0f), found)
    }

    @Test
    fun `every end is banned until there are minLength tokens with the start`() {
        assertEquals(listOf(3, 4), banned(minLength(3, listOf(4, 3)), listOf(2, 0)))
        assertEquals(emptyList(), banned(minLength(3, listOf(4)), listOf(2, 0, 0)))
    }

    @Test
    fun `the repetition penalty makes seen tokens less likely once`() {
        val logits = floatArrayOf(1f, 1f, -1f, -1f, 0f)
        val found = processed(repetitionPenalty(2.0), listOf(1, 3, 3, 1), logits = logits)
        assertContentEquals(floatArrayOf(1f, 0.5f, -1f, -2f, 0f), found)
    }

    @Test
    fun `the repetition penalty multiplies log-probabilities`() {
        for ((logit, zero) in listOf(5f to 7f, 1f to 2f)) {
            val logits = FloatArray(vocabulary) { logit }
            val found = processed(repetitionPenalty(2.0), listOf(0), logits = logits, zero = zero)
            assertEquals(zero - 2 * (zero - logit), found[0])
            assertEquals(logit, found[1])
        }
    }

    @Test
    fun `every row is processed with its own tokens and its own zero`() {
        val logits = Logits(FloatArray(2 * vocabulary) { 1f }, 2)
        val sequences = arrayOf(intArrayOf(1, 0), intArrayOf(2, 0))
        val all = listOf(repetitionPenalty(2.0), minLength(3, listOf(4)))
        all.process(sequences, 1, logits, floatArrayOf(3f, 1.5f))
        val banned = Float.NEGATIVE_INFINITY
        assertContentEquals(
            floatArrayOf(1f, -1f, 1f, 1f, banned, 1f, 1f, 0.5f, 1f, banned),
            logits.values,
        )
    }

    @Test
    fun `only what the settings switch on is applied`() {
        val repetitive = listOf(1, 1)
        val switches = mapOf(
            GenerationConfig() to listOf(0f, 1f, 1f, 1f, 1f),
            GenerationConfig(repetitionPenalty = 2.0) to listOf(0f, 0.5f, 1f, 1f, 1f),
            GenerationConfig(noRepeatNgramSize = 2) to
                listOf(0f, Float.NEGATIVE_INFINITY, 1f, 1f, 1f),
            GenerationConfig(minLength = 5) to listOf(0f, 1f, Float.NEGATIVE_INFINITY, 1f, 1f),
        )
        for ((generation, expected) in switches) {
            val logits = Logits(floatArrayOf(0f, 1f, 1f, 1f, 1f), 1)
            val sequences = arrayOf(repetitive.toIntArray())
            processors(generation).process(sequences, 2, logits, FloatArray(1))
            assertEquals(expected, logits.values.toList(), "$generation")
        }
    }

    @Test
    fun `tokens are forced at the beginning and at the end`() {
        val both = GenerationConfig(maxLength = 5, forcedBosTokenId = 7, forcedEosTokenId = 9)
        assertEquals(listOf(7, null, null, 9), (1..4).map { forcedToken(both, it) })
        assertEquals(null, forcedToken(GenerationConfig(maxLength = 5), 1))
        assertEquals(null, forcedToken(GenerationConfig(maxLength = 5), 4))
        assertEquals(9, forcedToken(both.copy(maxLength = 2), 1))
    }

    /** Returns the second of two rows of logits after a processor was applied to it. */
    private fun processed(
        processor: Processor,
        tokens: List<Int>,
        length: Int = tokens.size,
        logits: FloatArray = FloatArray(vocabulary),
        zero: Float = 0f,
    ): FloatArray {
        val values = FloatArray(vocabulary) + logits
        processor.process(tokens.toIntArray(), length, values, vocabulary, zero)
        assertContentEquals(FloatArray(vocabulary), values.copyOf(vocabulary))
        return values.copyOfRange(vocabulary, 2 * vocabulary)
    }

    private fun banned(processor: Processor, tokens: List<Int>): List<Int> {
        val logits = processed(processor, tokens)
        return logits.indices.filter { logits[it] == Float.NEGATIVE_INFINITY }
    }
}
