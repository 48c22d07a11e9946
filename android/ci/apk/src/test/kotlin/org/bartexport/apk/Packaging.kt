/*
 * Builds a signed APK of the app without Android's SDK, using ProGuard, dx, aapt2, zipalign and
 * apksigner.
 *
 * It contains the classes that Maven compiled and a bundle of `bart-export --android`. It lacks
 * LiteRT's classes and native code, which the Android Gradle plugin adds, so it cannot run.
 */
package org.bartexport.apk

import java.io.File
import java.nio.file.FileSystems
import java.nio.file.Files
import java.util.zip.ZipFile

/** The directory [android] of this repository, with settings of its Gradle build. */
internal class Sources(val android: File) {
    private val catalogue = android.resolve("gradle/libs.versions.toml").readLines()

    /** Returns a version of the version catalogue. */
    fun version(name: String): String =
        catalogue.single { it.startsWith("$name = \"") }.split('"')[1]

    val applicationId: String = android.resolve("app/build.gradle.kts").readLines()
        .single { "applicationId = " in it }.split('"')[1]
    val rules: File = android.resolve("litert/consumer-rules.pro")
}

/**
 * Builds an APK from [sources], the classes of [program] and a [bundle], in the folder [work].
 *
 * @param app the build directory of the module `app`: aapt2, the manifest and compiled resources
 */
internal class Packaging(
    private val sources: Sources,
    private val app: File,
    private val program: List<File>,
    private val framework: File,
    private val bundle: File,
    private val work: File,
) {
    val aapt2: String = app.resolve("aapt2/prebuilt/linux/aapt2_64").path

    /** Builds the APK from scratch. */
    fun make(): File {
        work.deleteRecursively()
        work.mkdirs()
        val resources = link()
        val dex = dex(shrink())
        FileSystems.newFileSystem(resources.toPath()).use {
            Files.copy(dex.toPath(), it.getPath(dex.name))
        }
        return sign(align(resources))
    }

    /** Links the manifest, resources and assets; also writes ProGuard rules for their classes. */
    private fun link(): File {
        bundle.copyRecursively(work.resolve("assets/bart"))
        val linked = work.resolve("linked.apk")
        run(
            aapt2, "link", app.resolve("resources.zip").path,
            "-I", framework.path, "-o", linked.path,
            "--manifest", app.resolve("AndroidManifest.xml").path,
            "-A", work.resolve("assets").path, "-0", "tflite",
            "--min-sdk-version", sources.version("minSdk"),
            "--target-sdk-version", sources.version("targetSdk"),
            "--version-code", "1", "--version-name", "1.0",
            "--proguard", work.resolve("manifest.pro").path,
        )
        return linked
    }

    /** Removes unused classes and desugars lambdas, which the dexer does not support. */
    private fun shrink(): File {
        val shrunk = work.resolve("program.jar")
        val java = File(System.getProperty("java.home"), "jmods/java.base.jmod")
        val rules = buildList {
            for (entry in program) add("-injars '$entry'(!META-INF/**,**.class)")
            add("-outjars '$shrunk'")
            add("-libraryjars '$java'(!**.jar;!module-info.class)")
            add("-libraryjars '$framework'(android/**.class)")
            add("-target 1.7")
            add("-dontoptimize")
            add("-dontobfuscate")
            add("-dontnote **")
            // Missing classes are LiteRT's, from its AAR, and annotations for tools.
            add("-dontwarn com.google.ai.edge.litert.**")
            add("-dontwarn androidx.annotation.**")
            add("-include '${work.resolve("manifest.pro")}'")
            add("-include '${sources.rules}'")
            program.filter { it.isFile }.forEach { addAll(bundledRules(it)) }
        }
        val file = work.resolve("rules.pro")
        file.writeText(rules.joinToString("\n"))
        runJava("proguard.ProGuard", "@$file")
        return shrunk
    }

    /** Returns the consumer rules of a library. */
    private fun bundledRules(jar: File): List<String> = ZipFile(jar).use { zip ->
        zip.entries().toList()
            .filter { it.name.startsWith("META-INF/proguard/") && it.name.endsWith(".pro") }
            .flatMap { entry -> zip.getInputStream(entry).bufferedReader().use { it.readLines() } }
    }

    private fun dex(classes: File): File {
        val dex = work.resolve("classes.dex")
        runJava(
            "com.android.dx.command.Main",
            "--dex",
            "--min-sdk-version=${sources.version("minSdk")}",
            "--output=$dex",
            classes.path,
        )
        return dex
    }

    private fun align(apk: File): File {
        val aligned = work.resolve("app.apk")
        run("zipalign", "-f", "-p", "4", apk.path, aligned.path)
        return aligned
    }

    private fun sign(apk: File): File {
        val keys = work.resolve("keys.p12").path
        val password = "of-no-worth"
        run(
            "keytool", "-genkeypair", "-keystore", keys, "-storepass", password, "-alias", "app",
            "-keyalg", "EC", "-dname", "CN=nobody", "-validity", "1",
        )
        run("apksigner", "sign", "--ks", keys, "--ks-pass", "pass:$password", apk.path)
        return apk
    }
}
