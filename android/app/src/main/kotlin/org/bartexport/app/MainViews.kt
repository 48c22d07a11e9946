/*
 * Renders a state in the views of the main activity, and forwards user actions to the summarizer.
 *
 * Rendering is idempotent, so it does not disturb screen readers or text selections.
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
import android.widget.ToggleButton

/** The views of the main [activity]. */
class MainViews(private val activity: Activity, private val summarizer: Summarizer) {
    private val setup: View = activity.view(R.id.setup)
    private val setupTitle: TextView = activity.view(R.id.setup_title)
    private val setupDetail: TextView = activity.view(R.id.setup_detail)
    private val setupProgress: ProgressBar = activity.view(R.id.setup_progress)
    private val tryAgain: Button = activity.view(R.id.try_again)
    private val showReason: ToggleButton = activity.view(R.id.show_reason)
    private val reason: TextView = activity.view(R.id.reason)
    private val text: EditText = activity.view(R.id.text)
    private val tokenBar: ProgressBar = activity.view(R.id.token_bar)
    private val tokenCount: TextView = activity.view(R.id.token_count)
    private val action: Button = activity.view(R.id.action)
    private val status: TextView = activity.view(R.id.status)
    private val output: TextView = activity.view(R.id.output)
    private val hint: CharSequence? = output.hint
    private val error: TextView = activity.view(R.id.error)
    private val clear: View = activity.view(R.id.clear)
    private val handOn: View = activity.view(R.id.hand_on)
    private val figures = Figures(activity)

    /** The summary generated so far. */
    val summary: CharSequence
        get() = output.text

    /** Sets the listeners; must be called once, before the first state is rendered. */
    @SuppressLint("ClickableViewAccessibility")
    fun connect(taps: Map<Int, () -> Unit>) {
        activity.view<View>(R.id.screen).avoidSystemBars()
        for ((id, tapped) in taps) activity.view<View>(id).setOnClickListener { tapped() }
        clear.setOnClickListener { write("") }
        tryAgain.setOnClickListener { summarizer.tryAgain() }
        showReason.discloses(reason)
        action.setOnClickListener { act() }
        text.addTextChangedListener(AfterChange { textChanged(it) })
        // A previous activity may have had another text.
        textChanged(text.text.toString())
        // Lets a long text scroll without its parent; touches are not consumed.
        text.setOnTouchListener { view, _ ->
            val scrolls = view.canScrollVertically(1) || view.canScrollVertically(-1)
            view.parent.requestDisallowInterceptTouchEvent(scrolls)
            false
        }
    }

    /** Replaces the text by [words]. */
    fun write(words: String) {
        text.setText(words)
        text.setSelection(text.length())
    }

    /** Inserts [words] at the cursor, replacing the selection. */
    fun insert(words: CharSequence) {
        val (start, end) = listOf(text.selectionStart, text.selectionEnd).sorted()
        text.text.replace(start.coerceAtLeast(0), end.coerceAtLeast(0), words.toString())
    }

    /** Shows a state. */
    fun render(state: UiState) {
        render(state.setup)
        render(state.count)
        render(state.summary)
        figures.render(state)
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
        val color = if (failed) R.color.on_error_container else R.color.text_secondary
        setupDetail.setTextColor(activity.getColor(color))
        setupProgress.shown = !failed
        setupProgress.isIndeterminate = setup is Setup.Loading
        tryAgain.shown = failed
        showReason.shown = failed
        reason.shown = failed && showReason.isChecked
        if (setup is Setup.Failed) reason.text = setup.line
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
        // A hint takes up space even if it is hidden by a shorter text.
        output.hint = hint.takeIf { summary is Summary.None }
        error.show((summary as? Summary.Failed)?.line)
        handOn.shown = words.isNotBlank() && !summary.running
    }

    private fun offer(state: UiState) {
        val stops = state.summary.running
        action.isActivated = stops
        action.setText(if (stops) R.string.stop else R.string.summarize)
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
        clear.shown = changed.isNotEmpty()
        summarizer.count(changed)
        offer(summarizer.state.value)
    }
}

/** The views with the last summary's details. */
private class Figures(private val activity: Activity) {
    private val all: View = activity.view(R.id.figures)
    private val model: TextView = activity.view(R.id.model)
    private val firstToken: TextView = activity.view(R.id.first_token_value)
    private val speed: TextView = activity.view(R.id.speed_value)
    private val loadTime: TextView = activity.view(R.id.load_time_value)
    private val memory: View = activity.view(R.id.memory)
    private val memoryValue: TextView = activity.view(R.id.memory_value)
    private val fallback: TextView = activity.view(R.id.fallback)

    init {
        activity.view<ToggleButton>(R.id.show_details).discloses(activity.view(R.id.details))
    }

    fun render(state: UiState) {
        val done = state.summary as? Summary.Done
        val model = state.model
        all.shown = done != null && model != null
        if (done == null || model == null) return
        this.model.show(activity.describe(model, state.settings))
        fallback.show(model.fallback?.let { activity.getString(R.string.gpu_fallback, it) })
        val timings = done.timings
        firstToken.show(activity.seconds(timings.firstToken))
        speed.show(activity.getString(R.string.tokens_per_second, timings.tokensPerSecond))
        loadTime.show(activity.seconds(model.loadSeconds))
        memory.shown = done.memory != null
        memoryValue.show(done.memory?.let { Formatter.formatShortFileSize(activity, it) })
    }
}

/** Calls [changed] with the text after every change. */
private class AfterChange(private val changed: (String) -> Unit) : TextWatcher {
    override fun beforeTextChanged(text: CharSequence, start: Int, count: Int, after: Int) = Unit

    override fun onTextChanged(text: CharSequence, start: Int, before: Int, count: Int) = Unit

    override fun afterTextChanged(text: Editable) = changed(text.toString())
}
