/*
 * Tests of the settings activity: settings are saved and take effect, and the self-test runs.
 */
package org.bartexport.app

import android.view.View
import android.widget.RadioButton
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config

@RunWith(AppRunner::class)
@Config(sdk = [35], qualifiers = PHONE)
class SettingsTest {
    private val person = Person.opens<SettingsActivity>().apply {
        waitFor("the model") { see<View>(R.id.self_test).isEnabled }
        tap(R.id.show_details)
    }

    @AfterTest
    fun leave() = person.leave()

    @Test
    fun `there are the beams that the model's file has, and its own settings are chosen`() {
        val choices = person.allViews().filterIsInstance<RadioButton>().associate {
            it.text.toString() to it.isChecked
        }
        assertEquals(
            mapOf("Fast" to false, "Careful" to true, "CPU" to true, "GPU" to false),
            choices,
        )
        assertEquals("about 23 words", person.read(R.id.maximum_length_value))
        assertEquals("any length", person.read(R.id.minimum_length_value))
    }

    @Test
    fun `settings are there again when the app is started again`() {
        person.choose("Fast")
        person.slide(R.id.maximum_length, 20)
        person.slide(R.id.minimum_length, 9)
        person.slide(R.id.threads, 1)
        val kept = SettingsStore(RuntimeEnvironment.getApplication()).read()
        assertEquals(Settings(numBeams = 1, maxLength = 20, minLength = 9, numThreads = 1), kept)
        person.turn(PHONE_TURNED)
        assertEquals("about 14 words", person.read(R.id.maximum_length_value))
        assertEquals("about 5 words", person.read(R.id.minimum_length_value))
    }

    @Test
    fun `each of several numbers of beams has a name of its own`() {
        val names = listOf(1, 2, 4).map { person.activity.beams(it, listOf(1, 2, 4)) }
        assertEquals(listOf("Fast", "Careful (2)", "Careful (4)"), names)
    }

    @Test
    fun `a shorter maximum takes the minimum along`() {
        person.slide(R.id.minimum_length, 30)
        person.slide(R.id.maximum_length, 12)
        assertEquals("about 8 words", person.read(R.id.minimum_length_value))
    }

    @Test
    fun `where there is no GPU the reason is shown and the CPU computes`() {
        person.choose("GPU")
        person.waitFor("the reason") { person.read(R.id.fallback).isNotEmpty() }
        assertContains(person.read(R.id.fallback), "The GPU is not used: ")
        val main = Person.opens<MainActivity>()
        main.waitForModel()
        main.type(HEADLINES.first().text)
        assertEquals(HEADLINES.first().beams.trim(), main.summarize())
        main.tap(R.id.show_details)
        assertContains(main.read(R.id.model), "CPU")
        assertContains(main.read(R.id.fallback), "The GPU is not used: ")
        main.leave()
    }

    @Test
    fun `the self-test passes on the file's own golden answers`() {
        person.tests()
        assertTrue(person.see<View>(R.id.self_test).isEnabled)
    }
}
