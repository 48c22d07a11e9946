/*
 * The merging step of BPE, for which Python uses the `tokenizers` library.
 *
 * All tables are primitive arrays: boxed numbers would cost more than the merging itself.
 */
package org.bartexport.text

private const val NO_RANK = -1

/** The rank of each mergeable pair of ids and the id it becomes. Immutable. */
internal class Merges(vocabulary: Map<String, Int>, merges: List<Pair<String, String>>) {
    // A hash table with open addressing and linear probing, at most half full.
    private val mask = Integer.highestOneBit(merges.size or 1) * 4 - 1
    private val pairs = LongArray(mask + 1) { -1L }
    private val ranks = IntArray(mask + 1)
    private val mergedIds = IntArray(merges.size)

    /** Size of the longest merged token, in bytes. */
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

    /** Returns the rank of a pair, or [NO_RANK] if it does not merge; low ranks merge first. */
    fun rank(left: Int, right: Int): Int {
        val slot = slot(pair(left, right))
        return if (pairs[slot] < 0) NO_RANK else ranks[slot]
    }

    /** Returns the id that the pair with this rank becomes. */
    fun mergedId(rank: Int): Int = mergedIds[rank]

    private fun pair(left: Int, right: Int) = left.toLong() shl 32 or right.toLong()

    /** Returns the slot of a pair, or the free slot where it belongs. */
    private fun slot(pair: Long): Int {
        val mixed = pair * -0x61c8864680b583ebL
        var slot = (mixed ushr 40).toInt() and mask
        while (pairs[slot] >= 0 && pairs[slot] != pair) slot = slot + 1 and mask
        return slot
    }
}

/** Thrown if a merge's [token] is not in the vocabulary. */
internal class UnknownToken(val token: String) : Exception()

/** Merges pieces, reusing its buffers. Not thread-safe. */
internal class Merging(private val merges: Merges) {
    private var previous = IntArray(0)
    private var next = IntArray(0)

    // Current rank of the pair that begins at each place.
    private var ranks = IntArray(0)
    private val candidates = LongHeap()

    /**
     * Merges the first [size] of [ids] in place and returns the number of ids left.
     *
     * The lowest rank merges first, and the leftmost of equal ranks. It takes O(n log n) time, so
     * long texts without spaces, which are one piece, are not slow.
     */
    fun merge(ids: IntArray, size: Int): Int {
        if (size < 2) return size
        prepare(size)
        for (place in 0 until size - 1) consider(ids, place, place + 1)
        while (candidates.isNotEmpty()) {
            val candidate = candidates.removeSmallest()
            val place = candidate.toInt()
            // Stale: one of the pair has since merged with its other neighbour.
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

/** A min-heap of numbers. */
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
