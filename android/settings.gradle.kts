// The project that Android Studio opens. ci/pom.xml compiles and tests the same folders on machines
// without an Android SDK; where neither Gradle nor Google's repository was at hand, this file and
// the other *.gradle.kts were read, not run.
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
