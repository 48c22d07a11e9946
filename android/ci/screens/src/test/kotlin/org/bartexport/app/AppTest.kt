/*
 * End-to-end tests of the app with the real activities, installer, engine and LiteRT runtime.
 * Summaries must equal Python's with the same file.
 */
package org.bartexport.app

import android.content.ClipData
import android.content.ClipboardManager
import android.content.ComponentName
import android.content.Intent
import android.os.Debug
import android.text.style.CharacterStyle
import android.view.View
import android.widget.EditText
import android.widget.TextView
import kotlin.math.ceil
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertNotEquals
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.Implementation
import org.robolectric.annotation.Implements
import org.robolectric.shadows.ShadowToast

@RunWith(AppRunner::class)
@Config(sdk = [35], qualifiers = PHONE)
class AppTest {
    private val person = Person.opens<MainActivity>()
    private val headlines = HEADLINES.first()
    private val clipboard
        get() = person.activity.getSystemService(ClipboardManager::class.java)!!

    @AfterTest
    fun leave() = person.leave()

    @Test
    fun `a text becomes Python's headline, fast and careful`() {
        person.waitForModel()
        assertFalse(person.see<View>(R.id.action).isEnabled, "There is nothing to summarize.")
        person.type(headlines.text)
        // The model's default is four beams.
        assertEquals(headlines.beams.trim(), person.summarize())
        set { choose(text(R.string.fast)) }
        assertEquals(headlines.greedy.trim(), person.summarize())
        person.tap(R.id.show_details)
        assertContains(person.read(R.id.model), "CPU")
        for (figure in listOf(R.id.first_token_value, R.id.speed_value, R.id.load_time_value)) {
            assertContains(person.read(figure), Regex("[0-9]"), nameOf(person.see(figure)))
        }
    }

    @Test
    fun `a summary is shown while it is written, and turning the phone loses nothing`() {
        val shown = mutableListOf<String>()
        writeLong {
            shown += person.read(R.id.output)
            person.turn(PHONE_TURNED)
            assertEquals(headlines.text, person.read(R.id.text))
        }
        person.waitFor("the end") {
            shown += person.read(R.id.output)
            person.read(R.id.status) == person.text(R.string.done)
        }
        assertTrue(shown.zipWithNext().all { (before, after) -> after.startsWith(before) })
        assertTrue(shown.last().length > shown.first().length, "${shown.distinct()}")
    }

    @Test
    fun `stop stops, and what was written stays`() {
        writeLong { person.tap(R.id.action) }
        person.waitFor("the stop") { person.read(R.id.status) == person.text(R.string.stopped) }
        val written = person.read(R.id.output)
        repeat(10) { person.pass() }
        assertEquals(written, person.read(R.id.output))
        assertEquals(person.text(R.string.summarize), person.read(R.id.action))
        assertTrue(written.isNotEmpty() && person.see<View>(R.id.copy).isShown)
    }

    @Test
    fun `a shared text is summarized, in a new window and in one that is open`() {
        val shares = listOf(
            Intent(Intent.ACTION_SEND).putExtra(Intent.EXTRA_TEXT, HEADLINES[1].text),
            Intent(Intent.ACTION_PROCESS_TEXT)
                .putExtra(Intent.EXTRA_PROCESS_TEXT, HEADLINES[2].text),
        )
        for ((intent, expected) in shares.zip(HEADLINES.drop(1))) {
            person.share(intent)
            assertEquals(expected.text, person.read(R.id.text))
            person.waitFor("its headline") {
                person.read(R.id.output) == expected.beams.trim() &&
                    person.read(R.id.status) == person.text(R.string.done)
            }
        }
        val another = Person.opens<MainActivity>(shares.first())
        assertEquals(HEADLINES[1].text, another.read(R.id.text))
        another.waitFor("its headline") { another.read(R.id.output) == HEADLINES[1].beams.trim() }
        another.leave()
    }

    @Test
    fun `a text's length is its share of what is read, and too long a one is said to be`() {
        person.waitForModel()
        person.type(headlines.text)
        val share = ceil(tokensOf(headlines.text) / 1.6).toInt()
        person.waitFor("the share") {
            person.read(R.id.token_count) == "$share% of what can be read"
        }
        val usual = person.see<TextView>(R.id.token_count).currentTextColor
        person.type(headlines.text.repeat(4))
        person.waitFor("the warning") {
            person.read(R.id.token_count) == "Too long: only the first part is read"
        }
        val warning = person.see<TextView>(R.id.token_count).currentTextColor
        assertNotEquals(usual, warning)
        assertTrue(person.summarize().isNotEmpty())
    }

    @Test
    fun `a text is cleared, its length too, and a window without one has none`() {
        person.waitForModel()
        assertFalse(person.see<View>(R.id.clear).isShown, "There is nothing to clear.")
        person.type(headlines.text)
        person.waitForLength()
        val another = Person.opens<MainActivity>()
        another.waitFor("no length") { another.read(R.id.token_count).isEmpty() }
        another.type(headlines.text)
        another.waitForLength()
        another.tap(R.id.clear)
        another.waitFor("no length") { another.read(R.id.token_count).isEmpty() }
        assertEquals("", another.read(R.id.text))
        assertFalse(another.see<View>(R.id.action).isEnabled, "There is nothing to summarize.")
        assertFalse(another.see<View>(R.id.clear).isShown, "There is nothing to clear.")
        another.leave()
    }

    @Test
    fun `what was copied elsewhere is pasted where the cursor is`() {
        person.tap(R.id.paste)
        assertEquals(person.text(R.string.nothing_to_paste), ShadowToast.getTextOfLatestToast())
        val clip = ClipData.newHtmlText("", "red, green", "<b>red</b>, green")
        clipboard.setPrimaryClip(clip)
        person.tap(R.id.paste)
        assertEquals("red, green", person.read(R.id.text))
        person.see<EditText>(R.id.text).setSelection(0, 3)
        person.tap(R.id.paste)
        assertEquals("red, green, green", person.read(R.id.text))
        val text = person.see<EditText>(R.id.text).text
        assertTrue(text.getSpans(0, text.length, CharacterStyle::class.java).isEmpty())
    }

    @Test
    fun `a summary is shared with other apps, not with this one`() {
        person.waitForModel()
        person.type(headlines.text)
        val summary = person.summarize()
        person.tap(R.id.share)
        val chooser = shadowOf(person.activity).nextStartedActivity
        assertEquals(Intent.ACTION_CHOOSER, chooser.action)
        val shared = chooser.getParcelableExtra(Intent.EXTRA_INTENT, Intent::class.java)
        assertEquals(Intent.ACTION_SEND to "text/plain", shared?.action to shared?.type)
        assertEquals(summary, shared?.getStringExtra(Intent.EXTRA_TEXT))
        val key = Intent.EXTRA_EXCLUDE_COMPONENTS
        val spared = chooser.getParcelableArrayExtra(key, ComponentName::class.java)
        assertEquals(listOf(person.activity.componentName), spared?.toList())
    }

    @Test
    fun `the details are closed at first, and stay open when the phone is turned`() {
        person.waitForModel()
        person.type(headlines.text)
        person.summarize()
        assertFalse(person.see<View>(R.id.details).isShown)
        person.tap(R.id.show_details)
        assertTrue(person.see<View>(R.id.details).isShown)
        person.turn(PHONE_TURNED)
        assertTrue(person.see<View>(R.id.details).isShown)
        person.tap(R.id.show_details)
        assertFalse(person.see<View>(R.id.details).isShown)
    }

    @Test
    @Config(shadows = [SomeMemory::class])
    fun `the process's memory is shown with the other figures`() {
        person.waitForModel()
        person.type(headlines.text)
        person.summarize()
        person.tap(R.id.show_details)
        person.waitFor("the memory") { person.read(R.id.memory_value) == "126 MB" }
    }

    @Test
    fun `a summary is copied`() {
        person.waitForModel()
        person.type(headlines.text)
        val summary = person.summarize()
        person.tap(R.id.copy)
        assertEquals(summary, clipboard.primaryClip?.getItemAt(0)?.text.toString())
    }

    @Test
    fun `the settings are opened from the main window`() {
        person.tap(R.id.settings)
        val next = shadowOf(person.activity).nextStartedActivity
        assertEquals(SettingsActivity::class.java.name, next.component?.className)
    }

    /** Starts a long summary, and calls [halfway] while the model is paused. */
    private fun writeLong(halfway: () -> Unit) {
        person.waitForModel()
        set {
            choose(text(R.string.fast))
            slide(R.id.maximum_length, 128)
            slide(R.id.minimum_length, 128)
        }
        person.type(headlines.text)
        PausedModel().use {
            person.tap(R.id.action)
            person.waitFor("some words") { person.read(R.id.output).isNotEmpty() }
            halfway()
        }
    }

    private fun set(choices: Person<SettingsActivity>.() -> Unit) {
        val settings = Person.opens<SettingsActivity>()
        settings.choices()
        settings.leave()
    }
}

/** Memory use in kilobytes, which Robolectric does not simulate. */
@Implements(Debug::class)
object SomeMemory {
    @Implementation
    @JvmStatic
    fun getPss(): Long = 123_456
}

/** A phone of typical size, in portrait and landscape. */
const val PHONE = "w411dp-h891dp-port-xhdpi"
const val PHONE_TURNED = "w891dp-h411dp-land-xhdpi"
