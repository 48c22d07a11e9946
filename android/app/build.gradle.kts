// The example app. It has no permissions, and no libraries but those below.
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
        // The ABIs of phones and the emulator, for which LiteRT has native code.
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
            // Rules for LiteRT come with :litert, and those for kotlinx.serialization with its JAR.
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
    }

    // Quantized weights hardly compress, and unpacking them would slow down the first start.
    androidResources { noCompress += "tflite" }

    packaging {
        resources { excludes += listOf("/META-INF/{AL2.0,LGPL2.1}", "/DebugProbesKt.bin") }
    }

    lint {
        checkDependencies = true
        // Versions are pinned on purpose.
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

// An app without a model would build but fail on the phone.
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
