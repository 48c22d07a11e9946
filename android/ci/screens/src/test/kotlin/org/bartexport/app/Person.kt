/*
 * A person with the app in hand: finds what can be seen, types, taps, waits, turns the phone.
 *
 * Only views are used, as they are shown; no state of the app is looked into.
 */
package org.bartexport.app

import android.app.Activity
import android.content.Intent
import android.os.Looper
import android.view.View
import android.view.ViewGroup
import android.widget.EditText
import android.widget.RadioButton
import android.widget.SeekBar
import android.widget.TextView
import java.time.Duration
import java.util.concurrent.TimeoutException
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController

/** Somebody who uses a window of the app. */
class Person<T : Activity> private constructor(private val controller: ActivityController<T>) {
    /** The window as it is now: another one after the phone was turned. */
    val activity: T
        get() = controller.get()

    /** The view with an id. */
    fun <V : View> see(id: Int): V = activity.view(id)

    /** What a view says; "" where it is not shown. */
    fun read(id: Int): String = see<TextView>(id).let { if (it.isShown) it.text.toString() else "" }

    /** Types a text. */
    fun type(text: String) = see<EditText>(R.id.text).setText(text)

    /** Taps a view, which must be there to be tapped. */
    fun tap(id: Int) = tap(see<View>(id))

    /** Taps a view, which must be there to be tapped. */
    fun tap(view: View) {
        check(view.isShown && view.isEnabled) { "${nameOf(view)} cannot be tapped." }
        view.performClick()
        pass()
    }

    /** Taps the choice that says [words]. */
    fun choose(words: String) = tap(
        allViews().filterIsInstance<RadioButton>().single { it.text.toString() == words },
    )

    /** Moves a slider as a key or a screen reader does. */
    fun slide(id: Int, progress: Int) {
        val bar = see<SeekBar>(id)
        // What a finger does: begin, move, let go.
        val listener = checkNotNull(listenerOf(bar))
        listener.onStartTrackingTouch(bar)
        bar.progress = progress
        listener.onStopTrackingTouch(bar)
        pass()
    }

    /** Taps Summarise and waits for the whole summary. */
    fun summarise(): String {
        tap(R.id.action)
        waitFor("a summary") { read(R.id.status) == text(R.string.done) }
        return read(R.id.output)
    }

    /** Runs the self-test and waits until it has passed. */
    fun tests() {
        tap(R.id.self_test)
        waitFor("the verdict") { read(R.id.self_test_result).startsWith("Passed") }
    }

    /** Waits until the model is ready. */
    fun waitForModel() = waitFor("the model") {
        check(!see<View>(R.id.try_again).isShown) { see<TextView>(R.id.reason).text }
        !see<View>(R.id.setup).isShown
    }

    /** Waits until the length of the text that is there is shown. */
    fun waitForLength() {
        val count = TokenCount(tokensOf(see<EditText>(R.id.text).text.toString()), LIMIT)
        waitFor("the length") { read(R.id.token_count) == activity.describe(count) }
    }

    /** Waits until something holds, and looks after every [pause]; the app goes on meanwhile. */
    fun waitFor(what: String, pause: Duration = MOMENT, holds: () -> Boolean) {
        val end = System.nanoTime() + PATIENCE.toNanos()
        while (!holds()) {
            if (System.nanoTime() > end) {
                throw TimeoutException("Waited for $what for $PATIENCE, in vain:\n" + visible())
            }
            pass(pause)
        }
    }

    /** Lets a moment pass, of [pause]; the window's own clock moves on enough to show all. */
    fun pass(pause: Duration = MOMENT) {
        Thread.sleep(pause.toMillis())
        shadowOf(Looper.getMainLooper()).idleFor(MOMENT)
    }

    /** Shares a text from another app while the window is open. */
    fun share(intent: Intent) {
        controller.newIntent(intent)
        pass()
    }

    /** Turns the phone, or changes another of its [qualifiers]; the window is made anew. */
    fun turn(qualifiers: String) {
        RuntimeEnvironment.setQualifiers(qualifiers)
        val before = activity
        // The controller makes the window anew, but leaves it invisible.
        controller.recreate().visible()
        pass()
        check(activity !== before) { "The window was not made anew." }
    }

    /** A text of the app in the person's language. */
    fun text(id: Int): String = activity.getString(id)

    /** All views of the window that are shown. */
    fun allViews(): List<View> = descendants(activity.window.decorView).filter { it.isShown }

    /** Leaves the app. */
    fun leave() {
        controller.pause().stop().destroy()
    }

    private fun visible() = allViews().filterIsInstance<TextView>()
        .joinToString("\n") { "  ${nameOf(it)}: ${it.text}" }

    companion object {
        /** Somebody who opens a window, with what the launcher or another app sends. */
        inline fun <reified T : Activity> opens(intent: Intent = Intent()): Person<T> =
            of(Robolectric.buildActivity(T::class.java, intent))

        /** Somebody who opens the window of a [controller]. */
        fun <T : Activity> of(controller: ActivityController<T>): Person<T> =
            Person(controller.setup()).apply { pass() }
    }
}

/** What a view is called in its layout. */
fun nameOf(view: View): String = if (view.id > 0 && view.id ushr PACKAGE_SHIFT != 0) {
    view.resources.getResourceEntryName(view.id)
} else {
    view.javaClass.simpleName
}

private fun descendants(view: View): List<View> {
    if (view !is ViewGroup) return listOf(view)
    return listOf(view) + (0 until view.childCount).flatMap { descendants(view.getChildAt(it)) }
}

/** A seek bar tells only its listener when it is let go, and does not give it away. */
private fun listenerOf(bar: SeekBar): SeekBar.OnSeekBarChangeListener? {
    val field = SeekBar::class.java.getDeclaredField("mOnSeekBarChangeListener")
    field.isAccessible = true
    return field.get(bar) as SeekBar.OnSeekBarChangeListener?
}

// The most tokens that the model reads.
private const val LIMIT = 160
private const val PACKAGE_SHIFT = 24
private val MOMENT = Duration.ofMillis(40)
private val PATIENCE = Duration.ofSeconds(20)
