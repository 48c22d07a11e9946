package org.bartexport.desktop

import java.io.File
import java.io.RandomAccessFile
import kotlin.test.assertFailsWith
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import org.bartexport.Artifact
import org.bartexport.ArtifactError
import org.bartexport.BartExportError
import org.bartexport.EngineError
import org.bartexport.litert.CompiledModelEngine
import org.bartexport.quality.replay
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir

/** Modified files must be rejected before LiteRT opens them: truncated ones can crash it. */
class RefusedFilesTest {
    @TempDir
    private lateinit var temporary: File

    private val model = TINY.first()
    private val other = TINY.last()

    /** Damage to a file, given the file and that of another bundle, and the expected message. */
    private class Damage(val name: String, val says: String, val damage: (File, File) -> Unit)

    private val damages = listOf(
        Damage("a changed bit", ALTERED) { file, _ ->
            val content = file.readBytes()
            content[content.size / 2] = (content[content.size / 2].toInt() xor 1).toByte()
            file.writeBytes(content)
        },
        Damage("cut off", ALTERED, ::cut),
        Damage("empty", ALTERED) { file, _ -> file.writeBytes(ByteArray(0)) },
        Damage("another bundle's", ALTERED) { file, others ->
            others.copyTo(file, overwrite = true)
            // Both bundles have the same tokenizer.
            file.appendText("\n")
        },
        Damage("missing", "is missing or cannot be read") { file, _ -> file.delete() },
    )

    private val manifestDamages = listOf(
        Damage("edited", "manifest_sha256 does not match") { file, _ ->
            file.writeText(file.readText().replace("bart_tiny", "bart_TINY"))
        },
        Damage("cut off", "is not valid JSON", ::cut),
        Damage("empty", "is not valid JSON") { file, _ -> file.writeBytes(ByteArray(0)) },
        // A valid manifest of other files.
        Damage("another bundle's", ALTERED) { file, others -> others.copyTo(file, true) },
        Damage("missing", "is not a complete artifact") { file, _ -> file.delete() },
    )

    private fun cut(file: File, others: File) {
        val length = minOf(file.length(), others.length()) * 9 / 10
        RandomAccessFile(file, "rw").use { it.setLength(length) }
    }

    private fun damaged(name: String, damage: Damage): File {
        val directory = model.copyTo(File(temporary, "damaged").also { it.deleteRecursively() })
        // Stamps the files as verified.
        generatorOf(directory).close()
        damage.damage(File(directory, name), File(other.artifact.directory, name))
        return directory
    }

    private fun each(vararg files: String, test: (String, Damage) -> Unit): List<DynamicTest> =
        files.flatMap { file ->
            damages.map { dynamicTest("$file: ${it.name}") { test(file, it) } }
        }

    @TestFactory
    fun `a model or a tokenizer that was altered is refused by name`() =
        each(model.file, VOCABULARY, MERGES) { file, damage ->
            val directory = damaged(file, damage)
            val error = assertFailsWith<ArtifactError> { generatorOf(directory) }
            assertOneLine(error.message, File(directory, file).path, damage.says)
        }

    @TestFactory
    fun `golden answers or a tokenizer that were altered are refused by the self-test`() =
        each(GOLDEN, VOCABULARY) { file, damage ->
            val directory = damaged(file, damage)
            val artifact = Artifact.open(directory)
            val replayed = replay(artifact, model.file, model.engine, model.tokenizer)
            val error = assertFailsWith<ArtifactError> { runBlocking { replayed.toList() } }
            assertOneLine(error.message, File(directory, file).path, damage.says)
        }

    @TestFactory
    fun `a manifest that was altered is refused by name`(): List<DynamicTest> =
        manifestDamages.map { damage ->
            dynamicTest(damage.name) {
                val directory = damaged("manifest.json", damage)
                val error = assertFailsWith<ArtifactError> { generatorOf(directory) }
                assertOneLine(error.message, directory.path, damage.says)
            }
        }

    private val unreadable = listOf("no model\n".repeat(1000), "TFL3", "")

    @TestFactory
    fun `a file that its manifest names and that is no model is refused in one line`() =
        unreadable.map { content ->
            dynamicTest("${content.length} characters") {
                val directory = model.copyTo(File(temporary, "sealed"))
                File(directory, model.file).writeText(content)
                reseal(directory, model.file)
                val error = assertFailsWith<EngineError> { generatorOf(directory) }
                assertOneLine(error.message, File(directory, model.file).path)
            }
        }

    @Test
    fun `a model whose tensors are not those of the manifest is refused in one line`() {
        val directory = model.copyTo(File(temporary, "sealed"))
        File(other.artifact.directory, other.file).copyTo(File(directory, model.file), true)
        reseal(directory, model.file)
        val error = assertFailsWith<EngineError> {
            generatorOf(directory).use {
                it.result("A text.", model.artifact.generation)
            }
        }
        assertOneLine(error.message, "LiteRT")
    }

    @Test
    fun `a file that LiteRT computes wrongly is refused with the reason`() {
        val directory = model.copyTo(File(temporary, "sealed"))
        reseal(directory) { manifest ->
            manifest.at("files", model.file) {
                val refusals = JsonObject(mapOf("ai-edge-litert" to JsonPrimitive("it is wrong")))
                it + mapOf("runtimes" to JsonObject(emptyMap()), "refusals" to refusals)
            }
        }
        val artifact = Artifact.open(directory)
        val refused = assertFailsWith<ArtifactError> {
            CompiledModelEngine.open(artifact, model.file, OPTIONS)
        }
        assertOneLine(refused.message, model.file, "it is wrong")
        val none = assertFailsWith<ArtifactError> { generatorOf(directory) }
        assertOneLine(none.message, directory.path, "bart-export")
    }

    @Test
    fun `a directory that is none is refused by name`() {
        val directory = File(temporary, "nothing")
        val error = assertFailsWith<BartExportError> { generatorOf(directory) }
        assertOneLine(error.message, directory.path)
    }

    private companion object {
        const val ALTERED = "was modified or damaged after the export"
    }
}
