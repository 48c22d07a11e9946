// Loads each plugin once; modules apply those they need.
plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.android.library) apply false
    alias(libs.plugins.kotlin.android) apply false
    alias(libs.plugins.kotlin.jvm) apply false
    alias(libs.plugins.kotlin.serialization) apply false
}

// The library's coordinates, which apps that include this build use too.
subprojects {
    group = "org.bartexport"
    version = "0.1.0"
}
