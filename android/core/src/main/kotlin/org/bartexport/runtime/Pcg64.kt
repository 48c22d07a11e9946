/*
 * NumPy's PCG64 random number generator, bit for bit: the equivalent of
 * numpy.random.Generator(numpy.random.PCG64(seed)) in bart_export/runtime/logits.py.
 */
package org.bartexport.runtime

import java.security.SecureRandom

/**
 * A 128-bit permuted congruential generator (O'Neill 2014, https://www.pcg-random.org).
 *
 * Its output is the xor of the state's halves, rotated by the state's upper bits.
 *
 * @param seed a non-negative seed, or null for a random one
 */
internal class Pcg64(seed: Long?) {
    private val increment: Unsigned128
    private var state: Unsigned128

    init {
        val entropy = if (seed == null) freshEntropy() else entropyOf(seed)
        val words = SeedSequence(entropy).generate(4)
        val start = Unsigned128(words[0], words[1])
        increment = Unsigned128((words[2] shl 1) or (words[3] ushr 63), (words[3] shl 1) or 1L)
        state = next(increment + start)
    }

    /** Returns a uniform number in [0, 1) with 53 random bits. */
    fun random(): Double {
        state = next(state)
        val folded = state.high xor state.low
        val bits = java.lang.Long.rotateRight(folded, (state.high ushr 58).toInt())
        return (bits ushr 11) * TWO_TO_THE_MINUS_53
    }

    private fun next(state: Unsigned128): Unsigned128 = state * MULTIPLIER + increment
}

/** A 128-bit unsigned integer; sums and products wrap around. */
private class Unsigned128(val high: Long, val low: Long) {
    operator fun plus(other: Unsigned128): Unsigned128 {
        val sum = low + other.low
        val carry = if (sum.toULong() < low.toULong()) 1L else 0L
        return Unsigned128(high + other.high + carry, sum)
    }

    operator fun times(other: Unsigned128): Unsigned128 = Unsigned128(
        high * other.low + low * other.high + highProduct(low, other.low),
        low * other.low,
    )
}

/** Returns the upper 64 bits of the product of two unsigned 64-bit integers. */
private fun highProduct(first: Long, second: Long): Long {
    val firstLow = first and LOW_WORD
    val firstHigh = first ushr 32
    val secondLow = second and LOW_WORD
    val secondHigh = second ushr 32
    val middle = firstHigh * secondLow + ((firstLow * secondLow) ushr 32)
    val other = firstLow * secondHigh + (middle and LOW_WORD)
    return firstHigh * secondHigh + (middle ushr 32) + (other ushr 32)
}

/** numpy.random.SeedSequence: expands the 32-bit words of a seed into an initial state. */
private class SeedSequence(entropy: IntArray) {
    private val pool: IntArray

    init {
        val hash = Hash(INITIAL_A, MULTIPLIER_A)
        pool = IntArray(POOL_SIZE) { hash(if (it < entropy.size) entropy[it] else 0) }
        for (source in pool.indices) {
            for (target in pool.indices) {
                if (source != target) pool[target] = mixed(pool[target], hash(pool[source]))
            }
        }
    }

    /** Returns [count] 64-bit words. */
    fun generate(count: Int): LongArray {
        val hash = Hash(INITIAL_B, MULTIPLIER_B)
        val words = IntArray(2 * count) { hash(pool[it % POOL_SIZE]) }
        return LongArray(count) {
            (words[2 * it].toLong() and LOW_WORD) or (words[2 * it + 1].toLong() shl 32)
        }
    }

    private fun mixed(first: Int, second: Int): Int {
        val mixed = MIX_FIRST * first - MIX_SECOND * second
        return mixed xor (mixed ushr 16)
    }
}

/** A hash of 32-bit words whose constant changes with every word. */
private class Hash(private var constant: Int, private val multiplier: Int) {
    operator fun invoke(word: Int): Int {
        val before = word xor constant
        constant *= multiplier
        val product = before * constant
        return product xor (product ushr 16)
    }
}

/** Returns the 32-bit words of a seed, lowest first. */
private fun entropyOf(seed: Long): IntArray = intArrayOf(seed.toInt(), (seed ushr 32).toInt())

private fun freshEntropy(): IntArray = SecureRandom().let { random ->
    IntArray(POOL_SIZE) { random.nextInt() }
}

private const val TWO_TO_THE_MINUS_53 = 1.0 / (1L shl 53)
private const val LOW_WORD = 0xFFFFFFFFL
private val MULTIPLIER = Unsigned128(0x2360ED051FC65DA4L, 0x4385DF649FCCF645L)

// SeedSequence's constants.
private const val POOL_SIZE = 4
private const val INITIAL_A = 0x43b0d7e5
private const val MULTIPLIER_A = 0x931e8875.toInt()
private const val INITIAL_B = 0x8b51f9dd.toInt()
private const val MULTIPLIER_B = 0x58f38ded
private const val MIX_FIRST = 0xca01f9dd.toInt()
private const val MIX_SECOND = 0x4973f715
