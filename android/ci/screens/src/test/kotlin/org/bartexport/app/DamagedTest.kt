/*
 * With a damaged bundle, the app names the file and can try again.
 */
package org.bartexport.app

import android.view.View
import java.io.File
import kotlin.test.Test
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import org.junit.runner.RunWith
import org.robolectric.annotation.Config

@RunWith(DamagedAppRunner::class)
@Config(sdk = [35], qualifiers = PHONE)
class DamagedTest {
    @Test
    fun `the file is named on request, and trying again tries again`() {
        val person = Person.opens<MainActivity>()
        person.waitFor("the error") { person.see<View>(R.id.try_again).isShown }
        assertFalse(person.see<View>(R.id.reason).isShown)
        person.tap(R.id.show_reason)
        assertContains(person.read(R.id.reason), MODEL)
        person.type(HEADLINES.first().text)
        assertFalse(person.see<View>(R.id.action).isEnabled, "There is no model.")

        // Repairs the model.
        val installed = File(person.activity.noBackupFilesDir, "bart")
        val directory = checkNotNull(installed.listFiles { it -> it.isDirectory }).single()
        val bundle = File(folder("bart_export.build"), "bart_mini_en")
        File(bundle, MODEL).copyTo(File(directory, MODEL))
        person.tap(R.id.try_again)
        person.waitFor("the model") { !person.see<View>(R.id.setup).isShown }
        assertEquals(HEADLINES.first().beams.trim(), person.summarize())
        person.leave()
    }
}

private const val MODEL = "tflite/dynamic_wi8_afp32.static.tflite"
