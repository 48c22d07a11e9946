/*
 * A signature of a compiled model with its buffers, and what an engine does with two of them;
 * mirrors bart_export/runtime/buffers.py.
 *
 * LiteRT's `CompiledModel` and a bucket go in, a callable with input and output buffers that fit
 * comes out. `encode` writes where `decode` reads, and two sets of cache buffers alternate, so that
 * nothing is copied between calls. Which bucket is right for a source is not known here.
 */
package org.bartexport.litert

import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import org.bartexport.Bucket
import org.bartexport.EngineError
import org.bartexport.TensorName

internal typealias Buffers = Map<String, TensorBuffer>

/** The caches that the next step reads, and those that it writes. */
internal class Caches(val read: Buffers, val written: Buffers)

/**
 * A signature of a compiled model, and buffers for its tensors; [close] frees them.
 *
 * @param lent outputs that go into another signature's inputs: they have no buffers here
 * @throws EngineError if LiteRT cannot make them
 */
internal class BufferedSignature(
    private val model: CompiledModel,
    val bucket: Bucket,
    lent: Set<String> = emptySet(),
) : AutoCloseable {
    private val made = mutableListOf<TensorBuffer>()
    val inputs: Buffers = make(bucket.inputs.keys, model::createInputBuffer)
    val outputs: Buffers = make(bucket.outputs.keys - lent, model::createOutputBuffer)

    /** The two sets of buffers that steps read and write in turns. */
    fun caches(): Caches = Caches(
        bucket.caches.associateWith(inputs::getValue),
        bucket.caches.associateWith(outputs::getValue),
    )

    /** Runs the signature on its buffers, with some others in the place of its own. */
    fun run(inputs: Buffers, outputs: Buffers): Unit = running("failed to run ${bucket.name}") {
        model.run(this.inputs + inputs, this.outputs + outputs, bucket.name)
    }

    override fun close(): Unit = made.forEach(TensorBuffer::close)

    private fun make(names: Set<String>, create: (String, String) -> TensorBuffer): Buffers = try {
        running("cannot make buffers for ${bucket.name}") {
            names.associateWith { name -> create(name, bucket.name).also(made::add) }
        }
    } catch (error: EngineError) {
        close()
        throw error
    }
}

/**
 * The buffers of a bucket that encodes and of one that decodes what it encoded.
 *
 * @throws EngineError if LiteRT cannot make them
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
 * Encodes a source into the buffers that `decode` reads, and returns its caches, emptied.
 *
 * @param tokenIds int32 (one, source), of the size that both buckets have
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
 * Decodes one token of every beam of the bucket, from the caches that are read to those that are
 * written, and returns the logits, float32 (beams, vocabulary).
 *
 * @param position how many tokens were decoded before
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
    decode.inputs.getValue(TensorName.POSITION).writeInt(intArrayOf(position))
    decode.inputs[TensorName.BEAM_INDEX]?.writeInt(beamIndex)
    decode.run(caches.read, caches.written)
    decode.outputs.getValue(TensorName.LOGITS).readFloat()
}
