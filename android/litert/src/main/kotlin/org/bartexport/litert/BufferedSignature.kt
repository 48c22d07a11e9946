/*
 * Signatures of a compiled model with their buffers; mirrors
 * bart_export/runtime/compiled_model.py.
 *
 * `encode` writes into the inputs of `decode`, and two sets of cache buffers alternate, so nothing
 * is copied between calls.
 */
package org.bartexport.litert

import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import org.bartexport.Bucket
import org.bartexport.EngineError
import org.bartexport.TensorName

internal typealias Buffers = Map<String, TensorBuffer>

/** The cache buffers that the next step reads, and those that it writes. */
internal class Caches(val read: Buffers, val written: Buffers)

/**
 * A signature of a compiled model, with buffers for its tensors.
 *
 * @param unbuffered outputs without buffers here, because they are written to another signature's
 * @throws EngineError if LiteRT cannot create the buffers
 */
internal class BufferedSignature(
    private val model: CompiledModel,
    val bucket: Bucket,
    unbuffered: Set<String> = emptySet(),
) : AutoCloseable {
    private val buffers = mutableListOf<TensorBuffer>()
    val inputs: Buffers = create(bucket.inputs.keys, model::createInputBuffer)
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
 * An encoding and a decoding bucket of the same source length, with buffers.
 *
 * @throws EngineError if LiteRT cannot create the buffers
 */
internal class BufferedBuckets(model: CompiledModel, encode: Bucket, decode: Bucket) :
    AutoCloseable {
    val encode: BufferedSignature = BufferedSignature(model, encode, encode.outputs.keys)
    val decode: BufferedSignature = try {
        BufferedSignature(model, decode)
    } catch (error: EngineError) {
        this.encode.close()
        throw error
    }

    override fun close() {
        encode.close()
        decode.close()
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
    decode.run(caches.read, caches.written)
    decode.outputs.getValue(TensorName.LOGITS).readFloat()
}
