/*
 * Tests of accessibility: labels, touch targets, contrast and plain words; and of permissions.
 */
package org.bartexport.app

import android.app.Activity
import android.content.Context
import android.content.pm.PackageManager
import android.graphics.Color
import android.graphics.Insets
import android.view.View
import android.view.WindowInsets
import android.widget.EditText
import android.widget.SeekBar
import android.widget.TextView
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull
import kotlin.test.assertTrue
import org.junit.runner.RunWith
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config

@RunWith(AppRunner::class)
@Config(sdk = [35], qualifiers = PHONE)
class AccessibilityTest {
    @Test
    fun `what can be tapped has a name and room for a finger`() {
        val main = Person.opens<MainActivity>()
        main.waitForModel()
        main.type(HEADLINES.first().text)
        main.summarize()
        main.tap(R.id.show_details)
        val settings = Person.opens<SettingsActivity>()
        settings.waitFor("the model") { settings.see<View>(R.id.self_test).isEnabled }
        settings.tap(R.id.show_details)
        assertEquals(emptyList(), complaints(main) + complaints(settings))
        main.leave()
        settings.leave()
    }

    @Test
    fun `words of the trade are in the details alone`() {
        val main = Person.opens<MainActivity>()
        main.waitForModel()
        val settings = Person.opens<SettingsActivity>()
        settings.waitFor("the model") { settings.see<View>(R.id.self_test).isEnabled }
        settings.tests()
        for (text in listOf(1, 4).map { HEADLINES.first().text.repeat(it) }) {
            main.type(text)
            main.waitForLength()
            main.summarize()
            assertEquals(emptyList(), jargon(main) + jargon(settings))
        }
        // Confirms that the pattern matches: the details do use technical terms.
        for (person in listOf(main, settings)) {
            person.tap(R.id.show_details)
            assertTrue(jargon(person).isNotEmpty())
            person.leave()
        }
    }

    @Test
    fun `words can be read on what they lie on, by day and by night`() {
        for (qualifiers in listOf("notnight", "night")) {
            RuntimeEnvironment.setQualifiers("+$qualifiers")
            val context = RuntimeEnvironment.getApplication()
            for ((words, ground) in WORDS_ON) {
                val contrast = contrast(context.getColor(words), context.getColor(ground))
                val names = listOf(words, ground).map(context.resources::getResourceEntryName)
                assertTrue(contrast >= READABLE, "$names, $qualifiers: $contrast")
            }
        }
    }

    @Test
    fun `only the status speaks by itself, not the text that grows`() {
        val person = Person.opens<MainActivity>()
        val live = person.allViews().filter {
            it.accessibilityLiveRegion != View.ACCESSIBILITY_LIVE_REGION_NONE
        }
        assertTrue(person.see<View>(R.id.status) in live)
        assertTrue(person.see<View>(R.id.output) !in live)
        person.leave()
    }

    @Test
    fun `nothing lies below the system's bars and the keyboard`() {
        val person = Person.opens<MainActivity>()
        val insets = WindowInsets.Builder()
            .setInsets(WindowInsets.Type.systemBars(), Insets.of(0, 50, 0, 30))
            .setInsets(WindowInsets.Type.ime(), Insets.of(0, 0, 0, 600))
            .build()
        val screen = person.see<View>(R.id.screen)
        screen.dispatchApplyWindowInsets(insets)
        assertEquals(50 to 600, screen.paddingTop to screen.paddingBottom)
        person.leave()
    }

    @Test
    fun `the app has no permission`() {
        val context: Context = RuntimeEnvironment.getApplication()
        val info = context.packageManager
            .getPackageInfo(context.packageName, PackageManager.GET_PERMISSIONS)
        assertNull(info.requestedPermissions?.toList())
        assertNull(info.permissions?.toList())
    }
}

private fun complaints(person: Person<out Activity>): List<String> {
    val views = person.allViews()
    val labelled = views.map { it.labelFor }.toSet()
    val density = person.activity.resources.displayMetrics.density
    val tapped = views.filter { (it.isClickable || it is SeekBar) && it.id != R.id.output }
    check(tapped.size >= FEWEST) { "Only ${tapped.size} views can be tapped." }
    return tapped.flatMap { view ->
        val words = (view as? TextView)?.takeIf { it !is EditText }?.text
        val named = !words.isNullOrBlank() ||
            !view.contentDescription.isNullOrBlank() ||
            view.id in labelled
        val large = minOf(view.width, view.height) >= FINGER * density
        listOfNotNull(
            "${nameOf(view)} has no name".takeUnless { named },
            "${nameOf(view)} is ${view.width} by ${view.height}".takeUnless { large },
        )
    }
}

/** Returns the app's own texts that contain technical terms. */
private fun jargon(person: Person<out Activity>): List<String> = person.allViews()
    .filter { it.id !in listOf(R.id.text, R.id.output, R.id.status) }
    .flatMap { listOf(it.contentDescription, (it as? TextView)?.text) }
    .mapNotNull { it?.toString() }
    .filter { JARGON.containsMatchIn(it) }

/** Returns the contrast of two colors as defined by WCAG 2, from 1 to 21. */
private fun contrast(one: Int, other: Int): Double {
    val lights = listOf(one, other).map { Color.luminance(it) + GLARE }.sorted()
    return lights.last().toDouble() / lights.first()
}

private val WORDS_ON = listOf(
    R.color.text_primary to R.color.surface,
    R.color.text_primary to R.color.background,
    R.color.text_secondary to R.color.surface,
    R.color.text_secondary to R.color.background,
    R.color.text_secondary to R.color.surface_sunken,
    R.color.primary to R.color.surface,
    R.color.on_primary to R.color.primary,
    R.color.on_primary_container to R.color.primary_container,
    R.color.warning to R.color.surface,
    R.color.error to R.color.surface,
    R.color.text_primary to R.color.error_container,
    R.color.on_error_container to R.color.error_container,
    R.color.on_success_container to R.color.success_container,
)
private val JARGON = Regex("(?i)token|beam|greedy|thread|[CG]PU|tflite|bart|model")
private const val READABLE = 4.5
private const val GLARE = 0.05f
private const val FINGER = 48
private const val FEWEST = 4
