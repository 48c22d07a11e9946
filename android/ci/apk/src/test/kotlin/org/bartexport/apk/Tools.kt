/*
 * The programs that make and read an APK: which are needed, and how one is run.
 *
 * Three come from Debian, keytool and java from the JDK. Nothing here knows what an APK is.
 */
package org.bartexport.apk

import java.io.File

/** What has to be on the path, and the Debian package that brings it. */
private val PACKAGES = mapOf(
    "zipalign" to "zipalign",
    "apksigner" to "apksigner",
    "dexdump" to "dexdump",
    "keytool" to "openjdk-17-jre-headless",
)

/** Names of the Debian packages whose programs are not on the path. */
internal fun missingPackages(): List<String> {
    val folders = System.getenv("PATH").split(File.pathSeparator)
    return PACKAGES
        .filterKeys { program -> folders.none { File(it, program).canExecute() } }
        .values
        .toList()
}

/** The value of a system property that Maven sets. */
internal fun setting(name: String): String = checkNotNull(System.getProperty(name)) {
    "Expected the system property $name: run this by Maven."
}

/**
 * Runs a program to its end and returns what it wrote to both streams.
 *
 * @throws IllegalStateException with that text if the program fails
 */
internal fun run(vararg command: String): String {
    val process = ProcessBuilder(*command).redirectErrorStream(true).start()
    process.outputStream.close()
    val text = process.inputStream.bufferedReader().readText()
    val status = process.waitFor()
    check(status == 0) { "${command.first()} ended with $status:\n$text" }
    return text
}

/** Runs a Java program of this test's own class path; see [run]. */
internal fun runJava(mainClass: String, vararg arguments: String): String {
    val java = File(System.getProperty("java.home"), "bin/java").path
    return run(java, "-cp", System.getProperty("java.class.path"), mainClass, *arguments)
}
