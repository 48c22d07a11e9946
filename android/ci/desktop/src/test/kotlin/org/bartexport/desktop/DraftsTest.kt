package org.bartexport.desktop

import kotlin.math.abs
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.bartexport.Axis
import org.bartexport.runtime.SearchEvent
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

/** Drafts change no result of a model on LiteRT, and rejected tokens are not read again. */
class DraftsTest {
    private val model = TINY.first()
    private val draft = model.artifact.buckets(model.file).first { it.drafts }
    private val size = draft.sizes.getValue(Axis.DRAFT)
    private val source = goldenCases("$model").last().sourceTokenIds.toIntArray()

    private fun request(position: Int, vararg draft: Int) =
        SearchEvent.Decode(intArrayOf(position + 5), intArrayOf(0), position, draft)

    @TestFactory
    fun `greedy golden cases are the same with drafts, in fewer passes`(): List<DynamicTest> =
        TINY.map { dynamicTest("$it") { it.check() } }

    private fun Model.check() {
        val cases = goldenCases("$this").filter {
            it.generation.numBeams == 1 && !it.generation.doSample
        }
        assertTrue(cases.isNotEmpty())
        val passes = SOURCES.mapValues { (name, sourceOf) ->
            val watched = WatchedEngine(engine)
            for (case in cases) {
                val plain = case.generation
                val lookedUp = sourceOf(case.sequences.single())
                val generation = plain.copy(promptLookupNumTokens = size - 1)
                val found =
                    watched.answer(case.sourceTokenIds, generation, lookedUp = lookedUp).single()
                assertEquals(case.sequences.single(), found.tokenIds, "$name, $plain")
                val score = engine.answer(case.sourceTokenIds, plain).single().score
                assertEquals(score, found.score, 1e-3)
            }
            watched.steps.get()
        }
        val tokens = cases.sumOf { it.sequences.single().size - 1 }
        assertTrue(passes.getValue("right") < tokens * 3 / 5, "$passes of $tokens")
        assertTrue(passes.getValue("half right") < tokens * 9 / 10, "$passes of $tokens")
    }

    /** Returns the logits of the tokens from [PLACES] on, one after the other. */
    private fun plainLogits(): List<FloatArray> = model.engine.let { engine ->
        var state = engine.start(source, 1, PLACES.last + 1)
        PLACES.map { position ->
            engine.step(state, request(position)).also { state = it.state }.logits.values.copyOf()
        }
    }

    private fun assertNear(expected: FloatArray, received: FloatArray, place: Int) {
        val error = expected.indices.maxOf { abs(expected[it] - received[it]) }
        assertTrue(error < 1e-4, "$error at $place")
    }

    @TestFactory
    fun `steps after a draft read only its right tokens`(): List<DynamicTest> =
        listOf(true, false).map { right ->
            dynamicTest(if (right) "right" else "wrong") {
                val expected = plainLogits()
                var state = model.engine.start(source, 1, PLACES.last + 1)
                var position = 0
                while (position in PLACES) {
                    // Short and long drafts, and plain steps between them.
                    val count = if (position % 3 == 1) 1 + position / 3 % (size - 1) else 0
                    val draft = IntArray(count) { position + it + if (right) 6 else 7 }
                    val stepped = model.engine.step(state, request(position, *draft))
                    assertEquals(1 + count, stepped.logits.rows)
                    val first = stepped.logits.values.copyOf(stepped.logits.vocabulary)
                    assertNear(expected[position], first, position)
                    state = stepped.state
                    position += if (right) 1 + count else 1
                }
            }
        }

    @Test
    fun `a draft gives the logits of all its positions, up to the end of the caches`() {
        val expected = plainLogits()
        var state = model.engine.start(source, 1, PLACES.last + 1)
        for (position in PLACES step size) {
            val guesses = IntArray(size - 1) { position + 1 + it + 5 }
            val stepped = model.engine.step(state, request(position, *guesses))
            val rows = stepped.logits.values.toList().chunked(stepped.logits.vocabulary)
            for ((row, place) in rows.zip(position..PLACES.last)) {
                assertNear(expected[place], row.toFloatArray(), place)
            }
            state = stepped.state
        }
    }

    @Test
    fun `a draft is cut to its bucket, and left out where the model has no positions`() {
        val last = model.artifact.config.maxSequenceLength - size
        val state = model.engine.start(source, 1, 2)
        fun rows(position: Int, guesses: Int) =
            model.engine.step(state, request(position, *IntArray(guesses))).logits.rows
        assertEquals(listOf(1, 2, size, size), listOf(0, 1, size - 1, 60).map { rows(0, it) })
        assertEquals(listOf(size, 1), listOf(last, last + 1).map { rows(it, size - 1) })
    }

    @Test
    fun `a file without drafts decodes token by token`() {
        val row = ROWS.first()
        val plain = SETTINGS.getValue("greedy")
        val answers = listOf(plain, plain.copy(promptLookupNumTokens = 10)).map { generation ->
            val engine = WatchedEngine(MINI.engine)
            val answer = engine.answer(row.sourceTokenIds, generation)
            answer to engine.steps.get()
        }
        assertEquals(answers[0], answers[1])
    }

    private companion object {
        /** All positions of a cache. */
        val PLACES = 0..23

        /** What is looked up for an answer, so that drafts are right or often wrong. */
        val SOURCES = mapOf<String, (List<Int>) -> List<Int>>(
            "right" to { it },
            "half right" to { it.mapIndexed { place, token -> if (place % 6 == 5) 3 else token } },
        )
    }
}
