package org.bartexport.desktop

import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.bartexport.runtime.GenerationEvent
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** A cancelled generation ends within one token, and the next one is correct. */
class CancellationTest {
    private val row = ROWS.maxBy { integers(it.answer("greedy").getValue("token_ids")).size }

    private fun each(test: (String) -> Unit): List<DynamicTest> =
        SETTINGS.keys.map { dynamicTest(it) { test(it) } }

    private fun next(engine: WatchedEngine, name: String) = assertEquals(
        integers(row.answer(name).getValue("token_ids")),
        engine.answer(row.sourceTokenIds, SETTINGS.getValue(name)).first().tokenIds,
    )

    @TestFactory
    fun `cancelled during a step, no further step is made`() = each { name ->
        var job: Job? = null
        val engine = WatchedEngine(MINI.engine) { if (it == 3) job?.cancel() }
        runBlocking(Dispatchers.Default) {
            val generating = launch(start = CoroutineStart.LAZY) {
                MINI.generator(engine).generate(row.text, SETTINGS.getValue(name), true).collect()
            }
            job = generating
            generating.join()
        }
        assertEquals(3, engine.steps.get())
        next(engine, name)
    }

    @TestFactory
    fun `cancelled at any moment, at most the step that runs is finished`() = each { name ->
        val engine = WatchedEngine(MINI.engine)
        var atCancellation = 0
        runBlocking(Dispatchers.Default) {
            val generating = launch {
                MINI.generator(engine).generate(row.text, SETTINGS.getValue(name), true).collect {
                    if (it is GenerationEvent.Text && it.tokens >= 2) {
                        cancel()
                        atCancellation = engine.steps.get() // after it, so that no step is missed
                    }
                }
            }
            generating.join()
        }
        assertTrue(atCancellation >= 2, "$atCancellation")
        assertTrue(engine.steps.get() <= atCancellation + 1, "${engine.steps} $atCancellation")
        next(engine, name)
    }
}
