/*
 * States in the words of the person's language.
 *
 * Values of UiState and a context's resources go in, texts come out. Where they are shown is not
 * known here.
 */
package org.bartexport.app

import android.content.Context
import android.text.format.Formatter
import org.bartexport.litert.Accelerator

/** The title and the line below it that say how far the model is; null once it is ready. */
fun Context.describe(setup: Setup): Pair<String, String>? = when (setup) {
    is Setup.Installing -> getString(R.string.installing) to getString(
        R.string.installing_progress,
        Formatter.formatShortFileSize(this, setup.bytes),
        Formatter.formatShortFileSize(this, setup.of),
    )
    is Setup.Loading -> getString(R.string.loading) to ""
    is Setup.Failed -> getString(R.string.setup_failed) to setup.line
    is Setup.Ready -> null
}

/** The model's name and what computes it. */
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

/** How many tokens there are, and how many of them are read. */
fun Context.describe(count: TokenCount): String = resources.getQuantityString(
    if (count.over) R.plurals.token_count_over else R.plurals.token_count,
    count.limit,
    count.tokens,
    count.limit,
)

/** What is being done for the summary, in a word. */
fun Context.describe(summary: Summary): String = when (summary) {
    is Summary.None -> ""
    is Summary.Waiting -> getString(R.string.waiting)
    is Summary.Reading -> getString(R.string.reading)
    is Summary.Writing -> getString(R.string.writing)
    is Summary.Done -> getString(R.string.done)
    is Summary.Stopped -> getString(R.string.stopped)
    is Summary.Failed -> getString(R.string.failed)
}

/** What a screen reader says when the state of the summary changes. */
fun Context.speak(summary: Summary): String = if (summary is Summary.Done) {
    getString(R.string.done_spoken, summary.text)
} else {
    describe(summary)
}

/** How the self-test goes or went; null before it. */
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

/** A number of tokens in words. */
fun Context.tokens(number: Int): String =
    resources.getQuantityString(R.plurals.tokens, number, number)

/** A number of threads in words. */
fun Context.threads(number: Int): String =
    resources.getQuantityString(R.plurals.thread_count, number, number)

/** A number of beams in words; a single one is greedy search. */
fun Context.beams(number: Int): String = if (number == 1) {
    getString(R.string.greedy)
} else {
    resources.getQuantityString(R.plurals.beam_count, number, number)
}

/** Seconds, with two decimals. */
fun Context.seconds(value: Double): String = getString(R.string.seconds, value)
