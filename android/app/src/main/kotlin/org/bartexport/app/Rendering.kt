/*
 * How a window shows states: while it can be seen, no more often than an eye follows.
 *
 * States come in, a window's own render function is called on the main thread. What a state means
 * is not known here.
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

/** Calls [render] with the latest of [states] between [start] and [stop], on the main thread. */
class Rendering(private val states: StateFlow<UiState>, private val render: (UiState) -> Unit) {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)

    /** Renders the state of now at once, then every one that follows, or the last of a few. */
    fun start() {
        scope.launch {
            states.collect { state ->
                render(state)
                delay(FRAME_MILLISECONDS)
            }
        }
    }

    /** Renders no more. */
    fun stop() = scope.coroutineContext.cancelChildren()
}

/**
 * Keeps this view's content clear of the system's bars, a display's cutout and the keyboard.
 *
 * Windows lie below those from Android 15 on. On earlier ones nothing is left to keep clear of.
 */
fun View.stayClearOfSystemBars() {
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

/** Returns the view with an [id] of this window's layout, which has it. */
fun <T : View> Activity.view(id: Int): T = checkNotNull(findViewById(id)) {
    "The layout has no ${resources.getResourceEntryName(id)}."
}

/** Shows [text], or nothing at all for null. A text that is there already is left alone. */
fun TextView.show(text: CharSequence?) {
    shown = text != null
    if (text != null && this.text.toString() != text.toString()) this.text = text
}

/** Has this button show and hide [details]; it remembers itself which of both. */
fun ToggleButton.discloses(details: View) = setOnCheckedChangeListener { _, checked ->
    details.shown = checked
}

/** Whether a view is there; one that is not takes no space. */
var View.shown: Boolean
    get() = visibility == View.VISIBLE
    set(value) {
        visibility = if (value) View.VISIBLE else View.GONE
    }

// About 30 times a second.
private const val FRAME_MILLISECONDS = 33L
