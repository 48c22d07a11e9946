/*
 * How the app runs on a desktop: Robolectric with the app's own manifest, resources and bundle, and
 * LiteRT's runtime outside of it.
 *
 * Paths come from the Maven build as system properties.
 */
package org.bartexport.app

import java.io.File
import java.util.Properties
import org.junit.runners.model.FrameworkMethod
import org.robolectric.RobolectricTestRunner
import org.robolectric.internal.bytecode.InstrumentationConfiguration

/** Runs tests of the app in Robolectric, with the bundle of the build in its assets. */
open class AppRunner(testClass: Class<*>) : RobolectricTestRunner(testClass) {
    /** Name of the file with the app's resources and assets. */
    protected open val resources: String = "whole.apk"

    override fun getBuildSystemApiProperties(): Properties = Properties().apply {
        val manifest = File(folder("screens.app"), "AndroidManifest.xml")
        setProperty("android_merged_manifest", manifest.path)
        setProperty("android_resource_apk", File(folder("screens.output"), resources).path)
        setProperty("android_custom_package", "org.bartexport.app")
    }

    /** Robolectric rewrites the classes it loads; those that hold native code must stay alone. */
    override fun createClassLoaderConfig(method: FrameworkMethod): InstrumentationConfiguration =
        InstrumentationConfiguration.Builder(super.createClassLoaderConfig(method))
            .doNotAcquirePackage("com.sun.jna.")
            .doNotAcquirePackage("com.google.ai.edge.litert.")
            .build()
}

/** Runs tests of the app with a bundle whose model lost its last byte. */
class DamagedAppRunner(testClass: Class<*>) : AppRunner(testClass) {
    override val resources: String = "damaged.apk"
}

/** The folder that the build names by a system property. */
fun folder(property: String): File = File(
    checkNotNull(System.getProperty(property)) { "Run this with Maven: $property is not set." },
)
