/*
 * Names of an exported file's signatures, axes and tensors, and the buckets of a static build;
 * mirrors bart_export/contract.py.
 *
 * Shapes are those of contract version 2. In version 1, which is also supported, a step has one
 * source, `decoder_token_ids` is (beams, one), all beams share one position, and steps return whole
 * caches.
 */
package org.bartexport

import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.decodeFromJsonElement

/** The newest version of the contract that this library reads. */
internal const val CONTRACT_VERSION: Int = 2

/** The signatures of a dynamic build; also the values of [Bucket.signature]. */
public object SignatureName {
    /** Encodes a source into the cross tensors, once per text. */
    public const val ENCODE: String = "encode"

    /** Decodes one token of several beams. */
    public const val DECODE: String = "decode"

    /** Decodes one token of one beam. */
    public const val DECODE_SINGLE: String = "decode_single"

    /** Decodes successive tokens of one sequence. */
    public const val DECODE_DRAFT: String = "decode_draft"
}

/** The axes that are dynamic in a dynamic build and fixed in each bucket of a static build. */
public object Axis {
    /** Tokens of the source text. */
    public const val SOURCE: String = "source"

    /** Source texts decoded together; this library decodes one. */
    public const val SOURCES: String = "sources"

    /** Sequences decoded in parallel for a source. */
    public const val BEAMS: String = "beams"

    /** Sources times beams. */
    public const val ROWS: String = "rows"

    /** Tokens of one sequence that are decoded together. */
    public const val DRAFT: String = "draft"

    /** Decoder positions in a self-attention cache. */
    public const val CAPACITY: String = "capacity"
}

/** Names of all tensors except the cross tensors and caches, which the manifest names. */
public object TensorName {
    /** int32 (one, source), an input of `encode`. */
    public const val ENCODER_TOKEN_IDS: String = "encoder_token_ids"

    /** int32 (sources, source), 1 for a token and 0 for padding; (one, source) in `encode`. */
    public const val ENCODER_PADDING_MASK: String = "encoder_padding_mask"

    /** int32 (sources, beams), an input of the decoding signatures; (one, draft) for a draft. */
    public const val DECODER_TOKEN_IDS: String = "decoder_token_ids"

    /** int32 (rows), decoder positions from 0, an input of the decoding signatures. */
    public const val POSITION: String = "position"

    /** int32 (beams), the beam that each beam continues, an input of `decode` in version 1. */
    public const val BEAM_INDEX: String = "beam_index"

    /** float32 (rows, vocabulary), an output of the decoding signatures. */
    public const val LOGITS: String = "logits"
}

/**
 * Dtype and static shape of a tensor.
 *
 * @property dtype "int32" or "float32"
 */
@Serializable
public data class TensorSpec(val dtype: String, val shape: List<Int>) {
    /** Number of elements. */
    val elements: Int
        get() = shape.fold(1, Int::times)
}

/**
 * A signature of a static build: one of [SignatureName] with fixed sizes.
 *
 * The outputs of `encode` are the cross tensors; the decoding signatures take them as inputs with
 * the same names, shapes and dtypes.
 *
 * @property name the signature's name in the file
 * @property signature one of [SignatureName]
 * @property sizes the size of each [Axis] that the signature has, except [Axis.SOURCES], which is 1,
 *   and [Axis.ROWS], which equals [Axis.BEAMS]
 * @property inputs tensors by name
 * @property outputs tensors by name
 */
public data class Bucket(
    val name: String,
    val signature: String,
    val sizes: Map<String, Int>,
    val inputs: Map<String, TensorSpec>,
    val outputs: Map<String, TensorSpec>,
) {
    /** Whether this is an encoding bucket and not a decoding one. */
    val encodes: Boolean
        get() = signature == SignatureName.ENCODE

    /** Whether this bucket decodes several tokens of one sequence. */
    val drafts: Boolean
        get() = signature == SignatureName.DECODE_DRAFT

    /**
     * Names of the self-attention caches. Inputs are caches, and outputs of the same names are the
     * new tokens' entries.
     */
    val caches: List<String>
        get() = inputs.keys.filter { it in outputs }

    /** Whether the outputs are whole caches instead, as in version 1 of the contract. */
    val returnsCaches: Boolean
        get() = !drafts && caches.all { inputs[it] == outputs[it] }
}

/**
 * Reads the buckets for one source from a static file's `signatures` in the manifest.
 *
 * There is an encoding bucket for each source length, and a decoding bucket for each combination of
 * source length, number of beams and capacity. For drafts there may be a further one for each source
 * length and capacity.
 *
 * @throws ConfigurationError if the signatures are not those of a static build
 */
internal fun readBuckets(signatures: JsonObject): List<Bucket> {
    val entries = signatures.mapValues { (name, described) ->
        try {
            MANIFEST_JSON.decodeFromJsonElement<BucketEntry>(described)
        } catch (error: SerializationException) {
            throw ConfigurationError("signature $name is not a bucket: ${error.firstLine()}.")
        }
    }
    val buckets = entries.filterValues { (it.sizes[Axis.SOURCES] ?: 1) == 1 }.map { (name, entry) ->
        val sizes = entry.sizes - Axis.SOURCES - Axis.ROWS
        Bucket(name, entry.signature, sizes, entry.inputs, entry.outputs).also(::checkNames)
    }
    checkGrid(buckets)
    return buckets
}

/** Ignores unknown fields, which later exporters may add. */
internal val MANIFEST_JSON: Json = Json { ignoreUnknownKeys = true }

/** The first line of a parser's message; the others quote the file. */
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
private class Required(val axes: Set<String>, val inputs: Set<String>, val outputs: Set<String>)

private val DECODE_REQUIRED = Required(
    setOf(Axis.SOURCE, Axis.BEAMS, Axis.CAPACITY),
    setOf(TensorName.DECODER_TOKEN_IDS, TensorName.POSITION, TensorName.ENCODER_PADDING_MASK),
    setOf(TensorName.LOGITS),
)

private val REQUIRED = mapOf(
    SignatureName.ENCODE to Required(
        setOf(Axis.SOURCE),
        setOf(TensorName.ENCODER_TOKEN_IDS, TensorName.ENCODER_PADDING_MASK),
        emptySet(),
    ),
    SignatureName.DECODE to DECODE_REQUIRED,
    SignatureName.DECODE_SINGLE to DECODE_REQUIRED,
    SignatureName.DECODE_DRAFT to Required(
        setOf(Axis.SOURCE, Axis.DRAFT, Axis.CAPACITY),
        DECODE_REQUIRED.inputs,
        DECODE_REQUIRED.outputs,
    ),
)

private fun checkNames(bucket: Bucket) {
    val required = REQUIRED[bucket.signature] ?: throw ConfigurationError(
        "signature of ${bucket.name} must be one of ${REQUIRED.keys.joinToString()}, received " +
            "${bucket.signature}.",
    )
    val missing = (required.axes - bucket.sizes.keys) +
        (required.inputs - bucket.inputs.keys) +
        (required.outputs - bucket.outputs.keys)
    if (missing.isNotEmpty()) {
        throw ConfigurationError("signature ${bucket.name} lacks ${missing.joinToString()}.")
    }
}

/** Checks that there is a decoding bucket for every combination of the sizes. */
private fun checkGrid(buckets: List<Bucket>) {
    val (encoding, decoding) = buckets.filterNot { it.drafts }.partition { it.encodes }
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
            "signatures must include an encoding one for each source length, and a decoding one " +
                "for each source length, number of beams and capacity, received $received.",
        )
    }
}
