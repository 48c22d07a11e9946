package org.bartexport.runtime

import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.pow
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertSame
import kotlin.test.assertTrue
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import org.bartexport.ConfigurationError
import org.bartexport.EarlyStopping
import org.bartexport.EngineError
import org.bartexport.GenerationConfig

class SearchTest {
    @Serializable
    private class PythonSearch(
        @SerialName("vocabulary_size") val vocabularySize: Int,
        val generation: GenerationConfig,
        val hypotheses: List<PythonHypothesis>,
        val settled: List<List<Int>>,
    )

    @Serializable
    private class PythonHypothesis(
        @SerialName("token_ids") val tokenIds: List<Int>,
        val score: Double,
    )

    @Test
    fun `every search gives Python's tokens, scores and settled tokens`() {
        val rows = madeByPython("search.jsonl").readLines()
        assertTrue(rows.size >= 150)
        for (row in rows) {
            val expected = Json.decodeFromString<PythonSearch>(row)
            val step = CountedStep(model = sharedModel(expected.vocabularySize))
            val events = events(step, expected.generation).toList()
            val hypotheses = (events.last() as SearchEvent.Finished).hypotheses
            assertEquals(
                expected.hypotheses.map { it.tokenIds },
                hypotheses.map { it.tokenIds },
                "${expected.generation}",
            )
            assertEquals(
                expected.settled,
                events.dropLast(1).map { (it as SearchEvent.Settled).tokenIds },
                "${expected.generation}",
            )
            for ((one, other) in expected.hypotheses zip hypotheses) {
                val error = abs(one.score - other.score)
                assertTrue(error <= 2e-6 * maxOf(1.0, abs(one.score)), "$one $other")
            }
        }
    }

    @Test
    fun `enough beams find every sequence in order`() {
        for (lengthPenalty in listOf(-1.0, 0.0, 1.0, 2.0)) {
            val model = randomModel(seed = 3)
            val generation = SETTINGS.copy(
                maxLength = 4,
                numBeams = 200,
                numReturnSequences = 200,
                lengthPenalty = lengthPenalty,
                earlyStopping = EarlyStopping.NEVER,
            )
            val found = hypotheses(model, generation)
            val expected = everySequence(model, generation)
            assertEquals(expected.map { it.tokenIds }, found.map { it.tokenIds })
            for ((one, other) in expected zip found) {
                assertEquals(one.score, other.score, 1e-5)
            }
        }
    }

    @Test
    fun `greedy search takes the likeliest token and adds up log-probabilities`() {
        for (seed in 0 until 20) {
            val model = randomModel(seed)
            var tokens = listOf(START)
            var total = 0.0
            while (tokens.size < SETTINGS.maxLength && (tokens.size == 1 || tokens.last() != END)) {
                val row = logProbabilities(model(tokens))
                val token = row.indices.maxByOrNull { row[it] } ?: END
                tokens = tokens + token
                total += row[token]
            }
            val hypothesis = hypotheses(model, SETTINGS).single()
            assertEquals(tokens, hypothesis.tokenIds)
            assertEquals(total, hypothesis.score, 1e-5)
        }
    }

    @Test
    fun `the repetition penalty changes the choice but not the score of a token`() {
        val penalised = SETTINGS.copy(repetitionPenalty = 3.0)
        val changed = (0 until 20).count { seed ->
            val model = randomModel(seed)
            val hypothesis = hypotheses(model, penalised).single()
            val tokens = hypothesis.tokenIds
            val total = (1 until tokens.size).sumOf { length ->
                logProbabilities(model(tokens.take(length)))[tokens[length]]
            }
            assertEquals(total, hypothesis.score, 1e-5)
            tokens != hypotheses(model, SETTINGS).single().tokenIds
        }
        assertTrue(changed > 5)
    }

    @Test
    fun `one sample among one token is greedy search`() {
        for (seed in 0 until 20) {
            val one = SETTINGS.copy(doSample = true, topK = 1, seed = 3)
            val model = randomModel(seed)
            assertEquals(hypotheses(model, SETTINGS), hypotheses(model, one))
        }
    }

    @Test
    fun `equal logits go to the lower token and the lower beam`() {
        val short = SETTINGS.copy(maxLength = 4)
        assertEquals(listOf(0, 0, 0, 0), hypotheses(flatModel(), short).single().tokenIds)
        val two = short.copy(numBeams = 2, minLength = 4, numReturnSequences = 2)
        assertEquals(
            listOf(listOf(0, 0, 0, 0), listOf(0, 0, 0, 2)),
            hypotheses(flatModel(), two).map { it.tokenIds },
        )
    }

    @Test
    fun `beams that can only equal the finished hypotheses are not continued`() {
        val step = CountedStep(model = flatModel())
        val finished = events(step, SETTINGS.copy(numBeams = 2)).last() as SearchEvent.Finished
        assertEquals(listOf(START, END), finished.hypotheses[0].tokenIds)
        assertEquals(2, step.calls.size)
    }

    @Test
    fun `a vocabulary smaller than the beams gives what there is`() {
        val generation = SETTINGS.copy(maxLength = 3, numBeams = 5, numReturnSequences = 5)
        val found = hypotheses(flatModel(vocabulary = 2), generation)
        assertEquals(
            setOf(listOf(0, 0, 0), listOf(0, 0, 1), listOf(0, 1)),
            found.map { it.tokenIds }.toSet(),
        )
        assertEquals(3, found.size)
    }

    @Test
    fun `a forced token at the end needs no step`() {
        for (kind in kinds(SETTINGS.copy(minLength = 6, maxLength = 6, forcedEosTokenId = END))) {
            val step = CountedStep(model = randomModel(2))
            val finished = events(step, kind).last() as SearchEvent.Finished
            assertEquals(4, step.calls.size)
            assertEquals(6, finished.hypotheses[0].tokenIds.size)
            assertEquals(END, finished.hypotheses[0].tokenIds.last())
        }
    }

    @Test
    fun `forced tokens at both ends leave one sequence with a score of zero`() {
        val generation = SETTINGS.copy(
            maxLength = 3,
            numBeams = 4,
            numReturnSequences = 4,
            forcedBosTokenId = 2,
            forcedEosTokenId = END,
        )
        val expected = Hypothesis(listOf(START, 2, END), 0.0)
        assertEquals(listOf(expected), hypotheses(randomModel(1), generation))
    }

    @Test
    fun `nothing is computed before it is asked for or after the asking ends`() {
        for (kind in kinds(SETTINGS.copy(minLength = 12))) {
            val step = CountedStep(model = randomModel(2))
            val events = events(step, kind)
            assertEquals(0, step.calls.size)
            events.take(2).toList()
            assertEquals(2, step.calls.size)
        }
    }

    @Test
    fun `a search can be run again`() {
        for (kind in kinds(SETTINGS.copy(seed = 3))) {
            val events = events(CountedStep(model = randomModel(2)), kind)
            assertEquals(events.toList(), events.toList())
        }
    }

    @Test
    fun `the state is handed on unseen and the number of beams stays`() {
        val kinds = listOf(SETTINGS.copy(numBeams = 3), SETTINGS.copy(doSample = true, seed = 0))
        for (kind in kinds) {
            var latest = Any()
            val step = Step<Any> { state, request ->
                assertSame(latest, state)
                assertEquals(3, request.tokenIds.size)
                assertEquals(3, request.beamIndex.size)
                latest = Any()
                Stepped(Logits(FloatArray(3 * VOCABULARY) { (it % VOCABULARY) / 9f }, 3), latest)
            }
            drive(search(kind.copy(numReturnSequences = 3)), step, latest).last()
        }
    }

    @Test
    fun `a step may hand out the same buffer every time`() {
        for (kind in kinds(SETTINGS.copy(noRepeatNgramSize = 2, repetitionPenalty = 1.2))) {
            val inner = CountedStep(model = randomModel(5))
            val buffer = FloatArray(kind.numBeams * VOCABULARY)
            val step = Step<Sequences> { state, request ->
                val stepped = inner(state, request)
                stepped.logits.values.copyInto(buffer)
                Stepped(Logits(buffer, kind.numBeams), stepped.state)
            }
            val again = kind.copy(seed = 1)
            assertEquals(
                SearchEvent.Finished(hypotheses(randomModel(5), again)),
                events(step, again).last(),
            )
        }
    }

    @Test
    fun `broken logits end the search at once`() {
        for (broken in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
            for (kind in kinds(SETTINGS.copy(minLength = 12))) {
                val step = CountedStep { sequence ->
                    randomModel(0)(sequence).also { if (sequence.size == 3) it[4] = broken }
                }
                val error = assertFailsWith<EngineError> { events(step, kind).last() }
                assertTrue("finite logits" in error.message.orEmpty())
                assertEquals(3, step.calls.size)
            }
        }
    }

    @Test
    fun `settings that forbid every token are an error`() {
        for (kind in kinds(SETTINGS.copy(noRepeatNgramSize = 1, minLength = 12))) {
            val error = assertFailsWith<ConfigurationError> { hypotheses(randomModel(0), kind) }
            assertTrue("token after the first 5," in error.message.orEmpty(), error.message)
        }
    }

    @Test
    fun `never stopping early is no different where longer sequences cannot gain`() {
        for (seed in 0 until 30) {
            for (lengthPenalty in listOf(0.0, -0.5, -1.0)) {
                val generation = SETTINGS.copy(numBeams = 3, lengthPenalty = lengthPenalty)
                val never = generation.copy(earlyStopping = EarlyStopping.NEVER)
                val steps = List(2) { CountedStep(model = randomModel(seed)) }
                assertEquals(
                    events(steps[0], generation).toList(),
                    events(steps[1], never).toList(),
                )
                assertEquals(steps[0].calls, steps[1].calls)
            }
        }
    }

    @Test
    fun `extreme length penalties do no harm`() {
        for (lengthPenalty in listOf(1e6, -1e6)) {
            val generation = SETTINGS.copy(
                numBeams = 3,
                lengthPenalty = lengthPenalty,
                earlyStopping = EarlyStopping.NEVER,
            )
            assertTrue(hypotheses(randomModel(0), generation)[0].score.isFinite())
        }
    }

    @Test
    fun `settled tokens stand whatever the model says later`() {
        val many = listOf(2, 3, 5).flatMap { beams ->
            EarlyStopping.values().flatMap { stopping ->
                listOf(-0.5, 0.0, 1.0, 2.0).map { penalty ->
                    SETTINGS.copy(
                        numBeams = beams,
                        earlyStopping = stopping,
                        lengthPenalty = penalty,
                    )
                }
            }
        }
        for ((seed, generation) in many.withIndex()) {
            val known = randomModel(seed, sharpness = 3.0)
            val settled = settled(known, generation)
            for (turn in 2 until settled.size step 2) {
                val other = randomModel(1000 + seed, sharpness = 3.0)
                val changed: Model = { if (it.size > turn) other(it) else known(it) }
                val again = settled(changed, generation)
                assertEquals(settled.take(turn), again.take(turn))
                val best = hypotheses(changed, generation)[0].tokenIds
                assertEquals(best.drop(1), again.flatten())
            }
        }
    }

    /** Returns the settings for greedy search, beam search and sampling. */
    private fun kinds(generation: GenerationConfig): List<GenerationConfig> =
        listOf(generation, generation.copy(numBeams = 3), generation.copy(doSample = true))

    private fun settled(model: Model, generation: GenerationConfig): List<List<Int>> =
        events(CountedStep(model = model), generation)
            .filterIsInstance<SearchEvent.Settled>()
            .map { it.tokenIds }
            .toList()

    /** Returns all possible sequences, best first. */
    private fun everySequence(model: Model, generation: GenerationConfig): List<Hypothesis> {
        val found = mutableListOf<Hypothesis>()

        fun extend(tokens: List<Int>, total: Double) {
            val row = logProbabilities(model(tokens))
            for (token in row.indices) {
                val longer = tokens + token
                val sum = total + row[token]
                if (token == END || longer.size == generation.maxLength) {
                    val divisor = tokens.size.toDouble().pow(generation.lengthPenalty)
                    found += Hypothesis(longer, sum / divisor)
                } else {
                    extend(longer, sum)
                }
            }
        }
        extend(listOf(START), 0.0)
        return found.sortedByDescending { it.score }
    }

    private fun logProbabilities(row: FloatArray): List<Double> {
        val normalizer = ln(row.sumOf { exp(it.toDouble()) })
        return row.map { it - normalizer }
    }
}
