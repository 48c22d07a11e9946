/*
 * The interface of an engine; mirrors bart_export/runtime/engine.py.
 *
 * Each step takes the state that the previous step returned.
 */
package org.bartexport.runtime

import org.bartexport.BartConfig

/**
 * Logits, float32 (rows, vocabulary), in row-major order in [values].
 *
 * A search may change them in place; the next step may overwrite them.
 */
public class Logits(public val values: FloatArray, public val rows: Int) {
    /** Number of tokens in the vocabulary. */
    public val vocabulary: Int
        get() = values.size / rows
}

/** The result of a step: the [logits] of the next token, and the [state] for the next step. */
public class Stepped<out State>(public val logits: Logits, public val state: State)

/**
 * Decodes one token of every beam, and possibly a draft; see [SearchEvent.Decode].
 *
 * Before the step, beam k takes over the cache of beam `beamIndex[k]`. The request has the number of
 * beams that the state was created for.
 */
public fun interface Step<State> {
    public operator fun invoke(state: State, request: SearchEvent.Decode): Stepped<State>
}

/**
 * The state of a decoding.
 *
 * @property serial number of the source within its engine, which keeps only the last one
 */
public class Decoding(public val serial: Int)

/** Encodes and decodes one source at a time. */
public interface Seq2SeqEngine : AutoCloseable {
    /** The model's architecture. */
    public val config: BartConfig

    /**
     * Encodes a source and ends any earlier decoding.
     *
     * @param tokenIds source ids, including the start and end tokens
     * @param numBeams number of sequences decoded in parallel
     * @param maxLength maximum number of decoder tokens, including the start token
     * @throws org.bartexport.InputError if the engine has no room for the request
     */
    public fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding

    /**
     * Decodes one token of every beam, and a draft if the engine supports it; see [Step].
     *
     * @throws org.bartexport.EngineError if a later [start] has ended this decoding
     */
    public fun step(state: Decoding, request: SearchEvent.Decode): Stepped<Decoding>
}
