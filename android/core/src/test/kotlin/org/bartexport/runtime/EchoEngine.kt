/*
 * An engine without a model that repeats its source, with noise in the other tokens' logits.
 *
 * It counts its steps and fails if it is used concurrently or after it is closed.
 */
package org.bartexport.runtime

import java.util.concurrent.atomic.AtomicInteger
import org.bartexport.BartConfig
import org.bartexport.EngineError
import org.bartexport.InputError

internal class EchoEngine(
    override val config: BartConfig,
    private val longest: Int = config.maxSequenceLength,
    private val onStep: (number: Int) -> Unit = {},
) : Seq2SeqEngine {
    /** Number of steps begun. */
    val steps = AtomicInteger()

    /** Number of calls in progress. */
    private val busy = AtomicInteger()
    private var serial = 0
    private var spoken = Spoken(IntArray(0), emptyList())

    @Volatile
    var closed = 0
        private set

    /** The source, and the decoder tokens of each beam so far. */
    private class Spoken(val source: IntArray, val beams: List<List<Int>>)

    override fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding = alone {
        if (maxLength > longest) throw InputError("max_length must be at most $longest.")
        serial += 1
        spoken = Spoken(tokenIds, List(numBeams) { emptyList() })
        Decoding(serial)
    }

    override fun step(state: Decoding, request: SearchEvent.Decode): Stepped<Decoding> = alone {
        onStep(steps.incrementAndGet())
        if (state.serial != serial) throw EngineError("Another generation has begun.")
        val before = spoken
        val grown = grown(before.beams, request)
        spoken = Spoken(before.source, grown.takeLast(before.beams.size))
        Stepped(logits(Spoken(before.source, grown)), state)
    }

    override fun close() = alone { closed += 1 }

    private fun logits(spoken: Spoken): Logits {
        val values = spoken.beams.flatMap { tokens ->
            val follows = spoken.source.getOrNull(tokens.size - 1)
            val seed = tokens.fold(17) { hash, token -> hash * 31 + token }
            List(config.vocabularySize) { token ->
                val noise = ((seed * (token + 3) + token) and 1023) / 1024f
                if (token == follows) LIKELY + noise else noise
            }
        }
        return Logits(values.toFloatArray(), spoken.beams.size)
    }

    private fun <T> alone(work: () -> T): T {
        check(busy.incrementAndGet() == 1) { "The engine is used concurrently." }
        check(closed == 0) { "The engine is closed." }
        try {
            return work()
        } finally {
            busy.decrementAndGet()
        }
    }

    private companion object {
        const val LIKELY = 8f
    }
}
