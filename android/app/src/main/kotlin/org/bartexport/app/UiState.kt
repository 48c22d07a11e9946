/*
 * The state of the user interface, independent of language and views.
 */
package org.bartexport.app

import org.bartexport.GenerationConfig
import org.bartexport.litert.Accelerator
import org.bartexport.runtime.Timings

/**
 * The state of the user interface.
 *
 * @property count tokens of the current text, or null if it is empty or not counted yet
 */
data class UiState(
    val setup: Setup = Setup.Loading,
    val settings: Settings = Settings(),
    val count: TokenCount? = null,
    val summary: Summary = Summary.None,
    val selfTest: SelfTest = SelfTest.None,
) {
    /** The model's properties, or null until it is ready. */
    val model: ModelFacts?
        get() = (setup as? Setup.Ready)?.model
}

/** The progress of installing and opening the model. */
sealed interface Setup {
    /** The first [bytes] [of] the bundle are installed. */
    data class Installing(val bytes: Long, val of: Long) : Setup

    /** The model is being opened. */
    data object Loading : Setup

    /** The model is ready. */
    data class Ready(val model: ModelFacts) : Setup

    /** Installing or opening failed; [line] is the error message. */
    data class Failed(val line: String) : Setup
}

/**
 * Properties of an open model.
 *
 * @property name the exported preset
 * @property file name of its file in the artifact
 * @property bytes size of that file
 * @property sourceLength maximum number of source tokens, including start and end
 * @property targetLength maximum number of generated tokens, including the start token
 * @property numBeams supported numbers of beams, ascending
 * @property generation default settings
 * @property accelerator the accelerator in use
 * @property fallback why the requested accelerator is not in use, or null if it is
 * @property loadSeconds time to open it
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

/** The number of [tokens] of the text, including start and end, and the model's [limit]. */
data class TokenCount(val tokens: Int, val limit: Int) {
    /** Whether the text will be truncated. */
    val over: Boolean
        get() = tokens > limit

    /** The number of tokens in percent of the limit, rounded up. */
    val share: Int
        get() = (tokens * PERCENT + limit - 1) / limit
}

/** The progress of a summary. */
sealed interface Summary {
    /** No summary was requested. */
    data object None : Summary

    /** A summary was requested before the model was ready. */
    data object Waiting : Summary

    /** The text is being encoded. */
    data object Reading : Summary

    /** The summary is being generated; [text] is final so far. */
    data class Writing(val text: String) : Summary

    /** The summary is complete; [memory] is the process's, in bytes, or null if unknown. */
    data class Done(val text: String, val timings: Timings, val memory: Long? = null) : Summary

    /** The summary was stopped after [text]. */
    data class Stopped(val text: String) : Summary

    /** The generation failed; [line] is the error message. */
    data class Failed(val line: String) : Summary
}

/** Whether the summary can be stopped. */
val Summary.running: Boolean
    get() = this is Summary.Waiting || this is Summary.Reading || this is Summary.Writing

/** Returns the state of a summary after it was interrupted. */
fun Summary.interrupted(): Summary = when (this) {
    is Summary.Writing -> Summary.Stopped(text)
    is Summary.Reading -> Summary.Stopped("")
    is Summary.Waiting -> Summary.None
    else -> this
}

/** The progress of the self-test. */
sealed interface SelfTest {
    /** The self-test was not run yet. */
    data object None : SelfTest

    /** [done] [of] all questions are answered; 0 of 0 while files are verified. */
    data class Running(val done: Int, val of: Int) : SelfTest

    /**
     * All answers were compared.
     *
     * @property passed whether the model passed
     * @property same number of answers that match, token for token
     * @property difference the expected and received text of the first mismatch
     */
    data class Finished(
        val passed: Boolean,
        val same: Int,
        val of: Int,
        val difference: Pair<String, String>?,
    ) : SelfTest

    /** The self-test was stopped. */
    data object Stopped : SelfTest

    /** The self-test failed to run; [line] is the error message. */
    data class Failed(val line: String) : SelfTest
}

/** Returns the state of a self-test after it was interrupted. */
fun SelfTest.interrupted(): SelfTest = if (this is SelfTest.Running) SelfTest.Stopped else this

private const val PERCENT = 100
