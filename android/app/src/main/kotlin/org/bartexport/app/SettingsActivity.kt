/*
 * The settings activity, with the model's details and self-test.
 */
package org.bartexport.app

import android.app.Activity
import android.os.Bundle

/** Shows and changes the settings. */
class SettingsActivity : Activity() {
    private val summarizer by lazy { (application as BartApplication).summarizer }
    private val views by lazy { SettingsViews(this, summarizer) }
    private val rendering by lazy { Rendering(summarizer.state, views::render) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.settings)
        views.connect(back = ::finish)
    }

    override fun onStart() {
        super.onStart()
        rendering.start()
    }

    override fun onStop() {
        rendering.stop()
        super.onStop()
    }
}
