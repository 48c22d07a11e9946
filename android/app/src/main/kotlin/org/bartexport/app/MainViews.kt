/*
 * The views of the main window, and what a state makes of them.
 *
 * A state goes in, views change; what a person does goes to the summarizer. Rendering the same
 * state twice changes nothing, so that screen readers and selections are left in peace.
 */
package org.bartexport.app

import android.annotation.SuppressLint
import android.app.Activity
import android.content.res.ColorStateList
import android.text.Editable
import android.text.TextWatcher
import android.text.format.Formatter
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.ProgressBar
import android.widget.TextView

/** The views of an [activity] that has its layout. */
class MainViews(private val activity: Activity, private val summarizer: Summarizer) {
    private val model: TextView = activity.view(R.id.model)
    private val setup: View = activity.view(R.id.setup)
    private val setupTitle: TextView = activity.view(R.id.setup_title)
    private val setupDetail: TextView = activity.view(R.id.setup_detail)
    private val setupProgress: ProgressBar = activity.view(R.id.setup_progress)
    private val tryAgain: Button = activity.view(R.id.try_again)
    private val text: EditText = activity.view(R.id.text)
    private val tokenBar: ProgressBar = activity.view(R.id.token_bar)
    private val tokenCount: TextView = activity.view(R.id.token_count)
    private val action: Button = activity.view(R.id.action)
    private val status: TextView = activity.view(R.id.status)
    private val output: TextView = activity.view(R.id.output)
    private val hint: CharSequence? = output.hint
    private val error: TextView = activity.view(R.id.error)
    private val copy: Button = activity.view(R.id.copy)
    private val figures = Figures(activity)
    private val fallback: TextView = activity.view(R.id.fallback)

    /** Makes the views do something; once, before the first state. */
    @SuppressLint("ClickableViewAccessibility")
    fun connect(copy: (CharSequence) -> Unit, openSettings: () -> Unit) {
        activity.view<View>(R.id.screen).stayClearOfSystemBars()
        activity.view<View>(R.id.settings).setOnClickListener { openSettings() }
        tryAgain.setOnClickListener { summarizer.tryAgain() }
        action.setOnClickListener { act() }
        this.copy.setOnClickListener { copy(output.text) }
        text.addTextChangedListener(AfterChange { textChanged(it) })
        // A long text scrolls by itself, not the whole screen with it. Touches are only watched.
        text.setOnTouchListener { view, _ ->
            val scrolls = view.canScrollVertically(1) || view.canScrollVertically(-1)
            view.parent.requestDisallowInterceptTouchEvent(scrolls)
            false
        }
    }

    /** Puts [words] in the place of the text that is there. */
    fun write(words: String) {
        text.setText(words)
        text.setSelection(text.length())
    }

    /** Shows a state. */
    fun render(state: UiState) {
        model.show(
            state.model?.let { activity.describe(it, state.settings) }
                ?: activity.getString(R.string.model_not_ready),
        )
        render(state.setup)
        render(state.count)
        render(state.summary)
        figures.render(state)
        fallback.show(state.model?.fallback?.let { activity.getString(R.string.gpu_fallback, it) })
        offer(state)
    }

    private fun render(setup: Setup) {
        val words = activity.describe(setup)
        this.setup.shown = words != null
        if (words == null) return
        setupTitle.show(words.first)
        setupDetail.show(words.second.ifEmpty { null })
        val failed = setup is Setup.Failed
        this.setup.setBackgroundResource(if (failed) R.drawable.card_error else R.drawable.card)
        val colour = if (failed) R.color.on_error_container else R.color.text_secondary
        setupDetail.setTextColor(activity.getColor(colour))
        setupProgress.shown = !failed
        setupProgress.isIndeterminate = setup is Setup.Loading
        tryAgain.shown = failed
        if (setup is Setup.Installing && setup.of > 0) {
            setupProgress.progress = (setup.bytes * setupProgress.max / setup.of).toInt()
        }
    }

    private fun render(count: TokenCount?) {
        tokenBar.visibility = if (count == null) View.INVISIBLE else View.VISIBLE
        tokenCount.visibility = tokenBar.visibility
        if (count == null) return
        val warning = activity.getColor(R.color.warning)
        tokenCount.show(activity.describe(count))
        tokenCount.setTextColor(
            if (count.over) warning else activity.getColor(R.color.text_secondary),
        )
        tokenBar.max = count.limit
        tokenBar.progress = count.tokens.coerceAtMost(count.limit)
        tokenBar.progressTintList = if (count.over) ColorStateList.valueOf(warning) else null
    }

    private fun render(summary: Summary) {
        status.show(activity.describe(summary))
        status.contentDescription = activity.speak(summary)
        val words = when (summary) {
            is Summary.Writing -> summary.text
            is Summary.Done -> summary.text
            is Summary.Stopped -> summary.text
            else -> ""
        }
        output.show(words.trim())
        // A hint takes its space even where a shorter text has replaced it.
        output.hint = hint.takeIf { summary is Summary.None }
        error.show((summary as? Summary.Failed)?.line)
        copy.shown = words.isNotBlank() && !summary.running
    }

    private fun offer(state: UiState) {
        val stops = state.summary.running
        action.isActivated = stops
        action.setText(if (stops) R.string.stop else R.string.summarise)
        action.isEnabled = stops || state.model != null && text.text.isNotBlank()
    }

    private fun act() {
        if (summarizer.state.value.summary.running) {
            summarizer.stop()
        } else {
            summarizer.summarize(text.text.toString())
        }
    }

    private fun textChanged(changed: String) {
        summarizer.count(changed)
        offer(summarizer.state.value)
    }
}

/** The views with the figures of the last summary. */
private class Figures(private val activity: Activity) {
    private val all: View = activity.view(R.id.figures)
    private val firstToken: TextView = activity.view(R.id.first_token_value)
    private val speed: TextView = activity.view(R.id.speed_value)
    private val loadTime: TextView = activity.view(R.id.load_time_value)
    private val memory: View = activity.view(R.id.memory)
    private val memoryValue: TextView = activity.view(R.id.memory_value)

    fun render(state: UiState) {
        val done = state.summary as? Summary.Done
        val model = state.model
        all.shown = done != null && model != null
        if (done == null || model == null) return
        val timings = done.timings
        firstToken.show(activity.seconds(timings.firstToken))
        speed.show(activity.getString(R.string.tokens_per_second, timings.tokensPerSecond))
        loadTime.show(activity.seconds(model.loadSeconds))
        memory.shown = done.memory != null
        memoryValue.show(done.memory?.let { Formatter.formatShortFileSize(activity, it) })
    }
}

/** Hands every change of a text to [changed]. */
private class AfterChange(private val changed: (String) -> Unit) : TextWatcher {
    override fun beforeTextChanged(text: CharSequence, start: Int, count: Int, after: Int) = Unit

    override fun onTextChanged(text: CharSequence, start: Int, before: Int, count: Int) = Unit

    override fun afterTextChanged(text: Editable) = changed(text.toString())
}
