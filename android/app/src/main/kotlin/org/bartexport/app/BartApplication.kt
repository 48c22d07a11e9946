/*
 * The application: keeps the summarizer across activities and chooses the app's directories.
 */
package org.bartexport.app

import android.app.Application
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import org.bartexport.litert.AssetSource
import org.bartexport.litert.BundleSource

/** The application. */
open class BartApplication : Application() {
    /** The artifact that is packaged with the app. */
    protected open val bundle: BundleSource
        get() = AssetSource(assets, BUNDLE)

    /** The state holder of all activities; it lives as long as the process. */
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

// The folder in the assets that `bart-export --android` writes, and the one it is installed to.
private const val BUNDLE = "bart"
