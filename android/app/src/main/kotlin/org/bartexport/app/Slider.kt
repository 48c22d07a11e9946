/*
 * A seek bar with a label for its value, which reports a change when the user releases it.
 */
package org.bartexport.app

import android.app.Activity
import android.os.Build
import android.widget.SeekBar
import android.widget.TextView

/** A seek bar and the label of its value, by their ids in an [activity]'s layout. */
class Slider(activity: Activity, seekBar: Int, value: Int) {
    /** The seek bar. */
    val seekBar: SeekBar = activity.view(seekBar)
    private val value: TextView = activity.view(value)
    private var words: (Int) -> String = Int::toString
    private var dragged = false

    init {
        // The position comes from the state, not from a saved instance.
        this.seekBar.isSaveEnabled = false
    }

    /** Calls [changed] with the value that the user chooses. */
    fun onChange(changed: (Int) -> Unit) = seekBar.setOnSeekBarChangeListener(
        object : SeekBar.OnSeekBarChangeListener {
            override fun onStartTrackingTouch(bar: SeekBar) {
                dragged = true
            }

            override fun onProgressChanged(bar: SeekBar, progress: Int, fromUser: Boolean) {
                showValue(progress)
                // Keys and screen readers change the value without tracking.
                if (fromUser && !dragged) changed(progress)
            }

            override fun onStopTrackingTouch(bar: SeekBar) {
                dragged = false
                changed(bar.progress)
            }
        },
    )

    /** Shows a [number] of a [range], labelled by [words], unless the user is dragging it. */
    fun render(range: IntRange, number: Int, words: (Int) -> String) {
        this.words = words
        if (dragged) return
        seekBar.min = range.first
        seekBar.max = range.last
        seekBar.progress = number
        showValue(number)
    }

    private fun showValue(number: Int) {
        val words = words(number)
        value.show(words)
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) seekBar.stateDescription = words
    }
}
