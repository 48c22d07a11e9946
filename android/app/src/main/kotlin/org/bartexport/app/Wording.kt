/*
 * Localized texts for the values of a UiState.
 */
package org.bartexport.app

import android.content.Context
import android.text.format.Formatter
import kotlin.math.roundToInt
import org.bartexport.litert.Accelerator

/** Returns a title and detail for the setup's progress, or null once the model is ready. */
fun Context.describe(setup: Setup): Pair<String, String>? = when (setup) {
    is Setup.Installing -> getString(R.string.installing) to getString(
        R.string.installing_progress,
        Formatter.formatShortFileSize(this, setup.bytes),
        Formatter.formatShortFileSize(this, setup.of),
    )
    is Setup.Loading -> getString(R.string.loading) to ""
    is Setup.Failed -> getString(R.string.setup_failed) to getString(R.string.setup_advice)
    is Setup.Ready -> null
}

/** Returns the model's name and its accelerator. */
fun Context.describe(model: ModelFacts, settings: Settings): String = getString(
    R.string.model_line,
    model.name,
    when (model.accelerator) {
        Accelerator.GPU -> getString(R.string.gpu)
        Accelerator.CPU -> getString(
            R.string.model_line,
            getString(R.string.cpu),
            threads(settings.numThreads),
        )
    },
)

/** Returns the length of a text as a percentage of the limit. */
fun Context.describe(count: TokenCount): String = if (count.over) {
    getString(R.string.too_long)
} else {
    getString(R.string.length, count.share)
}

/** Returns a word for the progress of a summary. */
fun Context.describe(summary: Summary): String = when (summary) {
    is Summary.None -> ""
    is Summary.Waiting -> getString(R.string.waiting)
    is Summary.Reading -> getString(R.string.reading)
    is Summary.Writing -> getString(R.string.writing)
    is Summary.Done -> getString(R.string.done)
    is Summary.Stopped -> getString(R.string.stopped)
    is Summary.Failed -> getString(R.string.failed)
}

/** Returns a screen reader's announcement of the summary's progress. */
fun Context.speak(summary: Summary): String = if (summary is Summary.Done) {
    getString(R.string.done_spoken, summary.text)
} else {
    describe(summary)
}

/** Returns the progress or result of the self-test, or null before it. */
fun Context.describe(selfTest: SelfTest): String? = when (selfTest) {
    is SelfTest.None -> null
    is SelfTest.Running ->
        if (selfTest.of == 0) {
            getString(R.string.self_test_checking)
        } else {
            getString(R.string.self_test_running, selfTest.done, selfTest.of)
        }
    is SelfTest.Finished -> describeFinished(selfTest)
    is SelfTest.Stopped -> getString(R.string.self_test_stopped)
    is SelfTest.Failed -> selfTest.line
}

private fun Context.describeFinished(selfTest: SelfTest.Finished): String {
    val verdict = resources.getQuantityString(
        if (selfTest.passed) R.plurals.self_test_passed else R.plurals.self_test_failed,
        selfTest.same,
        selfTest.same,
        selfTest.of,
    )
    val (expected, received) = selfTest.difference ?: return verdict
    return verdict + "\n" + getString(R.string.self_test_difference, expected, received)
}

/** Returns a length in [tokens], including start and end, as an approximate number of words. */
fun Context.length(tokens: Int): String {
    val words = ((tokens - START_AND_END) * WORDS_PER_TOKEN).roundToInt()
    return if (words > 0) {
        resources.getQuantityString(R.plurals.about_words, words, words)
    } else {
        getString(R.string.any_length)
    }
}

/** Returns a number of threads with its unit. */
fun Context.threads(number: Int): String =
    resources.getQuantityString(R.plurals.thread_count, number, number)

/** Returns the label of a [number] of beams, one of [all] the choices. */
fun Context.beams(number: Int, all: List<Int>): String = when {
    number == 1 -> getString(R.string.fast)
    all.count { it > 1 } == 1 -> getString(R.string.careful)
    else -> getString(R.string.careful_of, number)
}

/** Returns seconds with two decimals. */
fun Context.seconds(value: Double): String = getString(R.string.seconds, value)

private const val START_AND_END = 2

// A typical value for English prose.
private const val WORDS_PER_TOKEN = 0.75
