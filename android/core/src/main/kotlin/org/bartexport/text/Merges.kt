/*
 * Merges pairs of tokens by rank, the heart of BPE; what Python's tokenizer leaves to the
 * `tokenizers` library.
 *
 * The tables of Vocabulary.kt come in; of the ids of bytes the ids of tokens are made. Nothing here
 * knows characters or how a text was cut. Everything is kept in arrays of primitive numbers: boxed
 * ones would cost a phone more than the merging itself.
 */
package org.bartexport.text

private const val NO_RANK = -1

/** Which pairs of ids merge, in which order and into what; never changes once made. */
internal class Merges(vocabulary: Map<String, Int>, merges: List<Pair<String, String>>) {
    // Open addressing: at most half of the slots are taken, and a pair is looked for from its own.
    private val mask = Integer.highestOneBit(merges.size or 1) * 4 - 1
    private val pairs = LongArray(mask + 1) { -1L }
    private val ranks = IntArray(mask + 1)
    private val mergedIds = IntArray(merges.size)

    /** Bytes of the longest token that merging makes. */
    val longest: Int = merges.maxOfOrNull { (left, right) -> left.length + right.length } ?: 1

    init {
        fun id(token: String) = vocabulary[token] ?: throw UnknownToken(token)
        merges.forEachIndexed { rank, (left, right) ->
            val pair = pair(id(left), id(right))
            val slot = slot(pair)
            pairs[slot] = pair
            ranks[slot] = rank
            mergedIds[rank] = id(left + right)
        }
    }

    /** Returns the rank of a pair, the lowest merges first; [NO_RANK] if it does not merge. */
    fun rank(left: Int, right: Int): Int {
        val slot = slot(pair(left, right))
        return if (pairs[slot] < 0) NO_RANK else ranks[slot]
    }

    /** Returns the id that the pair of a rank becomes. */
    fun mergedId(rank: Int): Int = mergedIds[rank]

    private fun pair(left: Int, right: Int) = left.toLong() shl 32 or right.toLong()

    /** Returns the slot that a pair has, or would get. */
    private fun slot(pair: Long): Int {
        val mixed = pair * -0x61c8864680b583ebL
        var slot = (mixed ushr 40).toInt() and mask
        while (pairs[slot] >= 0 && pairs[slot] != pair) slot = slot + 1 and mask
        return slot
    }
}

/** A merge names [token], which the vocabulary does not have. */
internal class UnknownToken(val token: String) : Exception()

/** Merges one piece after another, in memory that it keeps; not safe for several threads. */
internal class Merging(private val merges: Merges) {
    private var previous = IntArray(0)
    private var next = IntArray(0)

    // Rank of the pair that each place begins, as things stand.
    private var ranks = IntArray(0)
    private val candidates = LongHeap()

    /**
     * Merges the first [size] of [ids] in place and returns how many are left.
     *
     * The lowest rank merges first, of equal ones the leftmost. The time grows as n log n, so that
     * a text without spaces, which is one piece, costs little more than another.
     */
    fun merge(ids: IntArray, size: Int): Int {
        if (size < 2) return size
        prepare(size)
        for (place in 0 until size - 1) consider(ids, place, place + 1)
        while (candidates.isNotEmpty()) {
            val candidate = candidates.removeSmallest()
            val place = candidate.toInt()
            // Stale: one of the two has merged with another neighbour since.
            if (ranks[place] != (candidate ushr 32).toInt()) continue
            mergeAt(ids, place, size)
        }
        return keepMerged(ids, size)
    }

    private fun prepare(size: Int) {
        if (previous.size < size) {
            previous = IntArray(2 * size)
            next = IntArray(2 * size)
            ranks = IntArray(2 * size)
        }
        for (place in 0 until size) {
            previous[place] = place - 1
            next[place] = place + 1
        }
        ranks[size - 1] = NO_RANK
    }

    private fun consider(ids: IntArray, left: Int, right: Int) {
        val rank = merges.rank(ids[left], ids[right])
        ranks[left] = rank
        if (rank != NO_RANK) candidates.add(rank.toLong() shl 32 or left.toLong())
    }

    private fun mergeAt(ids: IntArray, place: Int, size: Int) {
        val gone = next[place]
        val following = next[gone]
        ids[place] = merges.mergedId(ranks[place])
        next[place] = following
        ranks[gone] = NO_RANK
        ranks[place] = NO_RANK
        if (following < size) {
            previous[following] = place
            consider(ids, place, following)
        }
        if (previous[place] >= 0) consider(ids, previous[place], place)
    }

    private fun keepMerged(ids: IntArray, size: Int): Int {
        var kept = 0
        var place = 0
        while (place < size) {
            ids[kept++] = ids[place]
            place = next[place]
        }
        return kept
    }
}

/** Numbers of which the smallest comes out first. */
private class LongHeap {
    private var values = LongArray(64)
    private var size = 0

    fun isNotEmpty() = size > 0

    fun add(value: Long) {
        if (size == values.size) values = values.copyOf(2 * size)
        var place = size++
        while (place > 0 && values[(place - 1) / 2] > value) {
            values[place] = values[(place - 1) / 2]
            place = (place - 1) / 2
        }
        values[place] = value
    }

    fun removeSmallest(): Long {
        val smallest = values[0]
        val last = values[--size]
        var place = 0
        while (true) {
            var child = 2 * place + 1
            if (child + 1 < size && values[child + 1] < values[child]) child++
            if (child >= size || values[child] >= last) break
            values[place] = values[child]
            place = child
        }
        values[place] = last
        return smallest
    }
}
