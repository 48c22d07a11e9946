/*
 * States in the words of the person's language.
 *
 * Values of UiState and a context's resources go in, texts come out. Where they are shown is not
 * known here.
 */
package org.bartexport.app

import android.content.Context
import android.text.format.Formatter
import kotlin.math.roundToInt
import org.bartexport.litert.Accelerator

/** The title and the line below it that say how far the model is; null once it is ready. */
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

/** How long a text is, as a share of what is read. */
fun Context.describe(count: TokenCount): String = if (count.over) {
    getString(R.string.too_long)
} else {
    getString(R.string.length, count.share)
}

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

/** A length of so many [tokens], start and end included, as about so many words. */
fun Context.length(tokens: Int): String {
    val words = ((tokens - START_AND_END) * WORDS_PER_TOKEN).roundToInt()
    return if (words > 0) {
        resources.getQuantityString(R.plurals.about_words, words, words)
    } else {
        getString(R.string.any_length)
    }
}

/** A number of threads in words. */
fun Context.threads(number: Int): String =
    resources.getQuantityString(R.plurals.thread_count, number, number)

/** What a [number] of beams means, where [all] these can be chosen. */
fun Context.beams(number: Int, all: List<Int>): String = when {
    number == 1 -> getString(R.string.fast)
    all.count { it > 1 } == 1 -> getString(R.string.careful)
    else -> getString(R.string.careful_of, number)
}

/** Seconds, with two decimals. */
fun Context.seconds(value: Double): String = getString(R.string.seconds, value)

private const val START_AND_END = 2

// Of English prose, by and large.
private const val WORDS_PER_TOKEN = 0.75
