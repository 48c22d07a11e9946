package org.bartexport.runtime

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.bartexport.GenerationConfig

class DraftedSearchTest {
    private val long = SETTINGS.copy(maxLength = 48, minLength = 48)

    /** Settings of greedy search that a draft must not circumvent. */
    private val drafting = listOf(
        long,
        long.copy(minLength = 0),
        long.copy(noRepeatNgramSize = 2),
        long.copy(repetitionPenalty = 1.3),
        long.copy(forcedBosTokenId = 3, forcedEosTokenId = END),
    )

    private class Drafted(val events: List<SearchEvent.Output>, val step: CountedStep)

    private fun drafted(generation: GenerationConfig, model: Model, most: Int, source: List<Int>) =
        CountedStep(most, model).let { step ->
            val drafts = generation.copy(promptLookupNumTokens = 6)
            Drafted(events(step, drafts, source).toList(), step)
        }

    private fun altered(tokens: List<Int>) =
        tokens.mapIndexed { place, token -> if (place % 9 == 8) 5 else token }

    @Test
    fun `whatever is drafted, the events are greedy search's`() {
        for ((seed, generation) in drafting.withIndex()) {
            val model = randomModel(seed, vocabulary = 40)
            val usual = CountedStep(model = model)
            val expected = events(usual, generation).toList()
            val tokens = (expected.last() as SearchEvent.Finished).hypotheses[0].tokenIds
            val sources = mapOf(
                "right" to tokens,
                "half right" to altered(tokens),
                "wrong" to tokens.flatMap { listOf(it, if (it == 5) 6 else 5) },
            )
            for ((name, source) in sources) {
                for (most in listOf(0, 1, 3, Int.MAX_VALUE)) {
                    val drafted = drafted(generation, model, most, source)
                    assertEquals(expected, drafted.events, "$name, $most, $generation")
                    if (most == 0 || name == "wrong") assertEquals(usual.calls, drafted.step.calls)
                }
            }
        }
    }

    @Test
    fun `a pass verifies several tokens, and a wrong guess costs one`() {
        val model = randomModel(1, vocabulary = 40)
        val usual = CountedStep(model = model)
        val end = events(usual, long).last() as SearchEvent.Finished
        val tokens = end.hypotheses[0].tokenIds
        val right = drafted(long, model, Int.MAX_VALUE, tokens).step
        assertEquals(0, right.rejected)
        // The first two guesses are not drafted; then a pass decodes seven tokens.
        assertEquals(3 + (usual.calls.size - 3 + 6) / 7, right.calls.size)
        val half = drafted(long, model, Int.MAX_VALUE, altered(tokens)).step
        assertTrue(half.rejected >= 3, "${half.rejected}")
        assertTrue(half.calls.size in right.calls.size + 1..usual.calls.size / 2)
    }
}
