package org.bartexport.desktop

import kotlin.math.abs
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.bartexport.Axis
import org.bartexport.GenerationConfig
import org.bartexport.runtime.Hypothesis
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** Static builds give transformers' tokens and scores; mirrors test_golden_files.py. */
class GoldenCasesTest {
    @TestFactory
    fun `every golden case token for token, and its scores`(): List<DynamicTest> = TINY.map {
        dynamicTest("$it") { it.check(goldenCases("$it")) { case -> case.generation.numBeams } }
    }

    @TestFactory
    fun `a bucket with more beams than needed gives the same`(): List<DynamicTest> = TINY.map {
        dynamicTest("$it") {
            val most = it.artifact.buckets(it.file).mapNotNull { one ->
                one.sizes[Axis.BEAMS]
            }.max()
            val cases = goldenCases("$it").filter { case -> case.generation.numBeams < most }
            it.check(cases.filterIndexed { number, _ -> number % SAMPLE == 0 }) { most }
        }
    }

    private fun Model.check(cases: List<GoldenCase>, rows: (GoldenCase) -> Int) {
        assertTrue(cases.isNotEmpty())
        val wrong = cases.filterNot { case ->
            val hypotheses = engine.answer(case.sourceTokenIds, case.generation, rows(case))
            val scores = hypotheses.map { it.score }
            padded(hypotheses, case.generation) == case.sequences &&
                near(scores, case.scores ?: scores)
        }
        val first = wrong.firstOrNull()
        assertEquals(0, wrong.size, "of ${cases.size}, the first: ${first?.generation}")
    }

    private fun padded(hypotheses: List<Hypothesis>, generation: GenerationConfig) =
        hypotheses.map { it.tokenIds }.let { rows ->
            val longest = rows.maxOf { it.size }
            rows.map { row -> row + List(longest - row.size) { generation.padTokenId } }
        }

    private fun near(received: List<Double>, expected: List<Double>) =
        received.size == expected.size &&
            received.zip(expected).all { (one, other) -> abs(one - other) <= TOLERANCE }

    private companion object {
        const val TOLERANCE = 1e-3
        const val SAMPLE = 11 // every 11th case runs in a larger bucket than it needs
    }
}
