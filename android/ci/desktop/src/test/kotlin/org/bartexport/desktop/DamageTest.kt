/*
 * Bundles whose files were damaged on the way to a device: each is refused by its name, before
 * LiteRT or the tokenizer reads it.
 */
package org.bartexport.desktop

import java.io.File
import java.io.RandomAccessFile
import kotlin.test.assertContains
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertNotNull
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.bartexport.Artifact
import org.bartexport.ArtifactError
import org.bartexport.BartExportError
import org.bartexport.EngineError
import org.bartexport.litert.openGenerator
import org.bartexport.quality.replay
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource

class DamageTest {
    @ParameterizedTest
    @MethodSource("damages")
    fun `a damaged file is refused by its name`(
        name: String,
        how: String,
        @TempDir directory: File,
    ) {
        val copy = copyOf(BUNDLE, directory)
        DAMAGE.getValue(how)(File(copy, name), File(BUILD, "$OTHER/${inOther(name)}"))
        val error = assertFailsWith<BartExportError> { use(copy) }
        assertContains(assertNotNull(error.message), File(name).name)
        assertEquals(1, error.message?.lines()?.size)
        assertEquals(ArtifactError::class, error::class)
    }

    @Test
    fun `a file that is no model gives a line, though its manifest says that it is right`(
        @TempDir directory: File,
    ) {
        val copy = copyOf(BUNDLE, directory)
        val file = Artifact.open(copy).file
        replaceFile(copy, file, "This is no flatbuffer. ".repeat(1000).toByteArray())
        val error = assertFailsWith<EngineError> { openGenerator(copy, OPTIONS) }
        assertContains(assertNotNull(error.message), file)
        assertEquals(1, error.message?.lines()?.size)
    }

    @Test
    fun `what is not damaged is opened and replayed`(@TempDir directory: File) {
        use(copyOf(BUNDLE, directory))
    }

    /** Opens and replays a bundle as the app does. */
    private fun use(bundle: File) {
        openGenerator(bundle, OPTIONS).close()
        val artifact = Artifact.open(bundle)
        artifact.engine().use { engine ->
            runBlocking { replay(artifact, artifact.file, engine, artifact.tokenizer()).toList() }
        }
    }

    private fun inOther(name: String) = if (name.endsWith(".tflite")) bundle(OTHER).file else name

    private companion object {
        val BUNDLE = TINY_MODELS.last()
        val OTHER = TINY_MODELS.first()

        // The file, and another bundle's.
        val DAMAGE = mapOf<String, (File, File) -> Unit>(
            "a bit" to { file, _ ->
                RandomAccessFile(file, "rw").use {
                    it.seek(it.length() / 2)
                    val byte = it.read()
                    it.seek(it.length() / 2)
                    it.write(byte xor 1)
                }
            },
            "cut" to { file, _ ->
                RandomAccessFile(file, "rw").use { it.setLength(it.length() / 2) }
            },
            "missing" to { file, _ -> file.delete() },
            "another's" to { file, other -> other.copyTo(file, overwrite = true) },
        )

        @JvmStatic
        fun damages(): List<Array<String>> = buildList {
            for (name in bundle(BUNDLE).manifest.files.keys + "manifest.json") {
                for (how in DAMAGE.keys) add(arrayOf(name, how))
            }
        }
            // Another bundle's manifest is a right one, for other files; both have one vocabulary.
            .filterNot { (name, how) ->
                how == "another's" && (name == "manifest.json" || name.startsWith("tokenizer/"))
            }
    }
}
