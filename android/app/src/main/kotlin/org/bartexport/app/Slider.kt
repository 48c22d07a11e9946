/*
 * A seek bar with its value in words beside it.
 *
 * A range and a value go in; a value comes out once the person lets go, so that nothing is opened
 * anew for every step on the way.
 */
package org.bartexport.app

import android.app.Activity
import android.os.Build
import android.widget.SeekBar
import android.widget.TextView

/** The seek bar and the text of its value, by their ids in the layout of an [activity]. */
class Slider(activity: Activity, seekBar: Int, value: Int) {
    /** What is dragged. */
    val seekBar: SeekBar = activity.view(seekBar)
    private val value: TextView = activity.view(value)
    private var words: (Int) -> String = Int::toString
    private var dragged = false

    init {
        // The state says where it is; a saved position may be another one.
        this.seekBar.isSaveEnabled = false
    }

    /** Calls [changed] with what a person has chosen. */
    fun onChange(changed: (Int) -> Unit) = seekBar.setOnSeekBarChangeListener(
        object : SeekBar.OnSeekBarChangeListener {
            override fun onStartTrackingTouch(bar: SeekBar) {
                dragged = true
            }

            override fun onProgressChanged(bar: SeekBar, progress: Int, fromUser: Boolean) {
                say(progress)
                // Keys and screen readers step without tracking.
                if (fromUser && !dragged) changed(progress)
            }

            override fun onStopTrackingTouch(bar: SeekBar) {
                dragged = false
                changed(bar.progress)
            }
        },
    )

    /** Shows a [number] of a [range], in [words], unless it is just being dragged. */
    fun render(range: IntRange, number: Int, words: (Int) -> String) {
        this.words = words
        if (dragged) return
        seekBar.min = range.first
        seekBar.max = range.last
        seekBar.progress = number
        say(number)
    }

    private fun say(number: Int) {
        val words = words(number)
        value.show(words)
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) seekBar.stateDescription = words
    }
}
