/*
 * Runs the app on a desktop: Robolectric with the app's manifest, resources and bundle, and
 * LiteRT's runtime outside of it. Maven passes paths as system properties.
 */
package org.bartexport.app

import java.io.File
import java.util.Properties
import org.junit.runners.model.FrameworkMethod
import org.robolectric.RobolectricTestRunner
import org.robolectric.internal.bytecode.InstrumentationConfiguration

/** Runs tests of the app in Robolectric, with a bundle in its assets. */
open class AppRunner(testClass: Class<*>) : RobolectricTestRunner(testClass) {
    /** Name of the file with the app's resources and assets. */
    protected open val resources: String = "whole.apk"

    override fun getBuildSystemApiProperties(): Properties = Properties().apply {
        val manifest = File(folder("screens.app"), "AndroidManifest.xml")
        setProperty("android_merged_manifest", manifest.path)
        setProperty("android_resource_apk", File(folder("screens.output"), resources).path)
        setProperty("android_custom_package", "org.bartexport.app")
    }

    /** Excludes classes with native methods from Robolectric's instrumentation. */
    override fun createClassLoaderConfig(method: FrameworkMethod): InstrumentationConfiguration =
        InstrumentationConfiguration.Builder(super.createClassLoaderConfig(method))
            .doNotAcquirePackage("com.sun.jna.")
            .doNotAcquirePackage("com.google.ai.edge.litert.")
            .build()
}

/** Runs tests of the app with a truncated model. */
class DamagedAppRunner(testClass: Class<*>) : AppRunner(testClass) {
    override val resources: String = "damaged.apk"
}

/** Returns a folder from a system property of the build. */
fun folder(property: String): File = File(
    checkNotNull(System.getProperty(property)) { "Run this with Maven: $property is not set." },
)
