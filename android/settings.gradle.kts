// The project for Android Studio. ci/pom.xml compiles and tests the same folders on machines
// without an Android SDK. The *.gradle.kts files were reviewed but never run, because neither
// Gradle nor Google's repository was available.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode.set(RepositoriesMode.FAIL_ON_PROJECT_REPOS)
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "bart-export"

include(":core")
include(":litert")
include(":app")
