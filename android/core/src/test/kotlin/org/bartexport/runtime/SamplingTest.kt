package org.bartexport.runtime

import java.util.Random
import kotlin.math.ln
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import org.bartexport.GenerationConfig

class SamplingTest {
    @Serializable
    private class PythonSampling(val pcg64: List<Uniforms>, val choices: List<Choices>)

    @Serializable
    private class Uniforms(val seed: Long, val uniforms: List<Double>)

    @Serializable
    private class Choices(
        val seed: Long,
        val temperature: Double,
        @SerialName("top_k") val topK: Int,
        @SerialName("top_p") val topP: Double,
        val rows: List<List<Float>>,
        val tokens: List<Int>,
    )

    private val row = listOf(0.05, 0.4, 0.1, 0.3, 0.1, 0.05).map { ln(it).toFloat() }

    @Test
    fun `a seed gives NumPy's uniform numbers`() {
        for (expected in python().pcg64) {
            val chance = Pcg64(expected.seed)
            val found = List(expected.uniforms.size) { chance.random() }
            assertEquals(expected.uniforms, found, "seed ${expected.seed}")
        }
    }

    @Test
    fun `a seed gives the tokens that Python draws`() {
        for (expected in python().choices) {
            val sampling = GenerationConfig(
                doSample = true,
                seed = expected.seed,
                temperature = expected.temperature,
                topK = expected.topK,
                topP = expected.topP,
            )
            val choice = sampledChoice(sampling)
            val found = expected.rows.map { choice.choose(logitsOf(*it.toFloatArray()), 0) }
            assertEquals(expected.tokens, found, "$sampling")
        }
    }

    @Test
    fun `tokens are drawn with their probabilities`() {
        val expectations = mapOf(
            sampling(topK = 0) to listOf(0.05, 0.4, 0.1, 0.3, 0.1, 0.05),
            sampling(topK = 2) to listOf(0.0, 4.0 / 7, 0.0, 3.0 / 7, 0.0, 0.0),
            sampling(topK = 0, topP = 0.75) to listOf(0.0, 0.5, 0.125, 0.375, 0.0, 0.0),
            sampling(topK = 2, topP = 0.5) to listOf(0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
            sampling(topK = 0, temperature = 0.5) to
                listOf(1.0, 64.0, 4.0, 36.0, 4.0, 1.0).map { it / 110 },
        )
        for ((generation, expected) in expectations) {
            val draws = 20_000
            val found = counts(row, draws, generation)
            // The 99.9th percentile for 6 tokens; a single impossible token exceeds it.
            val chiSquare = expected.indices.sumOf {
                val hoped = maxOf(expected[it] * draws, 1e-9)
                (found[it] - hoped) * (found[it] - hoped) / hoped
            }
            assertTrue(chiSquare < 20.5, "$generation: $found")
        }
    }

    @Test
    fun `without a seed no two runs are alike`() {
        val draws = List(2) {
            val choice = sampledChoice(GenerationConfig(doSample = true))
            List(64) { choice.choose(logitsOf(*row.toFloatArray()), 0) }
        }
        assertNotEquals(draws[0], draws[1])
    }

    @Test
    fun `top-k keeps all that equal the kth`() {
        assertEquals(setOf(0, 1, 2, 4), possible(listOf(1f, 5f, 1f, 0f, 1f), sampling(topK = 2)))
        assertEquals(setOf(1), possible(listOf(1f, 5f, 1f, 0f, 1f), sampling(topK = 1)))
    }

    @Test
    fun `top-p keeps the fewest tokens and the lower among equals`() {
        val flat = listOf(0f, -0f, 0f, 0f)
        assertEquals(setOf(0, 1), possible(flat, sampling(topP = 0.5)))
        assertEquals(setOf(0, 1, 2), possible(flat, sampling(topP = 0.51)))
        assertEquals(setOf(1), possible(listOf(0f, 1f, 0f, 0f), sampling(topP = 1e-9)))
        assertEquals(setOf(0, 1, 2, 3), possible(flat, sampling(topP = 1.0)))
    }

    @Test
    fun `top-p over a whole vocabulary is that of a full sort`() {
        val chance = Random(0)
        for ((sharpness, topP) in listOf(1.0 to 0.05, 4.0 to 0.5, 9.0 to 0.9)) {
            val values = List(3_000) { (chance.nextGaussian() * sharpness).toFloat() }
            val order = values.indices.sortedByDescending { values[it] }
            val shares = values.map { Math.exp(it.toDouble()) }
            var before = 0.0
            val expected = order.takeWhile {
                val enough = before >= topP * shares.sum()
                before += shares[it]
                !enough
            }
            val sampling = sampling(topK = 0, topP = topP)
            val drawn = counts(values, 40_000, sampling)
            val found = drawn.indices.filter { drawn[it] > 0 }
            assertTrue(expected.containsAll(found))
            assertTrue(found.size > 0.6 * expected.size, "${found.size} of ${expected.size}")
        }
    }

    @Test
    fun `forbidden tokens are never drawn`() {
        val banned = Float.NEGATIVE_INFINITY
        val values = listOf(banned, 0f, banned, 0f)
        assertEquals(setOf(1, 3), possible(values, sampling(topK = 0)))
        assertEquals(setOf(1, 3), possible(values, sampling(topK = 3, topP = 0.99)))
        assertEquals(setOf(0), possible(List(4) { banned }, sampling()))
    }

    @Test
    fun `a temperature near zero is greedy`() {
        assertEquals(setOf(1), possible(row, sampling(temperature = 1e-6)))
        assertEquals(1, greedyChoice.choose(logitsOf(*row.toFloatArray()), 0))
    }

    @Test
    fun `a row is chosen from alone`() {
        val rows = Logits(floatArrayOf(9f, 9f, 9f, 1f, 2f, 1f, 9f, 9f, 9f), 3)
        assertEquals(1, greedyChoice.choose(rows, 1))
        assertEquals(1, sampledChoice(sampling(topK = 1)).choose(rows, 1))
    }

    private fun python(): PythonSampling =
        Json.decodeFromString(madeByPython("sampling.json").readText())

    private fun sampling(
        temperature: Double = 1.0,
        topK: Int = 50,
        topP: Double = 1.0,
    ): GenerationConfig = GenerationConfig(
        doSample = true,
        seed = 11,
        temperature = temperature,
        topK = topK,
        topP = topP,
    )

    private fun counts(row: List<Float>, draws: Int, generation: GenerationConfig): List<Int> {
        val choice = sampledChoice(generation)
        val logits = logitsOf(*row.toFloatArray())
        val counts = IntArray(row.size)
        repeat(draws) { counts[choice.choose(logits, 0)]++ }
        return counts.toList()
    }

    private fun possible(row: List<Float>, generation: GenerationConfig): Set<Int> {
        val counts = counts(row, 300, generation)
        return counts.indices.filter { counts[it] > 0 }.toSet()
    }
}
