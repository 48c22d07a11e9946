/*
 * Runs the programs that build and inspect an APK.
 */
package org.bartexport.apk

import java.io.File

/** The required programs and their Debian packages. */
private val PACKAGES = mapOf(
    "zipalign" to "zipalign",
    "apksigner" to "apksigner",
    "dexdump" to "dexdump",
    "keytool" to "openjdk-17-jre-headless",
)

/** Returns the Debian packages of programs that are not on the path. */
internal fun missingPackages(): List<String> {
    val folders = System.getenv("PATH").split(File.pathSeparator)
    return PACKAGES
        .filterKeys { program -> folders.none { File(it, program).canExecute() } }
        .values
        .toList()
}

/** Returns a system property set by Maven. */
internal fun setting(name: String): String = checkNotNull(System.getProperty(name)) {
    "Expected the system property $name. Run this test with Maven."
}

/**
 * Runs a program and returns its output and error output.
 *
 * @throws IllegalStateException with the output if the program fails
 */
internal fun run(vararg command: String): String {
    val process = ProcessBuilder(*command).redirectErrorStream(true).start()
    process.outputStream.close()
    val text = process.inputStream.bufferedReader().readText()
    val status = process.waitFor()
    check(status == 0) { "${command.first()} ended with $status:\n$text" }
    return text
}

/** Runs a Java program on this test's class path; see [run]. */
internal fun runJava(mainClass: String, vararg arguments: String): String {
    val java = File(System.getProperty("java.home"), "bin/java").path
    return run(java, "-cp", System.getProperty("java.class.path"), mainClass, *arguments)
}
