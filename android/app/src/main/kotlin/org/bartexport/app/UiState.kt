/*
 * What there is to see: one value, which the summarizer changes and windows render.
 *
 * Numbers and lines, no words of a language and no views: those are the windows' business.
 */
package org.bartexport.app

import org.bartexport.GenerationConfig
import org.bartexport.litert.Accelerator
import org.bartexport.runtime.Timings

/**
 * Everything that the app shows.
 *
 * @property count tokens of the text as it is now, null while that is not known and for none
 */
data class UiState(
    val setup: Setup = Setup.Loading,
    val settings: Settings = Settings(),
    val count: TokenCount? = null,
    val summary: Summary = Summary.None,
    val selfTest: SelfTest = SelfTest.None,
) {
    /** What is known of the model, once it is ready. */
    val model: ModelFacts?
        get() = (setup as? Setup.Ready)?.model
}

/** How far the model is. */
sealed interface Setup {
    /** Being copied out of the app: so many [bytes], [of] so many. */
    data class Installing(val bytes: Long, val of: Long) : Setup

    /** Being opened. */
    data object Loading : Setup

    /** Ready to write. */
    data class Ready(val model: ModelFacts) : Setup

    /** Not to be had, for the reason that the [line] gives. */
    data class Failed(val line: String) : Setup
}

/**
 * What is known of the model that is ready.
 *
 * @property name what it was exported from
 * @property file name of its file in the artifact
 * @property bytes size of that file
 * @property sourceLength most tokens that it reads, start and end included
 * @property targetLength most tokens that it writes, start token included
 * @property numBeams how many beams there can be, ascending
 * @property generation its own settings
 * @property accelerator what computes it
 * @property fallback why that is not what was asked for, null where it is
 * @property loadSeconds what opening it took
 */
data class ModelFacts(
    val name: String,
    val file: String,
    val bytes: Long,
    val sourceLength: Int,
    val targetLength: Int,
    val numBeams: List<Int>,
    val generation: GenerationConfig,
    val accelerator: Accelerator,
    val fallback: String?,
    val loadSeconds: Double,
)

/** How many [tokens] the text has, start and end included, and the [limit] of what is read. */
data class TokenCount(val tokens: Int, val limit: Int) {
    /** Whether the end of the text is not read. */
    val over: Boolean
        get() = tokens > limit

    /** The text's share of what is read, in percent, rounded up. */
    val share: Int
        get() = (tokens * PERCENT + limit - 1) / limit
}

/** The summary and how far it is. */
sealed interface Summary {
    /** None was asked for. */
    data object None : Summary

    /** One was asked for before the model was ready. */
    data object Waiting : Summary

    /** The text is being encoded. */
    data object Reading : Summary

    /** Being written: [text] is certain so far. */
    data class Writing(val text: String) : Summary

    /** Whole. [memory] is the process's in bytes, null while it is not known. */
    data class Done(val text: String, val timings: Timings, val memory: Long? = null) : Summary

    /** Stopped after [text]. */
    data class Stopped(val text: String) : Summary

    /** Not to be had, for the reason that the [line] gives. */
    data class Failed(val line: String) : Summary
}

/** Whether it is being worked on, so that there is something to stop. */
val Summary.running: Boolean
    get() = this is Summary.Waiting || this is Summary.Reading || this is Summary.Writing

/** What remains of a summary when the work on it ends early. */
fun Summary.interrupted(): Summary = when (this) {
    is Summary.Writing -> Summary.Stopped(text)
    is Summary.Reading -> Summary.Stopped("")
    is Summary.Waiting -> Summary.None
    else -> this
}

/** The self-test and how far it is. */
sealed interface SelfTest {
    /** Not run yet. */
    data object None : SelfTest

    /** So many answers are [done], [of] so many; 0 of 0 while files are checked. */
    data class Running(val done: Int, val of: Int) : SelfTest

    /**
     * All answers were compared.
     *
     * @property passed whether the model computes rightly by them
     * @property same how many were the recorded ones, token for token
     * @property difference what was expected and received where one first was not
     */
    data class Finished(
        val passed: Boolean,
        val same: Int,
        val of: Int,
        val difference: Pair<String, String>?,
    ) : SelfTest

    /** Ended early. */
    data object Stopped : SelfTest

    /** Could not be run, for the reason that the [line] gives. */
    data class Failed(val line: String) : SelfTest
}

/** What remains of a self-test when the work on it ends early. */
fun SelfTest.interrupted(): SelfTest = if (this is SelfTest.Running) SelfTest.Stopped else this

private const val PERCENT = 100
