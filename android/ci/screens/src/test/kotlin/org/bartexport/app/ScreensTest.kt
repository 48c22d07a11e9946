/*
 * Draws the activities with Android's graphics to PNG files in target/screens/, for review.
 *
 * The tests check that no text is cut off and no picture is empty.
 */
package org.bartexport.app

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.Canvas
import android.view.View
import android.widget.EditText
import android.widget.TextView
import java.io.File
import java.io.FilterInputStream
import java.io.InputStream
import java.time.Duration
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.bartexport.litert.BundleSource
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
        val person = Person.opens<MainActivity>()
        person.waitForModel()
        person.drawInLightAndDark("ready")
        person.summarizes(example.text)
        person.drawInLightAndDark("done")
        person.tap(R.id.show_details)
        person.drawInLightAndDark("details")
        person.leave()
    }

    @Test
    @Config(application = SlowStart::class)
    fun `the first start, halfway`() {
        val person = Person.opens<MainActivity>()
        val app = person.activity.application as SlowStart
        person.waitFor("half of it") { "MB of " in person.read(R.id.setup_detail) }
        person.drawInLightAndDark("first-start")
        app.goOn()
        person.waitForModel()
        person.leave()
    }

    @Test
    fun `a summary being written`() {
        val settings = Person.opens<SettingsActivity>()
        settings.waitFor("the model") { settings.see<View>(R.id.self_test).isEnabled }
        settings.choose(settings.text(R.string.fast))
        settings.slide(R.id.maximum_length, LONG)
        settings.slide(R.id.minimum_length, LONG)
        settings.leave()
        for ((name, qualifiers) in LIGHT_AND_DARK) {
            RuntimeEnvironment.setQualifiers(qualifiers)
            val person = Person.opens<MainActivity>()
            person.type(example.text)
            person.waitForLength()
            PausedModel().use {
                person.tap(R.id.action)
                person.waitFor("some words") { person.read(R.id.output).length > SOME }
                person.draw("writing-$name")
                person.tap(R.id.action)
            }
            person.waitFor("the stop") { !person.see<View>(R.id.action).isActivated }
            person.leave()
        }
    }

    @Test
    fun `a text that is too long`() {
        val person = Person.opens<MainActivity>()
        person.waitForModel()
        person.summarizes(HEADLINES[LONG_EXAMPLE].text)
        assertEquals(person.text(R.string.too_long), person.read(R.id.token_count))
        person.drawInLightAndDark("too-long")
        person.leave()
    }

    @Test
    fun `the phone turned, and large letters`() {
        RuntimeEnvironment.setQualifiers(PHONE_TURNED)
        val turned = Person.opens<MainActivity>()
        turned.waitForModel()
        turned.summarizes(example.text)
        turned.draw("done-landscape")
        turned.leave()
        RuntimeEnvironment.setQualifiers(PHONE)
        RuntimeEnvironment.setFontScale(LARGE)
        val large = Person.opens<MainActivity>()
        large.waitForModel()
        large.summarizes(example.text.repeat(3))
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
            person.summarizes(example.text)
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
            person.tests()
            person.draw("settings-$name")
            person.tap(R.id.show_details)
            person.draw("settings-details-$name")
            person.leave()
        }
    }
}

/** Draws the error of a damaged bundle. */
@RunWith(DamagedAppRunner::class)
@Config(sdk = [35], qualifiers = PHONE)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class DamagedScreensTest {
    @Test
    fun `a model that cannot be had`() {
        val person = Person.opens<MainActivity>()
        person.waitFor("the error") { person.see<View>(R.id.try_again).isShown }
        person.drawInLightAndDark("error")
        person.tap(R.id.show_reason)
        person.drawInLightAndDark("error-details")
        person.leave()
    }
}

private fun Person<MainActivity>.summarizes(text: String) {
    type(text)
    waitForLength()
    summarize()
}

private fun Person<MainActivity>.drawInLightAndDark(name: String) {
    for ((look, qualifiers) in LIGHT_AND_DARK) {
        turn(qualifiers)
        draw("$name-$look")
    }
}

/** Draws the activity to target/screens/ and checks that no text is cut off. */
private fun Person<out Activity>.draw(name: String) {
    // Cursors and scroll bars are animated.
    allViews().filterIsInstance<EditText>().forEach { it.isCursorVisible = false }
    allViews().forEach { it.isVerticalScrollBarEnabled = false }
    pass(Duration.ZERO)
    val window = activity.window.decorView
    val cut = allViews().filterIsInstance<TextView>().filter { it !is EditText && it.cutsOff() }
    assertEquals(emptyList(), cut.map { "${nameOf(it)}: ${it.text}" }, "Cut off in $name")
    val bitmap = Bitmap.createBitmap(window.width, window.height, Bitmap.Config.ARGB_8888)
    window.draw(Canvas(bitmap))
    val colors = IntArray(window.width * window.height)
    bitmap.getPixels(colors, 0, window.width, 0, 0, window.width, window.height)
    assertTrue(colors.distinct().size > COLORS, "$name is empty.")
    val file = File(File(folder("screens.output"), "screens").apply { mkdirs() }, "$name.png")
    file.outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
}

private fun TextView.cutsOff(): Boolean {
    val lines = layout ?: return false
    val wider = (0 until lines.lineCount).any { lines.getLineMax(it) > lines.width + 1 }
    val room = height - compoundPaddingTop - compoundPaddingBottom
    return wider || lines.height > room
}

/** The app with a model whose second half is read slowly until [goOn]. */
class SlowStart : BartApplication() {
    private val rest = CountDownLatch(1)

    override val bundle: BundleSource
        get() = Halved(super.bundle, rest)

    /** Reads the rest of the model without delay. */
    fun goOn() = rest.countDown()
}

private class Halved(private val source: BundleSource, private val rest: CountDownLatch) :
    BundleSource {
    override fun open(name: String): InputStream = Dripping(source.open(name), rest)
}

private class Dripping(whole: InputStream, private val rest: CountDownLatch) :
    FilterInputStream(whole) {
    private var position = 0

    override fun read(bytes: ByteArray, offset: Int, length: Int): Int {
        val drips = position > HALF && !rest.await(DRIP_MILLISECONDS, TimeUnit.MILLISECONDS)
        val count = super.read(bytes, offset, if (drips) minOf(length, DRIP) else length)
        position += count
        return count
    }
}

private val LIGHT_AND_DARK = mapOf("light" to PHONE, "dark" to PHONE_DARK)
private const val PHONE_DARK = "w411dp-h891dp-port-night-xhdpi"
private const val TALL = "w411dp-h1060dp-port-xhdpi"
private const val TALL_DARK = "w411dp-h1060dp-port-night-xhdpi"
private const val TABLET = "w800dp-h1280dp-port-mdpi"
private const val TABLET_TURNED = "w1280dp-h800dp-land-mdpi"
private const val LARGE = 1.8f
private const val EXAMPLE = 55
private const val LONG_EXAMPLE = 3
private const val LONG = 128
private const val SOME = 15
private const val HALF = 5_000_000
private const val DRIP = 16
private const val DRIP_MILLISECONDS = 10L
private const val COLORS = 5
