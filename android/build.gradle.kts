// Loads each plugin once for the modules, which apply those that they need.
plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.kotlin.android) apply false
    alias(libs.plugins.kotlin.jvm) apply false
    alias(libs.plugins.kotlin.serialization) apply false
}

// Coordinates of the library's modules; an app that includes this build names the same ones.
subprojects {
    group = "org.bartexport"
    version = "0.1.0"
}
