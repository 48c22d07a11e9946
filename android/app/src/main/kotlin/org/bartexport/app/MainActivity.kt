/*
 * The main activity: a text and its summary.
 *
 * It renders the summarizer's state and keeps only the text, which its view saves.
 */
package org.bartexport.app

import android.app.Activity
import android.content.ClipData
import android.content.ClipboardManager
import android.content.Intent
import android.os.Build
import android.os.Bundle
import android.widget.Toast

/** The activity of the launcher, which also receives texts shared by other apps. */
class MainActivity : Activity() {
    private val summarizer by lazy { (application as BartApplication).summarizer }
    private val views by lazy { MainViews(this, summarizer) }
    private val rendering by lazy { Rendering(summarizer.state, views::render) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        views.connect(
            mapOf(
                R.id.settings to { startActivity(Intent(this, SettingsActivity::class.java)) },
                R.id.paste to ::paste,
                R.id.copy to ::copy,
                R.id.share to ::share,
            ),
        )
        // A recreated activity restores its own text, which may have been edited.
        if (savedInstanceState == null) take(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        take(intent)
    }

    override fun onStart() {
        super.onStart()
        rendering.start()
    }

    override fun onStop() {
        rendering.stop()
        super.onStop()
    }

    /** Takes a text shared by another app and summarizes it as soon as the model is ready. */
    private fun take(intent: Intent) {
        val name = SHARED_TEXTS[intent.action] ?: return
        val fromHistory = intent.flags and Intent.FLAG_ACTIVITY_LAUNCHED_FROM_HISTORY != 0
        val text = intent.getCharSequenceExtra(name)?.toString()
        if (fromHistory || text.isNullOrBlank()) return
        views.write(text)
        summarizer.summarize(text)
    }

    private fun paste() {
        val clip = getSystemService(ClipboardManager::class.java)?.primaryClip
        val words = clip?.takeIf { it.itemCount > 0 }?.getItemAt(0)?.text
        if (words.isNullOrBlank()) say(R.string.nothing_to_paste) else views.insert(words)
    }

    private fun copy() {
        val clip = ClipData.newPlainText(getString(R.string.summary), views.summary)
        val clipboard = getSystemService(ClipboardManager::class.java) ?: return
        clipboard.setPrimaryClip(clip)
        // Android 13 and later show copied text themselves.
        if (Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU) say(R.string.copied)
    }

    /** Shares the summary with other apps, excluding this one. */
    private fun share() {
        val send = Intent(Intent.ACTION_SEND)
            .setType("text/plain")
            .putExtra(Intent.EXTRA_TEXT, views.summary.toString())
        val chooser = Intent.createChooser(send, getString(R.string.share))
            .putExtra(Intent.EXTRA_EXCLUDE_COMPONENTS, arrayOf(componentName))
        startActivity(chooser)
    }

    private fun say(words: Int) = Toast.makeText(this, words, Toast.LENGTH_SHORT).show()
}

private val SHARED_TEXTS = mapOf(
    Intent.ACTION_SEND to Intent.EXTRA_TEXT,
    Intent.ACTION_PROCESS_TEXT to Intent.EXTRA_PROCESS_TEXT,
)
