/*
 * Chooses the buckets of a static build for a request and pads its arrays to their sizes; mirrors
 * `Buckets` of bart_export/runtime/sizing.py.
 */
package org.bartexport.runtime

import org.bartexport.Axis
import org.bartexport.BartConfig
import org.bartexport.Bucket
import org.bartexport.InputError

/**
 * A source padded to the size of its buckets.
 *
 * @property draft the bucket that verifies drafts with the caches of [decode], or null
 * @property tokenIds int32 (one, source)
 * @property paddingMask int32 (one, source), 1 for a token and 0 for padding
 */
public class Fitted(
    public val encode: Bucket,
    public val decode: Bucket,
    public val draft: Bucket?,
    public val tokenIds: IntArray,
    public val paddingMask: IntArray,
)

/**
 * Returns the smallest buckets for a request, with the source padded to their size.
 *
 * @param tokenIds source ids, including the start and end tokens
 * @param numBeams number of sequences decoded in parallel
 * @param maxLength maximum number of decoder tokens, including the start token
 * @throws InputError if the request exceeds the largest bucket, or the source is invalid
 */
public fun fit(
    config: BartConfig,
    buckets: List<Bucket>,
    tokenIds: IntArray,
    numBeams: Int,
    maxLength: Int,
): Fitted {
    checkSource(config, tokenIds)
    val sizes = mapOf(
        Axis.SOURCE to smallest(buckets, Axis.SOURCE, tokenIds.size),
        Axis.BEAMS to smallest(buckets, Axis.BEAMS, numBeams),
        Axis.CAPACITY to smallest(buckets, Axis.CAPACITY, maxLength),
    )
    val source = sizes.getValue(Axis.SOURCE)
    return Fitted(
        encode = buckets.first { it.encodes && it.sizes[Axis.SOURCE] == source },
        decode = buckets.first { it.sizes == sizes },
        draft = buckets.firstOrNull { it.drafts && (it.sizes - Axis.DRAFT) == sizes - Axis.BEAMS }
            .takeIf { sizes[Axis.BEAMS] == 1 },
        tokenIds = tokenIds.copyOf(source),
        paddingMask = IntArray(source) { position -> if (position < tokenIds.size) 1 else 0 },
    )
}

/**
 * Pads token ids and beam indices to all [beams] of a bucket; padding beams continue themselves.
 *
 * @param tokenIds int32 (requested beams,)
 * @param beamIndex int32 (requested beams,)
 */
public fun fillRows(
    beams: Int,
    tokenIds: IntArray,
    beamIndex: IntArray,
): Pair<IntArray, IntArray> = Pair(
    tokenIds.copyOf(beams),
    IntArray(beams) { beam -> if (beam < beamIndex.size) beamIndex[beam] else beam },
)

/** The name of each axis's size in error messages. */
private val LIMITED = mapOf(
    Axis.SOURCE to "A source's number of tokens",
    Axis.BEAMS to "num_beams, or num_return_sequences,",
    Axis.CAPACITY to "max_length",
)

private fun checkSource(config: BartConfig, tokenIds: IntArray) {
    if (tokenIds.size !in 1..config.maxSequenceLength) {
        throw InputError(
            "A source must have 1 to ${config.maxSequenceLength} tokens, received " +
                "${tokenIds.size}.",
        )
    }
    val outside = tokenIds.firstOrNull { it !in 0 until config.vocabularySize } ?: return
    throw InputError(
        "Token ids must be from 0 to ${config.vocabularySize - 1}, received $outside.",
    )
}

private fun smallest(buckets: List<Bucket>, axis: String, needed: Int): Int {
    val sizes = buckets.mapNotNull { it.sizes[axis] }.distinct().sorted()
    return sizes.firstOrNull { it >= needed } ?: throw InputError(
        "${LIMITED[axis]} must be at most ${sizes.last()} in this static build (its sizes: " +
            "${sizes.joinToString()}), received $needed. Export one with a larger size.",
    )
}
