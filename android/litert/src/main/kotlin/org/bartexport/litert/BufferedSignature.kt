/*
 * Signatures of a compiled model with their buffers; mirrors
 * bart_export/runtime/compiled_model.py.
 *
 * `encode` writes into the inputs of `decode`, which `decode_draft` shares. The caches are kept in
 * arrays and written before each step, because LiteRT's Kotlin API can only write whole buffers.
 */
package org.bartexport.litert

import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import org.bartexport.Axis
import org.bartexport.Bucket
import org.bartexport.EngineError
import org.bartexport.TensorName
import org.bartexport.runtime.Cache
import org.bartexport.runtime.Fitted

internal typealias Buffers = Map<String, TensorBuffer>

/**
 * A signature of a compiled model, with buffers for the named tensors. The others use another
 * signature's buffers.
 *
 * @throws EngineError if LiteRT cannot create the buffers
 */
internal class BufferedSignature(
    private val model: CompiledModel,
    val bucket: Bucket,
    inputs: Set<String> = bucket.inputs.keys,
    outputs: Set<String> = bucket.outputs.keys,
) : AutoCloseable {
    private val buffers = mutableListOf<TensorBuffer>()
    val inputs: Buffers = create(inputs, model::createInputBuffer)
    val outputs: Buffers = create(outputs, model::createOutputBuffer)

    /** Runs the signature with the given buffers and its own. */
    fun run(inputs: Buffers = emptyMap(), outputs: Buffers = emptyMap()): Unit =
        running("failed to run ${bucket.name}") {
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
 * The buckets of a request, with buffers and caches.
 *
 * @property draft the bucket that verifies drafts, or null
 * @property caches the inputs of [decode] that the host changes, by name
 * @throws EngineError if LiteRT cannot create the buffers
 */
internal class BufferedBuckets(model: CompiledModel, fitted: Fitted) : AutoCloseable {
    private val opened = mutableListOf<BufferedSignature>()
    val encode: BufferedSignature = open {
        BufferedSignature(model, fitted.encode, outputs = emptySet())
    }
    val decode: BufferedSignature = open { BufferedSignature(model, fitted.decode) }
    val draft: BufferedSignature? = fitted.draft?.let {
        open { BufferedSignature(model, it, inputs = NEW) }
    }
    val caches: Map<String, Cache> = decode.bucket.caches.associateWith {
        Cache(decode.bucket.inputs.getValue(it).shape)
    }

    override fun close(): Unit = opened.forEach(BufferedSignature::close)

    private fun open(make: () -> BufferedSignature) = try {
        make().also(opened::add)
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
 * Encodes a source into the inputs of `decode` and clears the caches.
 *
 * @param tokenIds int32 (one, source), padded to the size of the buckets
 * @param paddingMask int32 (one, source), 1 for a token and 0 for padding
 */
internal fun encodeSource(
    buckets: BufferedBuckets,
    tokenIds: IntArray,
    paddingMask: IntArray,
): Unit = running("failed to encode") {
    val (encode, decode) = buckets.encode to buckets.decode
    encode.inputs.getValue(TensorName.ENCODER_TOKEN_IDS).writeInt(tokenIds)
    encode.inputs.getValue(TensorName.ENCODER_PADDING_MASK).writeInt(paddingMask)
    decode.inputs.getValue(TensorName.ENCODER_PADDING_MASK).writeInt(paddingMask)
    encode.run(outputs = encode.bucket.outputs.keys.associateWith(decode.inputs::getValue))
    for (cache in buckets.caches.values) cache.values.fill(0f)
}

/**
 * Decodes one token of every beam and returns the logits, float32 (beams, vocabulary).
 *
 * @param position number of tokens decoded before
 * @param tokenIds int32 (beams)
 * @param beamIndex int32 (beams), the beam whose cache each beam continues
 */
internal fun decodeRows(
    buckets: BufferedBuckets,
    position: Int,
    tokenIds: IntArray,
    beamIndex: IntArray,
): FloatArray = running("failed to decode") {
    val decode = buckets.decode
    decode.inputs.getValue(TensorName.DECODER_TOKEN_IDS).writeInt(tokenIds)
    // Version 1 of the contract has one position for all beams, version 2 one for each.
    val positions = decode.bucket.inputs.getValue(TensorName.POSITION).elements
    decode.inputs.getValue(TensorName.POSITION).writeInt(IntArray(positions) { position })
    decode.inputs[TensorName.BEAM_INDEX]?.writeInt(IntArray(beamIndex.size) { it })
    for (cache in buckets.caches.values) cache.reorder(beamIndex, position)
    writeCaches(buckets)
    decode.run()
    readEntries(buckets, decode, if (decode.bucket.returnsCaches) 0 else position)
    decode.outputs.getValue(TensorName.LOGITS).readFloat()
}

/**
 * Decodes successive tokens of one sequence and returns the logits after each, float32
 * (tokens, vocabulary).
 *
 * @param position number of tokens decoded before
 * @param tokenIds int32 (tokens), at most as many as [draft] takes
 */
internal fun decodeDraft(
    buckets: BufferedBuckets,
    draft: BufferedSignature,
    position: Int,
    tokenIds: IntArray,
): FloatArray = running("failed to decode") {
    val tokens = draft.bucket.sizes.getValue(Axis.DRAFT)
    draft.inputs.getValue(TensorName.DECODER_TOKEN_IDS).writeInt(tokenIds.copyOf(tokens))
    draft.inputs.getValue(TensorName.POSITION).writeInt(IntArray(tokens) { position + it })
    writeCaches(buckets)
    val shared = draft.bucket.inputs.keys - draft.inputs.keys
    draft.run(shared.associateWith(buckets.decode.inputs::getValue))
    readEntries(buckets, draft, position)
    val logits = draft.outputs.getValue(TensorName.LOGITS).readFloat()
    logits.copyOf(logits.size / tokens * tokenIds.size)
}

private fun writeCaches(buckets: BufferedBuckets) {
    for ((name, cache) in buckets.caches) {
        buckets.decode.inputs.getValue(name).writeFloat(cache.values)
    }
}

/** Writes the outputs of a signature into the caches, from a position on. */
private fun readEntries(buckets: BufferedBuckets, ran: BufferedSignature, position: Int) {
    for ((name, cache) in buckets.caches) {
        cache.write(ran.outputs.getValue(name).readFloat(), position)
    }
}
