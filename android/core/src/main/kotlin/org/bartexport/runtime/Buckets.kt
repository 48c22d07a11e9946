/*
 * Which bucket of a static build a request runs in, and what it is padded with; mirrors
 * bart_export/runtime/buckets.py.
 *
 * The buckets of a file and a request go in; out come the smallest buckets that have room, and
 * arrays that fill them: a source is padded and the padding masked, a beam that nobody asked for
 * decodes along in a place of its own. What fits in no bucket is refused. No runtime is known here.
 */
package org.bartexport.runtime

import org.bartexport.Axis
import org.bartexport.BartConfig
import org.bartexport.Bucket
import org.bartexport.InputError

/**
 * A source in the buckets that encode and decode it.
 *
 * @property tokenIds int32 (one, source), filled up
 * @property paddingMask int32 (one, source), 1 for a token and 0 for what was filled up
 */
public class Fitted(
    public val encode: Bucket,
    public val decode: Bucket,
    public val tokenIds: IntArray,
    public val paddingMask: IntArray,
)

/**
 * Returns a source in the smallest buckets that have room for it, its beams and its tokens.
 *
 * @param tokenIds start and end token included
 * @param numBeams sequences decoded side by side
 * @param maxLength decoder tokens, the start token included
 * @throws InputError for more than the largest bucket takes, and for a source that is none
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
        tokenIds = tokenIds.copyOf(source),
        paddingMask = IntArray(source) { position -> if (position < tokenIds.size) 1 else 0 },
    )
}

/**
 * Returns token ids and beam indices for all [beams] of a bucket; spare ones keep their place.
 *
 * @param tokenIds one for each beam that is wanted
 * @param beamIndex as many
 */
public fun fillRows(
    beams: Int,
    tokenIds: IntArray,
    beamIndex: IntArray,
): Pair<IntArray, IntArray> = Pair(
    tokenIds.copyOf(beams),
    IntArray(beams) { beam -> if (beam < beamIndex.size) beamIndex[beam] else beam },
)

/** What a request calls the size of an axis. */
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
        "Token ids must be in 0 to ${config.vocabularySize - 1}, received $outside.",
    )
}

private fun smallest(buckets: List<Bucket>, axis: String, needed: Int): Int {
    val sizes = buckets.mapNotNull { it.sizes[axis] }.distinct().sorted()
    return sizes.firstOrNull { it >= needed } ?: throw InputError(
        "${LIMITED[axis]} must be at most ${sizes.last()} in this static build, which was made " +
            "for ${sizes.joinToString()}, received $needed. Export one with more room for that.",
    )
}
