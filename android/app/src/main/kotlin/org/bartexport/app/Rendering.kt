/*
 * Renders states while an activity is visible, at a limited rate, and helpers for views.
 */
package org.bartexport.app

import android.app.Activity
import android.os.Build
import android.view.View
import android.view.WindowInsets
import android.widget.TextView
import android.widget.ToggleButton
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancelChildren
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.launch

/** Calls [render] on the main thread with the latest of [states], between [start] and [stop]. */
class Rendering(private val states: StateFlow<UiState>, private val render: (UiState) -> Unit) {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)

    /** Renders the current state, then later ones, skipping some if they change quickly. */
    fun start() {
        scope.launch {
            states.collect { state ->
                render(state)
                delay(FRAME_MILLISECONDS)
            }
        }
    }

    /** Stops rendering. */
    fun stop() = scope.coroutineContext.cancelChildren()
}

/**
 * Pads this view to keep its content clear of system bars, display cutouts and the keyboard.
 *
 * Android 15 and later draw windows edge to edge; before Android 11 there is nothing to do.
 */
fun View.avoidSystemBars() {
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.R) return
    setOnApplyWindowInsetsListener { view, insets ->
        val types = WindowInsets.Type.systemBars() or
            WindowInsets.Type.displayCutout() or
            WindowInsets.Type.ime()
        val clear = insets.getInsets(types)
        view.setPadding(clear.left, clear.top, clear.right, clear.bottom)
        WindowInsets.CONSUMED
    }
}

/** Returns the view with this [id] in the activity's layout. */
fun <T : View> Activity.view(id: Int): T = checkNotNull(findViewById(id)) {
    "The layout has no ${resources.getResourceEntryName(id)}."
}

/** Shows [text], or hides the view if it is null. An unchanged text is not set again. */
fun TextView.show(text: CharSequence?) {
    shown = text != null
    if (text != null && this.text.toString() != text.toString()) this.text = text
}

/** Makes this button show and hide [details]; the button saves its state. */
fun ToggleButton.discloses(details: View) = setOnCheckedChangeListener { _, checked ->
    details.shown = checked
}

/** Whether the view is visible; otherwise it takes no space. */
var View.shown: Boolean
    get() = visibility == View.VISIBLE
    set(value) {
        visibility = if (value) View.VISIBLE else View.GONE
    }

// About 30 times a second.
private const val FRAME_MILLISECONDS = 33L
