/*
 * The words of an exported file, and the buckets of a static build; mirrors bart_export/contract.py.
 *
 * A file's entry in the manifest goes in, its signatures with every shape come out: an engine
 * allocates by them and types no number itself. The words below are the only names that are not
 * read from the manifest. Nothing here knows a runtime.
 */
package org.bartexport

import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.decodeFromJsonElement

/** What a signature does: its name in a dynamic build, and a bucket's `signature`. */
public object SignatureName {
    /** Encodes a source into the cross tensors; once a text. */
    public const val ENCODE: String = "encode"

    /** Decodes one token of several beams. */
    public const val DECODE: String = "decode"

    /** Decodes one token of one beam. */
    public const val DECODE_SINGLE: String = "decode_single"
}

/** The axes that a static build fixes, each bucket at sizes of its own. */
public object Axis {
    /** Tokens of the source text. */
    public const val SOURCE: String = "source"

    /** Sequences decoded side by side. */
    public const val BEAMS: String = "beams"

    /** Decoder positions that a self-attention cache has room for. */
    public const val CAPACITY: String = "capacity"
}

/** The tensors that are neither cross tensors nor caches; those are known by where they occur. */
public object TensorName {
    /** int32 (one, source), into `encode`. */
    public const val ENCODER_TOKEN_IDS: String = "encoder_token_ids"

    /** int32 (one, source), 1 for a token and 0 for padding, into every signature. */
    public const val ENCODER_PADDING_MASK: String = "encoder_padding_mask"

    /** int32 (beams, one), into `decode` and `decode_single`. */
    public const val DECODER_TOKEN_IDS: String = "decoder_token_ids"

    /** int32 (one), counts decoder tokens from 0, into `decode` and `decode_single`. */
    public const val POSITION: String = "position"

    /** int32 (beams), the beam whose cache a beam continues, into `decode`. */
    public const val BEAM_INDEX: String = "beam_index"

    /** float32 (beams, vocabulary), out of `decode` and `decode_single`. */
    public const val LOGITS: String = "logits"
}

/**
 * Dtype and shape of a tensor, as the manifest has them.
 *
 * @property dtype "int32" or "float32"
 * @property shape the size of each axis, all fixed
 */
@Serializable
public data class TensorSpec(val dtype: String, val shape: List<Int>) {
    /** Number of values. */
    val elements: Int
        get() = shape.fold(1, Int::times)
}

/**
 * A signature of a static build: one of [SignatureName] with its dynamic axes fixed.
 *
 * What `encode` puts out are the cross tensors, which go into a decoding signature under the same
 * names, shapes and dtypes.
 *
 * @property name the signature's name in the file; for people, to choose go by the next two
 * @property signature one of [SignatureName]
 * @property sizes of the dynamic axes that the signature has, by the words of [Axis]
 * @property inputs by name
 * @property outputs by name
 */
public data class Bucket(
    val name: String,
    val signature: String,
    val sizes: Map<String, Int>,
    val inputs: Map<String, TensorSpec>,
    val outputs: Map<String, TensorSpec>,
) {
    /** Whether this bucket encodes; otherwise it decodes. */
    val encodes: Boolean
        get() = signature == SignatureName.ENCODE

    /** Names of the self-attention caches, which a decoding signature takes and gives updated. */
    val caches: List<String>
        get() = inputs.keys.filter { it in outputs }
}

/**
 * Reads the buckets that `signatures` of a static file's entry in the manifest describes.
 *
 * There is one that encodes for each source length, and for each of those one that decodes for each
 * number of beams and each capacity.
 *
 * @throws ConfigurationError for signatures that are not those of a static build
 */
public fun readBuckets(signatures: JsonObject): List<Bucket> {
    val buckets = signatures.map { (name, described) ->
        val entry = try {
            MANIFEST_JSON.decodeFromJsonElement<BucketEntry>(described)
        } catch (error: SerializationException) {
            throw ConfigurationError("signature $name is no bucket: ${error.firstLine()}.")
        }
        Bucket(name, entry.signature, entry.sizes, entry.inputs, entry.outputs).also(::checkWords)
    }
    checkGrid(buckets)
    return buckets
}

/** Reads what may have been added to the format since: fields without a name here are ignored. */
internal val MANIFEST_JSON: Json = Json { ignoreUnknownKeys = true }

/** The first line of what the parser says; the others quote the file. */
internal fun Exception.firstLine(): String =
    message.orEmpty().lineSequence().first().trimEnd('.', ':', ' ')

@Serializable
private class BucketEntry(
    val signature: String,
    val sizes: Map<String, Int>,
    val inputs: Map<String, TensorSpec>,
    val outputs: Map<String, TensorSpec>,
)

/** The axes and tensors that a signature must have. */
private class Words(val axes: Set<String>, val inputs: Set<String>, val outputs: Set<String>)

private val DECODE_SINGLE_WORDS = Words(
    setOf(Axis.SOURCE, Axis.BEAMS, Axis.CAPACITY),
    setOf(TensorName.DECODER_TOKEN_IDS, TensorName.POSITION, TensorName.ENCODER_PADDING_MASK),
    setOf(TensorName.LOGITS),
)

private val WORDS = mapOf(
    SignatureName.ENCODE to Words(
        setOf(Axis.SOURCE),
        setOf(TensorName.ENCODER_TOKEN_IDS, TensorName.ENCODER_PADDING_MASK),
        emptySet(),
    ),
    SignatureName.DECODE to Words(
        DECODE_SINGLE_WORDS.axes,
        DECODE_SINGLE_WORDS.inputs + TensorName.BEAM_INDEX,
        DECODE_SINGLE_WORDS.outputs,
    ),
    SignatureName.DECODE_SINGLE to DECODE_SINGLE_WORDS,
)

private fun checkWords(bucket: Bucket) {
    val words = WORDS[bucket.signature] ?: throw ConfigurationError(
        "signature of ${bucket.name} must be one of ${WORDS.keys.joinToString()}, received " +
            "${bucket.signature}.",
    )
    val lacking = (words.axes - bucket.sizes.keys) +
        (words.inputs - bucket.inputs.keys) +
        (words.outputs - bucket.outputs.keys)
    if (lacking.isNotEmpty()) {
        throw ConfigurationError("signature ${bucket.name} lacks ${lacking.joinToString()}.")
    }
}

/** Checks that a request that fits every axis has a bucket, so that choosing one cannot fail. */
private fun checkGrid(buckets: List<Bucket>) {
    val (encoding, decoding) = buckets.partition { it.encodes }
    fun sizes(of: List<Bucket>, axis: String) = of.map { it.sizes.getValue(axis) }.distinct()
    val grid = sizes(encoding, Axis.SOURCE).flatMap { source ->
        sizes(decoding, Axis.BEAMS).flatMap { beams ->
            sizes(decoding, Axis.CAPACITY).map { capacity ->
                mapOf(Axis.SOURCE to source, Axis.BEAMS to beams, Axis.CAPACITY to capacity)
            }
        }
    }
    if (grid.isEmpty() || grid.toSet() != decoding.map { it.sizes }.toSet()) {
        val received = buckets.joinToString { it.name }.ifEmpty { "none" }
        throw ConfigurationError(
            "signatures must have one that encodes for each source length, and for each of " +
                "those one that decodes for each number of beams, received $received.",
        )
    }
}
