/*
 * What runs a BART, as a search sees it; mirrors bart_export/runtime/engine.py.
 *
 * Token ids go in, logits and a state come out. The state is a value: what one step returns goes
 * into the next. How a step is computed, and on what, is not known here.
 */
package org.bartexport.runtime

import org.bartexport.BartConfig

/**
 * Scores of every token for every beam, float32 (beams, vocabulary), row after row in [values].
 *
 * A search may change them in place; the next step may overwrite them.
 */
public class Logits(public val values: FloatArray, public val beams: Int) {
    /** Number of tokens that have a score. */
    public val vocabulary: Int
        get() = values.size / beams
}

/** What a step gives: [logits] of the next token, and the [state] that includes this one. */
public class Stepped<out State>(public val logits: Logits, public val state: State)

/**
 * Decodes one token of every beam.
 *
 * `beamIndex[k]` is the beam whose cache beam k continues, applied before the step. Both arrays
 * have the number of beams that the state was made for.
 */
public fun interface Step<State> {
    public operator fun invoke(
        state: State,
        tokenIds: IntArray,
        beamIndex: IntArray,
    ): Stepped<State>
}

/**
 * A source that is being decoded: after [position] tokens, with an engine's own [caches].
 *
 * @property serial which source of its engine it is; an engine has room for the last one only
 */
public class Decoding(public val serial: Int, public val position: Int, public val caches: Any)

/** Encodes sources and decodes from them, one source at a time. */
public interface Seq2SeqEngine : AutoCloseable {
    /** The model's architecture. */
    public val config: BartConfig

    /**
     * Encodes a source of [tokenIds], start and end token included, for as many rows as
     * [numBeams] and at most [maxLength] decoder tokens. It ends every earlier decoding.
     *
     * @throws org.bartexport.InputError for more than the engine has room for
     */
    public fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding

    /**
     * Decodes one token of every beam; see [Step].
     *
     * @throws org.bartexport.EngineError for a decoding that another one has ended
     */
    public fun step(state: Decoding, tokenIds: IntArray, beamIndex: IntArray): Stepped<Decoding>
}
