/*
 * Operates the app like a user, only through its visible views.
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
import com.google.ai.edge.litert.BeforeRun
import java.time.Duration
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeoutException
import java.util.concurrent.atomic.AtomicInteger
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController

/** A user of an activity. */
class Person<T : Activity> private constructor(private val controller: ActivityController<T>) {
    /** The current activity, which is recreated when the phone is turned. */
    val activity: T
        get() = controller.get()

    /** Returns the view with an id. */
    fun <V : View> see(id: Int): V = activity.view(id)

    /** Returns the text of a view, or "" if it is not shown. */
    fun read(id: Int): String = see<TextView>(id).let { if (it.isShown) it.text.toString() else "" }

    /** Types a text. */
    fun type(text: String) = see<EditText>(R.id.text).setText(text)

    /** Taps a view, which must be shown and enabled. */
    fun tap(id: Int) = tap(see<View>(id))

    /** Taps a view, which must be shown and enabled. */
    fun tap(view: View) {
        check(view.isShown && view.isEnabled) { "${nameOf(view)} cannot be tapped." }
        view.performClick()
        pass()
    }

    /** Taps the radio button labelled [words]. */
    fun choose(words: String) = tap(
        allViews().filterIsInstance<RadioButton>().single { it.text.toString() == words },
    )

    /** Drags a slider. */
    fun slide(id: Int, progress: Int) {
        val bar = see<SeekBar>(id)
        val listener = checkNotNull(listenerOf(bar))
        listener.onStartTrackingTouch(bar)
        bar.progress = progress
        listener.onStopTrackingTouch(bar)
        pass()
    }

    /** Taps Summarize and waits for the complete summary. */
    fun summarize(): String {
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

    /** Waits until the current text's length is shown. */
    fun waitForLength() {
        val count = TokenCount(tokensOf(see<EditText>(R.id.text).text.toString()), LIMIT)
        waitFor("the length") { read(R.id.token_count) == activity.describe(count) }
    }

    /** Waits until [holds] returns true, while the app runs. */
    fun waitFor(what: String, holds: () -> Boolean) {
        val end = System.nanoTime() + PATIENCE.toNanos()
        while (!holds()) {
            if (System.nanoTime() > end) {
                throw TimeoutException("Timed out waiting for $what:\n" + visible())
            }
            pass()
        }
    }

    /** Sleeps for [pause] and runs the main looper. */
    fun pass(pause: Duration = MOMENT) {
        Thread.sleep(pause.toMillis())
        shadowOf(Looper.getMainLooper()).idleFor(MOMENT)
    }

    /** Shares a text from another app while the activity is open. */
    fun share(intent: Intent) {
        controller.newIntent(intent)
        pass()
    }

    /** Changes the device's [qualifiers], such as its orientation; this recreates the activity. */
    fun turn(qualifiers: String) {
        RuntimeEnvironment.setQualifiers(qualifiers)
        val before = activity
        // The controller leaves the recreated activity invisible.
        controller.recreate().visible()
        pass()
        check(activity !== before) { "The activity was not recreated." }
    }

    /** Returns a string resource. */
    fun text(id: Int): String = activity.getString(id)

    /** Returns all visible views. */
    fun allViews(): List<View> = descendants(activity.window.decorView).filter { it.isShown }

    /** Leaves the app. */
    fun leave() {
        controller.pause().stop().destroy()
    }

    private fun visible() = allViews().filterIsInstance<TextView>()
        .joinToString("\n") { "  ${nameOf(it)}: ${it.text}" }

    companion object {
        /** Returns a user who opens an activity with this intent. */
        inline fun <reified T : Activity> opens(intent: Intent = Intent()): Person<T> =
            of(Robolectric.buildActivity(T::class.java, intent))

        /** Returns a user who opens the activity of a [controller]. */
        fun <T : Activity> of(controller: ActivityController<T>): Person<T> =
            Person(controller.setup()).apply { pass() }
    }
}

/** Pauses the model in the middle of its next generation, until it is closed. */
class PausedModel : AutoCloseable {
    private val left = AtomicInteger(RUNS)
    private val over = CountDownLatch(1)

    init {
        BeforeRun.hook = Runnable { if (left.decrementAndGet() < 0) over.await() }
    }

    override fun close() {
        BeforeRun.hook = null
        over.countDown()
    }
}

/** Returns the name of a view's id, or its class. */
fun nameOf(view: View): String = if (view.id > 0 && view.id ushr PACKAGE_SHIFT != 0) {
    view.resources.getResourceEntryName(view.id)
} else {
    view.javaClass.simpleName
}

private fun descendants(view: View): List<View> {
    if (view !is ViewGroup) return listOf(view)
    return listOf(view) + (0 until view.childCount).flatMap { descendants(view.getChildAt(it)) }
}

/** Returns a seek bar's listener, which has no getter. */
private fun listenerOf(bar: SeekBar): SeekBar.OnSeekBarChangeListener? {
    val field = SeekBar::class.java.getDeclaredField("mOnSeekBarChangeListener")
    field.isAccessible = true
    return field.get(bar) as SeekBar.OnSeekBarChangeListener?
}

// The maximum number of source tokens.
private const val LIMIT = 160
private const val PACKAGE_SHIFT = 24

// One to encode, the others for tokens.
private const val RUNS = 25
private val MOMENT = Duration.ofMillis(40)

// Long enough for a busy machine.
private val PATIENCE = Duration.ofMinutes(5)
