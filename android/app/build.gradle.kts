// The example app. It has no other permission and no other library than those named here.
import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "org.bartexport.app"
    compileSdk = libs.versions.compileSdk.get().toInt()

    defaultConfig {
        applicationId = "org.bartexport.app"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.targetSdk.get().toInt()
        versionCode = 1
        versionName = "1.0"
        // Phones and the emulator: what LiteRT brings native code for.
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.toVersion(libs.versions.jvmTarget.get())
        targetCompatibility = JavaVersion.toVersion(libs.versions.jvmTarget.get())
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = true
            // Rules for LiteRT come with :litert, those for kotlinx.serialization in its own jar.
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
    }

    // Quantized weights hardly shrink, and unpacking them costs the first start.
    androidResources { noCompress += "tflite" }

    packaging {
        resources { excludes += listOf("/META-INF/{AL2.0,LGPL2.1}", "/DebugProbesKt.bin") }
    }

    lint {
        checkDependencies = true
        // Versions are pinned, and are raised on purpose.
        disable += listOf(
            "AndroidGradlePluginVersion",
            "GradleDependency",
            "NewerVersionAvailable",
            "OldTargetApi",
        )
    }
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.fromTarget(libs.versions.jvmTarget.get())
        allWarningsAsErrors = true
    }
}

dependencies {
    implementation(project(":litert"))
    implementation(libs.kotlinx.coroutines.android)
}

// An app without a model would build, and would fail only on the phone.
val checkBundle by tasks.registering {
    val manifest = layout.projectDirectory.file("src/main/assets/bart/manifest.json").asFile
    doLast {
        if (!manifest.isFile) {
            throw GradleException(
                "The app has no model: expected $manifest. Make one with `bart-export " +
                    "--preset bart_mini_en --target tflite --android ${manifest.parent}`.",
            )
        }
    }
}

tasks.named("preBuild") { dependsOn(checkBundle) }
