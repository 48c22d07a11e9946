/*
 * Renders a state in the views of the settings activity, and forwards changes to the summarizer.
 *
 * The choices depend on the model: its numbers of beams and its maximum length.
 */
package org.bartexport.app

import android.app.Activity
import android.text.format.Formatter
import android.view.View
import android.widget.Button
import android.widget.ProgressBar
import android.widget.RadioButton
import android.widget.RadioGroup
import android.widget.TextView
import android.widget.ToggleButton
import org.bartexport.litert.Accelerator

/** The views of the settings [activity]. */
class SettingsViews(private val activity: Activity, private val summarizer: Summarizer) {
    private val beams: RadioGroup = activity.view(R.id.beams)
    private val maximumLength = Slider(activity, R.id.maximum_length, R.id.maximum_length_value)
    private val minimumLength = Slider(activity, R.id.minimum_length, R.id.minimum_length_value)
    private val threads = Slider(activity, R.id.threads, R.id.threads_value)
    private val accelerators = mapOf(
        Accelerator.CPU to activity.view<RadioButton>(R.id.cpu),
        Accelerator.GPU to activity.view(R.id.gpu),
    )
    private val fallback: TextView = activity.view(R.id.fallback)
    private val model: TextView = activity.view(R.id.model)
    private val modelFile: TextView = activity.view(R.id.model_file)
    private val selfTest = SelfTestViews(activity)

    /** Sets the listeners; must be called once, before the first state is rendered. */
    fun connect(back: () -> Unit) {
        activity.view<View>(R.id.screen).avoidSystemBars()
        activity.view<View>(R.id.back).setOnClickListener { back() }
        maximumLength.onChange { length ->
            change { copy(maxLength = length, minLength = minLength?.coerceAtMost(length)) }
        }
        minimumLength.onChange { length -> change { copy(minLength = length) } }
        threads.onChange { number -> change { copy(numThreads = number) } }
        for ((accelerator, button) in accelerators) {
            button.setOnClickListener { change { copy(accelerator = accelerator) } }
        }
        selfTest.run.setOnClickListener { summarizer.selfTest() }
        activity.view<ToggleButton>(R.id.show_details).discloses(activity.view(R.id.details))
    }

    /** Shows a state. */
    fun render(state: UiState) {
        val settings = state.settings
        val processors = Runtime.getRuntime().availableProcessors()
        threads.render(
            1..maxOf(processors, settings.numThreads),
            settings.numThreads,
            activity::threads,
        )
        accelerators[settings.accelerator]?.isChecked = true
        selfTest.render(state)
        val facts = state.model
        val ready = facts != null
        val controls = beams.children() + accelerators.values + maximumLength.seekBar +
            minimumLength.seekBar + threads.seekBar
        controls.forEach { it.isEnabled = ready }
        model.show(facts?.name ?: activity.getString(R.string.model_not_ready))
        modelFile.shown = ready
        fallback.show(facts?.fallback?.let { activity.getString(R.string.gpu_fallback, it) })
        if (facts != null) render(facts, settings)
    }

    private fun render(facts: ModelFacts, settings: Settings) {
        val generation = settings.generation(facts)
        val lengths = Settings.SHORTEST..facts.targetLength
        maximumLength.render(lengths, generation.maxLength, activity::length)
        minimumLength.render(0..generation.maxLength, generation.minLength, activity::length)
        if (beams.childCount == 0) facts.numBeams.forEach { addChoice(it, facts.numBeams) }
        beams.children()[facts.numBeams.indexOf(generation.numBeams)].isChecked = true
        val size = Formatter.formatShortFileSize(activity, facts.bytes)
        modelFile.show(activity.getString(R.string.model_file, facts.file, size))
    }

    private fun addChoice(number: Int, all: List<Int>) {
        activity.layoutInflater.inflate(R.layout.segment, beams)
        val button = beams.children().last()
        button.id = View.generateViewId()
        // The choice comes from the state, not from a saved instance with other choices.
        button.isSaveEnabled = false
        button.text = activity.beams(number, all)
        button.setOnClickListener { change { copy(numBeams = number) } }
    }

    private fun change(changed: Settings.() -> Settings) =
        summarizer.change(summarizer.state.value.settings.changed())
}

private fun RadioGroup.children(): List<RadioButton> =
    (0 until childCount).map { getChildAt(it) as RadioButton }

/** The views of the self-test. */
private class SelfTestViews(private val activity: Activity) {
    val run: Button = activity.view(R.id.self_test)
    private val progress: ProgressBar = activity.view(R.id.self_test_progress)
    private val result: TextView = activity.view(R.id.self_test_result)

    fun render(state: UiState) {
        val selfTest = state.selfTest
        val running = selfTest as? SelfTest.Running
        run.isEnabled = state.model != null && running == null
        progress.shown = running != null
        if (running != null) {
            progress.isIndeterminate = running.of == 0
            progress.max = running.of
            progress.progress = running.done
        }
        result.show(activity.describe(selfTest))
        val look = look(selfTest)
        result.setBackgroundResource(look.background)
        result.setTextColor(activity.getColor(look.color))
    }

    private fun look(selfTest: SelfTest): Look = when (selfTest) {
        is SelfTest.Finished -> if (selfTest.passed) GOOD else BAD
        is SelfTest.Failed -> BAD
        else -> OPEN
    }
}

/** Resource ids of a background and its text color. */
private class Look(val background: Int, val color: Int)

private val GOOD = Look(R.drawable.badge, R.color.on_success_container)
private val BAD = Look(R.drawable.badge_error, R.color.on_error_container)
private val OPEN = Look(R.drawable.sunken, R.color.text_secondary)
