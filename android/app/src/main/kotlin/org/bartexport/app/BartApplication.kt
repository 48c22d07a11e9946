/*
 * The process of the app: it keeps what is to outlive a window.
 *
 * Android makes it, windows ask it for the summarizer. Where the app keeps its files is known here
 * and nowhere else.
 */
package org.bartexport.app

import android.app.Application
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import org.bartexport.litert.AssetSource
import org.bartexport.litert.BundleSource

/** The app, as long as its process lives. */
open class BartApplication : Application() {
    /** The artifact as it came with the app. */
    protected open val bundle: BundleSource
        get() = AssetSource(assets, BUNDLE)

    /** What every window shows and asks for things; it lives as long as the process. */
    val summarizer: Summarizer by lazy {
        Summarizer(
            Storage(
                bundle = bundle,
                model = File(noBackupFilesDir, BUNDLE),
                cache = File(cacheDir, BUNDLE),
            ),
            SettingsStore(this),
            CoroutineScope(SupervisorJob() + Dispatchers.Default),
        )
    }
}

// Of the folder in the assets that `bart-export --android` fills, and of the one it is copied to.
private const val BUNDLE = "bart"
