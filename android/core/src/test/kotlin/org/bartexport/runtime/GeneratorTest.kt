package org.bartexport.runtime

import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.joinAll
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.test.StandardTestDispatcher
import kotlinx.coroutines.test.runTest
import org.bartexport.Artifact
import org.bartexport.BartExportError
import org.bartexport.ConfigurationError
import org.bartexport.EngineError
import org.bartexport.GenerationConfig
import org.bartexport.InputError
import org.bartexport.SMALL
import org.bartexport.assertOneLine
import org.bartexport.text.BartTokenizer
import org.bartexport.writeArtifact
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.Timeout
import org.junit.jupiter.api.io.TempDir

@Timeout(600) // against a deadlock
class GeneratorTest {
    @TempDir
    lateinit var directory: File

    private lateinit var tokenizer: BartTokenizer
    private val greedy = GenerationConfig(maxLength = 128)
    private val text = "Überraschung in Kraków: 文字 🐈‍⬛ e\u0301."

    @BeforeEach
    fun openTokenizer() {
        tokenizer = Artifact.open(writeArtifact(directory)).tokenizer()
    }

    private fun generator(
        engine: Seq2SeqEngine = EchoEngine(SMALL),
        dispatcher: CoroutineDispatcher = Dispatchers.Default,
    ) = Generator(tokenizer, engine, greedy, 100, dispatcher)

    private fun List<GenerationEvent>.result() = (last() as GenerationEvent.Finished).result

    private fun List<GenerationEvent>.texts() = filterIsInstance<GenerationEvent.Text>()

    private suspend fun Generator.say(
        text: String,
        generation: GenerationConfig = this.generation,
    ) = generate(text, generation).toList().result().text

    private val settings = mapOf(
        "greedy" to greedy,
        "one that cuts a character" to greedy.copy(maxLength = 3),
        "beams" to greedy.copy(numBeams = 4),
        "beams, all returned" to greedy.copy(numBeams = 3, numReturnSequences = 3),
        "a sample" to greedy.copy(doSample = true, seed = 1),
        "several samples" to greedy.copy(doSample = true, numReturnSequences = 3, seed = 2),
        "a forced end" to greedy.copy(maxLength = 20, forcedEosTokenId = 2),
    )

    @Test
    fun `summarize gives the text that the events end with, and their errors`() = runBlocking {
        val short = greedy.copy(maxLength = 9)
        generator().use { generator ->
            assertEquals(generator.say(text, short), generator.summarize(text, short))
            assertFailsWith<InputError> { generator.summarize("a".repeat(200)) }
            assertEquals(
                generator.say("a".repeat(98)),
                generator.summarize("a".repeat(200), truncate = true),
            )
        }
    }

    @TestFactory
    fun `the pieces are the text of the result`(): List<DynamicTest> = settings.map { (name, one) ->
        dynamicTest(name) {
            val events = runBlocking { generator().generate(text, one).toList() }
            val result = events.result()
            assertEquals(result.text, events.texts().joinToString("") { it.piece })
            assertEquals(one.numReturnSequences, result.sequences.size)
            assertEquals(result.sequences.sortedByDescending { it.score }, result.sequences)
            val best = GeneratedSequence(result.text, result.tokenIds, result.score)
            assertEquals(result.sequences.first(), best)
            for (sequence in result.sequences) {
                val ids = sequence.tokenIds.toIntArray()
                assertEquals(tokenizer.detokenize(ids).removePrefix(" "), sequence.text)
            }
            assertEquals(tokenizer.encode(text, 100).toList(), result.sourceTokenIds)
            val counts = events.texts().map { it.tokens }
            assertEquals(counts.sorted(), counts)
            assertEquals(result.sequences.first().tokenIds.size - 1, result.timings.tokens)
            assertTrue(counts.last() >= result.timings.tokens)
        }
    }

    @Test
    fun `the source is said again, in whole characters`() = runTest {
        val events = generator().generate(text).toList()
        assertEquals(text, events.result().text)
        val ids = tokenizer.encode(text, 100).size
        assertEquals(ids, (events.first() as GenerationEvent.Encoded).sourceTokens)
        // Every byte is a token: a character is complete with its last byte.
        assertEquals(listOf("", "", "Ü", "b", "e"), events.texts().take(5).map { it.piece })
        assertEquals((1..ids).toList(), events.texts().map { it.tokens })
        assertTrue(events.texts().none { '\uFFFD' in it.piece })
    }

    @Test
    fun `a source that is said again takes fewer steps with drafts, and gives the same events`() =
        runTest {
            val engines = List(2) { EchoEngine(SMALL) }
            val drafting = greedy.copy(promptLookupNumTokens = 10)
            val (usual, drafted) = engines.zip(listOf(greedy, drafting)) { engine, generation ->
                generator(engine).generate(text, generation).toList()
            }
            assertEquals(usual.texts(), drafted.texts())
            assertEquals(usual.result().sequences, drafted.result().sequences)
            val (every, fewer) = engines.map { it.steps.get() }
            assertEquals(usual.result().timings.tokens, every)
            assertTrue(fewer < every / 4, "$fewer of $every")
        }

    @Test
    fun `a character that is cut at the end is replaced in the last piece`() = runTest {
        val events = generator().generate("Ü", greedy.copy(maxLength = 3)).toList()
        assertEquals(listOf("", "", "\uFFFD"), events.texts().map { it.piece })
        assertEquals("\uFFFD", events.result().text)
    }

    @Test
    fun `settings that are not given are the generator's`() = runTest {
        assertEquals(greedy, generator().generation)
        val whole = generator().generate(text).last() as GenerationEvent.Finished
        val short = generator().generate(text, greedy.copy(maxLength = 5)).toList().result()
        assertEquals(tokenizer.encode(text, 100).size, whole.result.timings.tokens)
        assertEquals(4, short.timings.tokens)
    }

    @Test
    fun `a text is counted as it is encoded, and cut only on request`() = runTest {
        val long = "a".repeat(99)
        assertEquals(101, generator().countTokens(long))
        assertEquals(100, generator().encoderSequenceLength)
        for ((size, truncated) in listOf(98 to false, 99 to true, 9_999 to true)) {
            val result = generator().generate("a".repeat(size), truncate = true).toList().result()
            assertEquals("a".repeat(98), result.text)
            assertEquals(truncated, result.truncated)
        }
        assertFalse(generator().generate("a").toList().result().truncated)
    }

    @Test
    fun `a blank text is generated from only on request`() = runTest {
        assertEquals("", generator().generate("", allowEmpty = true).toList().result().text)
        val result = generator().generate("a<mask>", specialTokens = true).toList().result()
        assertContains(result.sourceTokenIds, tokenizer.maskTokenId)
    }

    @Test
    fun `timings tell encoding, first token and decoding apart`() = runTest {
        val engine = EchoEngine(SMALL, onStep = { Thread.sleep(5) })
        val slow = object : Seq2SeqEngine by engine {
            override fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding {
                Thread.sleep(50)
                return engine.start(tokenIds, numBeams, maxLength)
            }
        }
        val events = generator(slow).generate("abcdefgh").toList()
        val timings = events.result().timings
        assertEquals((events.first() as GenerationEvent.Encoded).seconds, timings.encode)
        assertTrue(timings.encode >= 0.05, "$timings")
        assertTrue(timings.firstToken >= timings.encode + 0.005, "$timings")
        assertTrue(timings.decode >= timings.tokens * 0.005, "$timings")
        assertTrue(timings.firstToken < timings.encode + timings.decode, "$timings")
        assertEquals(timings.tokens / timings.decode, timings.tokensPerSecond)
    }

    private class Refusal(
        val says: String,
        val text: String = "abc",
        val generation: GenerationConfig = GenerationConfig(),
        val engine: EchoEngine = EchoEngine(SMALL, longest = 64),
    )

    private val refused = mapOf(
        InputError::class to listOf(
            Refusal("must have at most 100 tokens", "a".repeat(99)),
            Refusal("lone surrogate", "a\uD800"),
            Refusal("must not be blank, received \" \\n\"", " \n"),
            Refusal("max_length must be at most 64", generation = GenerationConfig(maxLength = 65)),
        ),
        ConfigurationError::class to listOf(
            Refusal(
                "eos_token_id must be a token id from 0 to 260, received 261.",
                generation = GenerationConfig(eosTokenIds = listOf(261)),
            ),
        ),
        EngineError::class to listOf(
            Refusal("it burns", engine = EchoEngine(SMALL) { throw EngineError("it burns") }),
        ),
    )

    @TestFactory
    fun `is refused when it is collected, and the next text generates`(): List<DynamicTest> =
        refused.flatMap { (error, rows) -> rows.map { error to it } }.map { (kind, row) ->
            dynamicTest(row.says) {
                val generator = generator(row.engine)
                val flow = generator.generate(row.text, row.generation)
                val error = assertFailsWith<BartExportError> { runBlocking { flow.toList() } }
                assertEquals(kind, error::class)
                assertOneLine(error.message, row.says)
                if (kind != EngineError::class) {
                    assertEquals("abc", runBlocking { generator.say("abc", GenerationConfig()) })
                }
            }
        }

    /** An engine whose step number [at] waits until [release] is counted down. */
    private class Gate(private val at: Int) {
        val reached = CountDownLatch(1)
        val release = CountDownLatch(1)
        val engine = EchoEngine(SMALL) { number ->
            if (number == at) {
                reached.countDown()
                release.await()
            }
        }

        fun awaitReached() = reached.await()
    }

    @Test
    fun `a cancelled generation makes no further step, and another one begins`() = runBlocking {
        for (numBeams in listOf(1, 4)) {
            val gate = Gate(at = 3)
            val generator = generator(gate.engine)
            val seen = mutableListOf<GenerationEvent>()
            val job = launch(Dispatchers.Default) {
                generator.generate(text, greedy.copy(numBeams = numBeams)).collect(seen::add)
            }
            gate.awaitReached()
            job.cancel()
            gate.release.countDown()
            job.join()
            assertTrue(seen.none { it is GenerationEvent.Finished })
            assertEquals("again", generator.say("again"))
            // "again", its start and end tokens, and the three steps of the cancelled generation.
            assertEquals(3 + tokenizer.encode("again", 100).size, gate.engine.steps.get())
        }
    }

    @Test
    fun `a generation that is cancelled while it waits for its turn does nothing`() = runBlocking {
        val gate = Gate(at = 2)
        val generator = generator(gate.engine)
        val first = async(Dispatchers.Default) { generator.say("first") }
        gate.awaitReached()
        val second = launch(Dispatchers.Default) { generator.say("second") }
        second.cancel()
        second.join()
        gate.release.countDown()
        assertEquals("first", first.await())
        assertEquals(tokenizer.encode("first", 100).size, gate.engine.steps.get())
    }

    @Test
    fun `a collector that has seen enough ends the generation`() = runTest {
        val engine = EchoEngine(SMALL)
        // On one thread, the generation is ahead of its collector by the flow's buffer at most.
        val generator = generator(engine, StandardTestDispatcher(testScheduler))
        val long = greedy.copy(maxLength = 250, eosTokenIds = listOf(3))
        val first = generator.generate("a", long).filterIsInstance<GenerationEvent.Text>().first()
        assertEquals(1, first.tokens)
        assertTrue(engine.steps.get() < 100, "${engine.steps}")
        assertEquals("next", generator.say("next"))
    }

    @Test
    fun `a second collector waits for the first`() = runTest {
        // On one thread, the first is suspended when the flow's buffer is full. If another one
        // began then, the engine would reject its next step.
        val generator = generator(dispatcher = StandardTestDispatcher(testScheduler))
        val order = mutableListOf<Int>()
        List(3) { number ->
            launch {
                val said = "$number".repeat(90)
                assertEquals(said, generator.say(said))
                order += number
            }
        }.joinAll()
        assertEquals(listOf(0, 1, 2), order)
    }

    @Test
    fun `collectors on many threads get their own texts`() = runBlocking {
        val generator = generator()
        val said = List(16) { "this is number $it" }
        val heard = said.map { async(Dispatchers.Default) { generator.say(it) } }.awaitAll()
        assertEquals(said, heard)
    }

    @Test
    fun `every collection of a flow generates anew`() = runTest {
        val engine = EchoEngine(SMALL)
        val flow = generator(engine).generate("ab")
        assertEquals(0, engine.steps.get())
        repeat(2) { assertEquals("ab", flow.toList().result().text) }
        assertEquals(8, engine.steps.get())
    }

    @Test
    fun `work is done on the dispatcher that was given`() {
        Executors.newSingleThreadExecutor { Thread(it, "the engine's") }.asCoroutineDispatcher()
            .use { dispatcher ->
                val threads = mutableSetOf<String>()
                val engine = EchoEngine(SMALL) { threads += Thread.currentThread().name }
                runBlocking { generator(engine, dispatcher).say(text) }
                assertEquals(
                    setOf("the engine's"),
                    threads.map {
                        it.substringBefore(" @")
                    }.toSet(),
                )
            }
    }

    @Test
    fun `a closed generator has closed its engine once, and says so`() = runTest {
        val engine = EchoEngine(SMALL)
        val generator = generator(engine)
        assertEquals("ab", generator.say("ab"))
        repeat(2) { generator.close() }
        assertEquals(1, engine.closed)
        val error = assertFailsWith<EngineError> { generator.say("ab") }
        assertOneLine(error.message, "This generator is closed.")
    }

    @Test
    fun `closing ends a generation before its next step, and closes the engine after it`() =
        runBlocking {
            val gate = Gate(at = 3)
            val generator = generator(gate.engine)
            val running = async(Dispatchers.Default) { runCatching { generator.say(text) } }
            gate.awaitReached()
            generator.close()
            assertEquals(0, gate.engine.closed)
            gate.release.countDown()
            assertTrue(running.await().exceptionOrNull() is EngineError)
            assertEquals(3, gate.engine.steps.get())
            assertEquals(1, gate.engine.closed)
        }
}
