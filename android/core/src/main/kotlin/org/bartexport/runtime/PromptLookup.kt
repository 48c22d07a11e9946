/*
 * Drafts for greedy search, because summaries copy spans of their sources; mirrors
 * bart_export/runtime/drafts.py.
 *
 * As in transformers' prompt lookup decoding, the guess is what followed an earlier occurrence of
 * the last tokens, in the source or else in the generated tokens.
 */
package org.bartexport.runtime

import org.bartexport.GenerationConfig

/** Returns a lookup for greedy search, or null if the settings do not enable drafts. */
internal fun promptLookup(generation: GenerationConfig, source: IntArray): PromptLookup? {
    val maxTokens = if (generation.doSample) 0 else generation.promptLookupNumTokens
    return if (maxTokens > 0 && source.isNotEmpty()) PromptLookup(source, maxTokens) else null
}

/** Guesses up to [maxTokens] next tokens, as long as its guesses are mostly right. */
internal class PromptLookup(source: IntArray, private val maxTokens: Int) {
    private val generated = IndexedText()
    private val texts = listOf(IndexedText().also { source.forEach(it::add) }, generated)
    private var guess = listOf<Int>()
    private var hits = 0
    private var average = 0.0

    init {
        texts.first().index()
    }

    /** The average number of right guesses in a row, including the current guesses. */
    val expected: Double
        get() = DECAY * average + (1 - DECAY) * hits

    /** Adds a generated token, compares it with the guess, and guesses again. */
    fun add(tokenId: Int) {
        if (guess.firstOrNull() == tokenId) {
            hits = minOf(hits + 1, maxTokens)
        } else if (guess.isNotEmpty()) {
            average = expected
            hits = 0
        }
        // Not yet with the token, whose n-grams must not be found.
        generated.index()
        generated.add(tokenId)
        guess = lookUp()
    }

    /** Returns the part of the guess that is likely to be right. */
    fun draft(): IntArray {
        if (expected < THRESHOLD) return IntArray(0)
        return guess.take(1 + (FACTOR * expected).toInt()).toIntArray()
    }

    /** Returns the tokens that followed an earlier occurrence of the last tokens. */
    private fun lookUp(): List<Int> {
        for (text in texts) {
            for (length in LENGTHS) {
                val found = text.after(generated.last(length), maxTokens)
                if (found.isNotEmpty()) return found
            }
        }
        return emptyList()
    }
}

/** A text, and where its n-grams first end. */
private class IndexedText {
    private val tokens = mutableListOf<Int>()
    private val places = HashMap<List<Int>, Int>()

    /** Number of tokens whose n-grams are in [places]. */
    private var indexed = 0

    fun add(tokenId: Int) {
        tokens += tokenId
    }

    /** Adds the n-grams of new tokens; of equal ones, the first is kept. */
    fun index() {
        while (indexed < tokens.size) {
            indexed++
            for (length in LENGTHS.filter { it <= indexed }) {
                places.putIfAbsent(tokens.subList(indexed - length, indexed).toList(), indexed)
            }
        }
    }

    fun last(length: Int): List<Int> = tokens.takeLast(length)

    /** Returns up to [count] tokens after the first occurrence of an n-gram. */
    fun after(ngram: List<Int>, count: Int): List<Int> {
        val place = places[ngram] ?: return emptyList()
        return tokens.subList(place, minOf(place + count, tokens.size)).toList()
    }
}

/** Lengths of the n-grams that are looked up, in this order. */
private val LENGTHS = listOf(3, 2, 1)

// The decay of the average, the average from which drafts pay off, and how much longer they are.
private const val DECAY = 0.7
private const val THRESHOLD = 0.45
private const val FACTOR = 4
