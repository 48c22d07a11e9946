/*
 * The real models that tests run: bundles that tools/android_fixtures.py made, opened once where
 * tests only generate with them, and copied where tests change their files.
 */
package org.bartexport.desktop

import java.io.File
import java.security.MessageDigest
import kotlinx.coroutines.Dispatchers
import org.bartexport.Artifact
import org.bartexport.litert.CompiledModelEngine
import org.bartexport.litert.EngineOptions
import org.bartexport.runtime.Generator
import org.bartexport.runtime.Seq2SeqEngine

internal val BUILD = File(System.getProperty("bart_export.build"))
internal val GOLDEN = File(System.getProperty("bart_export.golden"))
internal val TINY_MODELS = listOf("bart_tiny_symmetric", "bart_tiny_distilled")

/** As many threads as Python's answers took would be slower beside other tests. */
internal val OPTIONS = EngineOptions(numThreads = 1)

internal fun bundle(name: String): Artifact = Artifact.open(File(BUILD, name))

/** The one static file of a bundle. */
internal val Artifact.file: String
    get() = staticFiles().single()

internal fun Artifact.engine(options: EngineOptions = OPTIONS): CompiledModelEngine =
    CompiledModelEngine.open(this, file, options)

internal fun Artifact.generator(engine: Seq2SeqEngine): Generator = Generator(
    tokenizer(),
    engine,
    generation,
    manifest.encoderSequenceLength,
    Dispatchers.Default.limitedParallelism(1),
)

/** The preset that the app comes with, opened once for all tests that generate with it. */
internal object Mini {
    val artifact: Artifact by lazy { bundle("bart_mini_en") }
    val engine: CompiledModelEngine by lazy { artifact.engine() }
    val generator: Generator by lazy { artifact.generator(engine) }
}

/** A copy of a bundle whose files a test may change. */
internal fun copyOf(name: String, directory: File): File =
    File(directory, name).also { File(BUILD, name).copyRecursively(it, overwrite = true) }

/** Changes the text of a manifest and seals it anew, as a person with the same tools could. */
internal fun editManifest(bundle: File, change: (String) -> String) {
    val file = File(bundle, "manifest.json")
    val seal = Regex("\"manifest_sha256\": \"[0-9a-f]{64}\"")
    val unsealed = change(file.readText()).replaceFirst(seal, sealed("0".repeat(DIGITS)))
    val right = sha256(unsealed.toByteArray())
    file.writeText(unsealed.replaceFirst(sealed("0".repeat(DIGITS)), sealed(right)))
}

/** Puts other bytes in a file's place and has the manifest say that they are right. */
internal fun replaceFile(bundle: File, name: String, content: ByteArray) {
    val entry = Artifact.open(bundle).manifest.files.getValue(name)
    File(bundle, name).writeBytes(content)
    editManifest(bundle) { text ->
        text.replace(entry.sha256, sha256(content))
            .replace("\"bytes\": ${entry.bytes},", "\"bytes\": ${content.size},")
    }
}

internal fun sha256(content: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(content).joinToString("") { "%02x".format(it) }

private fun sealed(digits: String) = "\"manifest_sha256\": \"$digits\""

private const val DIGITS = 64
