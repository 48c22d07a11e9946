/*
 * Times an engine's calls, and the rest of a generation.
 */
package org.bartexport.desktop

import org.bartexport.litert.CompiledModelEngine
import org.bartexport.runtime.Decoding
import org.bartexport.runtime.SearchEvent
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.Stepped

/** The nanoseconds of one generation's parts, and its number of [steps]. */
class Times(val encode: Long, val decode: Long, val steps: Int, val overhead: Long)

/** Adds up the time of the calls to [engine]. */
class TimedEngine(private val engine: CompiledModelEngine) : Seq2SeqEngine by engine {
    /** Maximum number of source tokens. */
    val sourceLength: Int = engine.sourceLength

    private var encode = 0L
    private var decode = 0L
    private var steps = 0

    /** Sets the sums to 0. */
    @Synchronized
    fun reset() {
        encode = 0
        decode = 0
        steps = 0
    }

    /** Returns the times since [reset] of a generation that took [nanoseconds] in all. */
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
    override fun step(state: Decoding, request: SearchEvent.Decode): Stepped<Decoding> {
        val began = System.nanoTime()
        return engine.step(state, request).also {
            decode += System.nanoTime() - began
            steps += 1
        }
    }
}

/**
 * Medians over generations, in milliseconds.
 *
 * @property encode the engine's time per source
 * @property engine the engine's time per step
 * @property overhead the remaining time per step: tokenizer, search, detokenizer and events
 */
class Shares(generations: List<Times>) {
    val encode: Double = generations.map { it.encode / NANOSECONDS_A_MILLISECOND }.median()
    val engine: Double = generations.map { it.decode.milliseconds(it.steps) }.median()
    val overhead: Double = generations.map { it.overhead.milliseconds(it.steps) }.median()

    /** The overhead as a fraction of the engine's time. */
    val share: Double
        get() = overhead / engine

    private fun Long.milliseconds(steps: Int) = this / NANOSECONDS_A_MILLISECOND / steps
}

internal fun List<Double>.median(): Double =
    sorted().let { (it[it.size / 2] + it[(it.size - 1) / 2]) / 2 }

internal const val NANOSECONDS_A_MILLISECOND: Double = 1e6
