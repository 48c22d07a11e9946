/*
 * An engine that is timed, and what is left of a generation's time without it.
 *
 * Calls go through to the engine; their nanoseconds come out, and medians over generations.
 */
package org.bartexport.desktop

import org.bartexport.litert.CompiledModelEngine
import org.bartexport.runtime.Decoding
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.Stepped

/** Where the nanoseconds of one generation went; [steps] is a number of calls. */
class Times(val encode: Long, val decode: Long, val steps: Int, val overhead: Long)

/** Passes every call on to [engine] and adds up how long it takes. */
class TimedEngine(private val engine: CompiledModelEngine) : Seq2SeqEngine by engine {
    /** Most tokens of a source. */
    val sourceLength: Int = engine.sourceLength

    private var encode = 0L
    private var decode = 0L
    private var steps = 0

    /** Forgets what was added up. */
    @Synchronized
    fun reset() {
        encode = 0
        decode = 0
        steps = 0
    }

    /** What was added up since [reset], of a generation that took so many [nanoseconds]. */
    @Synchronized
    fun times(nanoseconds: Long): Times =
        Times(encode, decode, steps, nanoseconds - encode - decode)

    @Synchronized
    override fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding {
        val began = System.nanoTime()
        return engine.start(tokenIds, numBeams, maxLength)
            .also { encode += System.nanoTime() - began }
    }

    @Synchronized
    override fun step(
        state: Decoding,
        tokenIds: IntArray,
        beamIndex: IntArray,
    ): Stepped<Decoding> {
        val began = System.nanoTime()
        return engine.step(state, tokenIds, beamIndex).also {
            decode += System.nanoTime() - began
            steps += 1
        }
    }
}

/**
 * Medians over generations, in milliseconds.
 *
 * @property encode of a source
 * @property engine of a step
 * @property overhead of all that is neither, by the number of steps: tokenizing the source,
 *   searching, putting text together and handing it over
 */
class Shares(generations: List<Times>) {
    val encode: Double = generations.map { it.encode / NANOSECONDS_A_MILLISECOND }.median()
    val engine: Double = generations.map { it.decode.milliseconds(it.steps) }.median()
    val overhead: Double = generations.map { it.overhead.milliseconds(it.steps) }.median()

    /** What is added to a step's time. */
    val share: Double
        get() = overhead / engine

    private fun Long.milliseconds(steps: Int) = this / NANOSECONDS_A_MILLISECOND / steps
}

/** The middle of some values. */
internal fun List<Double>.median(): Double = sorted().let {
    (it[it.size / 2] + it[(it.size - 1) / 2]) /
        2
}

internal const val NANOSECONDS_A_MILLISECOND: Double = 1e6
