/*
 * Signatures of a compiled model with their buffers; mirrors
 * bart_export/runtime/compiled_model.py.
 *
 * `encode` writes into the inputs of `decode`, which `decode_draft` shares, and two sets of cache
 * buffers alternate, so nothing is copied between calls.
 */
package org.bartexport.litert

import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import org.bartexport.Axis
import org.bartexport.Bucket
import org.bartexport.EngineError
import org.bartexport.TensorName
import org.bartexport.runtime.Fitted

internal typealias Buffers = Map<String, TensorBuffer>

/**
 * The cache buffers that the next step reads, and those that it writes.
 *
 * @property filled number of positions in [read] that may differ from 0
 */
internal class Caches(val read: Buffers, val written: Buffers, val filled: Int = 0) {
    /** Returns the caches after a step that filled positions below [filled]. */
    fun after(filled: Int): Caches = Caches(written, read, filled)
}

/**
 * A signature of a compiled model, with buffers for its tensors.
 *
 * @param unbuffered tensors without buffers here, because another signature's are used
 * @throws EngineError if LiteRT cannot create the buffers
 */
internal class BufferedSignature(
    private val model: CompiledModel,
    val bucket: Bucket,
    unbuffered: Set<String> = emptySet(),
) : AutoCloseable {
    private val buffers = mutableListOf<TensorBuffer>()
    val inputs: Buffers = create(bucket.inputs.keys - unbuffered, model::createInputBuffer)
    val outputs: Buffers = create(bucket.outputs.keys - unbuffered, model::createOutputBuffer)

    /** The two sets of cache buffers, which steps read and write in turn. */
    fun caches(): Caches = Caches(
        bucket.caches.associateWith(inputs::getValue),
        bucket.caches.associateWith(outputs::getValue),
    )

    /** Runs the signature; the given buffers replace its own. */
    fun run(inputs: Buffers, outputs: Buffers): Unit = running("failed to run ${bucket.name}") {
        model.run(this.inputs + inputs, this.outputs + outputs, bucket.name)
    }

    override fun close(): Unit = buffers.forEach(TensorBuffer::close)

    private fun create(names: Set<String>, make: (String, String) -> TensorBuffer): Buffers = try {
        running("cannot create buffers for ${bucket.name}") {
            names.associateWith { name -> make(name, bucket.name).also(buffers::add) }
        }
    } catch (error: EngineError) {
        close()
        throw error
    }
}

/**
 * The buckets of a request, with buffers.
 *
 * @property draft the bucket that verifies drafts, or null
 * @throws EngineError if LiteRT cannot create the buffers
 */
internal class BufferedBuckets(model: CompiledModel, fitted: Fitted) : AutoCloseable {
    private val opened = mutableListOf<BufferedSignature>()
    val encode: BufferedSignature = open(model, fitted.encode, fitted.encode.outputs.keys)
    val decode: BufferedSignature = open(model, fitted.decode, emptySet())
    val draft: BufferedSignature? = fitted.draft?.let { open(model, it, it.inputs.keys - NEW) }

    override fun close(): Unit = opened.forEach(BufferedSignature::close)

    private fun open(model: CompiledModel, bucket: Bucket, unbuffered: Set<String>) = try {
        BufferedSignature(model, bucket, unbuffered).also(opened::add)
    } catch (error: EngineError) {
        close()
        throw error
    }

    private companion object {
        /** The inputs that differ between a step and a draft. */
        val NEW = setOf(TensorName.DECODER_TOKEN_IDS, TensorName.POSITION)
    }
}

/**
 * Encodes a source into the inputs of `decode` and returns zeroed caches.
 *
 * @param tokenIds int32 (one, source), padded to the size of the buckets
 * @param paddingMask int32 (one, source), 1 for a token and 0 for padding
 */
internal fun encodeSource(
    buckets: BufferedBuckets,
    tokenIds: IntArray,
    paddingMask: IntArray,
): Caches = running("failed to encode") {
    val (encode, decode) = buckets.encode to buckets.decode
    encode.inputs.getValue(TensorName.ENCODER_TOKEN_IDS).writeInt(tokenIds)
    encode.inputs.getValue(TensorName.ENCODER_PADDING_MASK).writeInt(paddingMask)
    decode.inputs.getValue(TensorName.ENCODER_PADDING_MASK).writeInt(paddingMask)
    encode.run(emptyMap(), encode.bucket.outputs.keys.associateWith(decode.inputs::getValue))
    val caches = decode.caches()
    for ((name, buffer) in caches.read) {
        buffer.writeFloat(FloatArray(decode.bucket.inputs.getValue(name).elements))
    }
    caches
}

/**
 * Decodes one token of every beam and returns the logits, float32 (beams, vocabulary).
 *
 * @param position number of tokens decoded before
 * @param tokenIds int32 (beams)
 * @param beamIndex int32 (beams)
 */
internal fun decodeRows(
    decode: BufferedSignature,
    caches: Caches,
    position: Int,
    tokenIds: IntArray,
    beamIndex: IntArray,
): FloatArray = running("failed to decode") {
    decode.inputs.getValue(TensorName.DECODER_TOKEN_IDS).writeInt(tokenIds)
    // Version 1 of the contract has one position for all beams, version 2 one for each.
    val positions = decode.bucket.inputs.getValue(TensorName.POSITION).elements
    decode.inputs.getValue(TensorName.POSITION).writeInt(IntArray(positions) { position })
    decode.inputs[TensorName.BEAM_INDEX]?.writeInt(beamIndex)
    // A step adds to the caches, which may hold rejected tokens.
    if (caches.filled > position) clear(decode, caches, position)
    decode.run(caches.read, caches.written)
    decode.outputs.getValue(TensorName.LOGITS).readFloat()
}

/** Sets the caches to 0 from position [first] on. */
private fun clear(decode: BufferedSignature, caches: Caches, first: Int) {
    for ((name, buffer) in caches.read) {
        val (_, _, capacity, size) = decode.bucket.inputs.getValue(name).shape
        val values = buffer.readFloat()
        for (head in values.indices step capacity * size) {
            values.fill(0f, head + first * size, head + capacity * size)
        }
        buffer.writeFloat(values)
    }
}

/**
 * Decodes successive tokens of one sequence and returns the logits after each, float32
 * (tokens, vocabulary).
 *
 * @param position number of tokens decoded before
 * @param tokenIds int32 (tokens), at most as many as [draft] takes
 */
internal fun decodeDraft(
    decode: BufferedSignature,
    draft: BufferedSignature,
    caches: Caches,
    position: Int,
    tokenIds: IntArray,
): FloatArray = running("failed to decode") {
    val tokens = draft.bucket.sizes.getValue(Axis.DRAFT)
    draft.inputs.getValue(TensorName.DECODER_TOKEN_IDS).writeInt(tokenIds.copyOf(tokens))
    draft.inputs.getValue(TensorName.POSITION).writeInt(IntArray(tokens) { position + it })
    val source = decode.inputs.filterKeys { it in draft.bucket.inputs && it !in draft.inputs }
    draft.run(source + caches.read, caches.written)
    val logits = draft.outputs.getValue(TensorName.LOGITS).readFloat()
    logits.copyOf(logits.size / tokens * tokenIds.size)
}
