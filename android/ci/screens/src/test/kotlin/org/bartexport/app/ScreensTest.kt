/*
 * The windows, drawn to PNG by Android's own graphics into target/screens/, for people to look at.
 *
 * What a picture shows is checked as far as a program can: nothing is cut off, and it is not empty.
 */
package org.bartexport.app

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.Canvas
import android.view.View
import android.widget.EditText
import android.widget.TextView
import java.io.File
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

@RunWith(AppRunner::class)
@Config(sdk = [35], qualifiers = PHONE)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class ScreensTest {
    private val example = HEADLINES[EXAMPLE]

    @Test
    fun `an empty window and one with a summary, in daylight and in the dark`() {
        for ((name, qualifiers) in mapOf("light" to PHONE, "dark" to PHONE_DARK)) {
            RuntimeEnvironment.setQualifiers(qualifiers)
            val person = Person.opens<MainActivity>()
            person.waitForModel()
            person.draw("ready-$name")
            person.summarises(example.text)
            person.draw("done-$name")
            person.leave()
        }
    }

    @Test
    fun `a summary being written`() {
        val person = Person.opens<MainActivity>()
        person.waitForModel()
        val settings = Person.opens<SettingsActivity>()
        settings.choose(settings.text(R.string.greedy))
        settings.slide(R.id.maximum_length, LONG)
        settings.slide(R.id.minimum_length, LONG)
        settings.leave()
        person.type(example.text)
        person.waitForCount()
        person.tap(R.id.action)
        person.waitFor("some words") { person.read(R.id.output).length > SOME }
        person.draw("writing")
        person.leave()
    }

    @Test
    fun `the phone turned, and large letters`() {
        RuntimeEnvironment.setQualifiers(PHONE_TURNED)
        val turned = Person.opens<MainActivity>()
        turned.waitForModel()
        turned.summarises(example.text)
        turned.draw("done-landscape")
        turned.leave()
        RuntimeEnvironment.setQualifiers(PHONE)
        RuntimeEnvironment.setFontScale(LARGE)
        val large = Person.opens<MainActivity>()
        large.waitForModel()
        large.summarises(example.text.repeat(3))
        large.draw("done-large-letters")
        val settings = Person.opens<SettingsActivity>()
        settings.draw("settings-large-letters")
        settings.leave()
        large.leave()
    }

    @Test
    fun `a tablet, upright and turned`() {
        for ((name, qualifiers) in mapOf("tablet" to TABLET, "tablet-landscape" to TABLET_TURNED)) {
            RuntimeEnvironment.setQualifiers(qualifiers)
            val person = Person.opens<MainActivity>()
            person.waitForModel()
            person.summarises(example.text)
            person.draw("done-$name")
            person.leave()
        }
    }

    @Test
    fun `the settings, with the self-test`() {
        for ((name, qualifiers) in mapOf("light" to TALL, "dark" to TALL_DARK)) {
            RuntimeEnvironment.setQualifiers(qualifiers)
            val person = Person.opens<SettingsActivity>()
            person.waitFor("the model") { person.see<View>(R.id.self_test).isEnabled }
            person.tap(R.id.self_test)
            person.waitFor("the self-test") { person.see<View>(R.id.self_test).isEnabled }
            person.draw("settings-$name")
            person.leave()
        }
    }
}

/** The window of a damaged bundle, drawn. */
@RunWith(DamagedAppRunner::class)
@Config(sdk = [35], qualifiers = PHONE)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class DamagedScreensTest {
    @Test
    fun `a model that cannot be had`() {
        for ((name, qualifiers) in mapOf("light" to PHONE, "dark" to PHONE_DARK)) {
            RuntimeEnvironment.setQualifiers(qualifiers)
            val person = Person.opens<MainActivity>()
            person.waitFor("the error") { person.see<View>(R.id.try_again).isShown }
            person.draw("error-$name")
            person.leave()
        }
    }
}

private fun Person<MainActivity>.summarises(text: String) {
    type(text)
    waitForCount()
    summarise()
}

/** Waits until the tokens are counted: there are more than those of start and end. */
private fun Person<MainActivity>.waitForCount() =
    waitFor("the count") { !read(R.id.token_count).startsWith("2 ") }

/** Draws the window into target/screens/, and checks that no words are cut off. */
private fun Person<out Activity>.draw(name: String) {
    // The cursor blinks and scroll bars fade: pictures are of a window at rest.
    allViews().filterIsInstance<EditText>().forEach { it.isCursorVisible = false }
    allViews().forEach { it.isVerticalScrollBarEnabled = false }
    pass()
    val window = activity.window.decorView
    val cut = allViews().filterIsInstance<TextView>().filter { it !is EditText && it.cutsOff() }
    assertEquals(emptyList(), cut.map { "${nameOf(it)}: ${it.text}" }, "Cut off in $name")
    val bitmap = Bitmap.createBitmap(window.width, window.height, Bitmap.Config.ARGB_8888)
    window.draw(Canvas(bitmap))
    val colours = IntArray(window.width * window.height)
    bitmap.getPixels(colours, 0, window.width, 0, 0, window.width, window.height)
    assertTrue(colours.distinct().size > COLOURS, "$name is empty.")
    val file = File(File(folder("screens.output"), "screens").apply { mkdirs() }, "$name.png")
    file.outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
}

private fun TextView.cutsOff(): Boolean {
    val lines = layout ?: return false
    val wider = (0 until lines.lineCount).any { lines.getLineMax(it) > lines.width + 1 }
    val room = height - compoundPaddingTop - compoundPaddingBottom
    return wider || lines.height > room
}

private const val PHONE_DARK = "w411dp-h891dp-port-night-xhdpi"
private const val TALL = "w411dp-h1060dp-port-xhdpi"
private const val TALL_DARK = "w411dp-h1060dp-port-night-xhdpi"
private const val TABLET = "w800dp-h1280dp-port-mdpi"
private const val TABLET_TURNED = "w1280dp-h800dp-land-mdpi"
private const val LARGE = 1.8f
private const val EXAMPLE = 55
private const val LONG = 128
private const val SOME = 40
private const val COLOURS = 5
