// The engine on LiteRT, and the installer of a bundle: an Android library.
import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
    `maven-publish`
}

android {
    namespace = "org.bartexport.litert"
    compileSdk = libs.versions.compileSdk.get().toInt()

    defaultConfig {
        minSdk = libs.versions.minSdk.get().toInt()
        consumerProguardFiles("consumer-rules.pro")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.toVersion(libs.versions.jvmTarget.get())
        targetCompatibility = JavaVersion.toVersion(libs.versions.jvmTarget.get())
    }

    publishing { singleVariant("release") { withSourcesJar() } }

    lint {
        // Versions are pinned, and are raised on purpose.
        disable += listOf("AndroidGradlePluginVersion", "GradleDependency", "NewerVersionAvailable")
    }

    testOptions {
        // What the tests are held to lies beside android/; tools/android_fixtures.py makes it.
        val build = rootDir.resolveSibling("build/android").path
        unitTests.all {
            it.useJUnitPlatform()
            it.systemProperty("bart_export.build", build)
        }
    }
}

kotlin {
    explicitApi()
    compilerOptions {
        jvmTarget = JvmTarget.fromTarget(libs.versions.jvmTarget.get())
        allWarningsAsErrors = true
    }
}

dependencies {
    api(project(":core"))
    implementation(libs.litert)
    testImplementation(platform(libs.junit.bom))
    testImplementation(libs.junit.jupiter)
    testImplementation(libs.kotlin.test.junit5)
    testImplementation(libs.kotlinx.coroutines.test)
    testRuntimeOnly(libs.junit.platform.launcher)
}

publishing {
    // The component is there once the Android plugin has made its variants.
    publications.register<MavenPublication>("release") {
        afterEvaluate { from(components["release"]) }
    }
}
