package org.bartexport

import java.io.File
import java.nio.file.Files
import java.nio.file.attribute.FileTime
import java.util.concurrent.TimeUnit
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonNull
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir

class ArtifactTest {
    @TempDir
    lateinit var temporary: File

    private fun artifact(change: (JsonObject) -> JsonObject = { it }) =
        Files.createTempDirectory(temporary.toPath(), "artifact").toFile()
            .also { writeArtifact(it, change = change) }

    @Test
    fun `a whole artifact gives its settings, tokenizer and files`() {
        val opened = Artifact.open(
            artifact {
                it.with("new_in_a_later_version", JsonPrimitive(1))
                    .at("files", MODEL) { file -> file.with("also_new", JsonArray(emptyList())) }
            },
        )
        assertEquals("bart_small", opened.manifest.preset)
        assertEquals(1234, opened.manifest.parameterCount)
        assertEquals(12, opened.manifest.encoderSequenceLength)
        assertEquals(SMALL, opened.config)
        assertEquals(GenerationConfig(maxLength = 16, forcedBosTokenId = 0), opened.generation)
        assertContentEquals(intArrayOf(5 + 'a'.code), opened.tokenizer().tokenize("a"))
        assertEquals("a model of some bytes", opened.path(MODEL).readText())
        assertEquals(listOf(MODEL), opened.staticFiles())
        assertEquals(
            listOf(
                "encode_8",
                "decode_8_1",
                "decode_8_4",
                "encode_16",
                "decode_16_1",
                "decode_16_4",
            ),
            opened.buckets(MODEL).map { it.name },
        )
    }

    @Test
    fun `a tokenizer has the settings that the manifest states`() {
        val flags = mapOf("content" to JsonPrimitive("a"), "special" to JsonPrimitive(true))
        val opened = Artifact.open(
            artifact {
                it.at("tokenizer") { stated ->
                    stated.with("add_prefix_space", JsonPrimitive(true))
                        .with("added_tokens", JsonArray(listOf(JsonObject(flags))))
                }
            },
        )
        val (space, a, b) = " ab".map { 5 + it.code }
        assertContentEquals(intArrayOf(space, b, a), opened.tokenizer().tokenize("ba"))
        assertEquals(" b", opened.tokenizer().detokenize(intArrayOf(space, b, a)))
    }

    /** Damage to an artifact, and the error message that it must cause. */
    private class Damage(val name: String, val says: String, val damage: (File) -> Unit)

    private fun changed(name: String, says: String, change: (JsonObject) -> JsonObject) =
        Damage(name, says) { writeArtifact(it, change = change) }

    private fun rewritten(name: String, says: String, change: (String) -> String) =
        Damage(name, says) { directory ->
            val file = File(directory, "manifest.json")
            file.writeText(change(file.readText()))
        }

    private fun named(file: String, says: String = "names $file, which is outside") =
        changed("a manifest that names $file", says) { manifest ->
            manifest.at("files") { it.with(file, it.getValue(MODEL)) }
        }

    private fun described(name: String, value: JsonPrimitive) =
        changed("a file whose $name is $value", "$name of $MODEL must be") { manifest ->
            manifest.at("files", MODEL) { it.with(name, value) }
        }

    private fun contract(version: Int, says: String) =
        changed("version $version of the contract", says) { manifest ->
            manifest.at("files", MODEL) { it.with("contract_version", JsonPrimitive(version)) }
        }

    private val refusedToOpen = listOf(
        Damage("no directory", "is not a directory") { it.deleteRecursively() },
        Damage("a file in its place", "is not a directory") {
            it.deleteRecursively()
            it.writeText("")
        },
        Damage("no manifest", "has no manifest.json, so it is not a complete artifact") {
            File(it, "manifest.json").delete()
        },
        Damage("a directory as manifest", "manifest.json cannot be read") {
            File(it, "manifest.json").delete()
            File(it, "manifest.json").mkdir()
        },
        rewritten("a truncated manifest", "manifest.json is not valid JSON") {
            it.take(it.length / 2)
        },
        rewritten("a manifest of two bytes", "must have format_version 1, received null") { "[]" },
        rewritten("another format", "must have format_version 1, received 2.") {
            it.replace("\"format_version\": 1", "\"format_version\": 2")
        },
        rewritten("a version in quotes", "must have format_version 1, received \"1\"") {
            it.replace("\"format_version\": 1", "\"format_version\": \"1\"")
        },
        rewritten("an edited manifest", "its manifest_sha256 does not match") {
            it.replace("\"max_length\": 16", "\"max_length\": 17")
        },
        rewritten("an edited space", "its manifest_sha256 does not match") { "$it\n" },
        rewritten("a manifest without seal", "its manifest_sha256 does not match") {
            it.replace("manifest_sha256", "sha256")
        },
        rewritten("a manifest with two seals", "its manifest_sha256 does not match") {
            it.replace("\"preset\"", "\"manifest_sha256\": \"${"0".repeat(64)}\", \"preset\"")
        },
        changed("two missing fields", "wrongly typed field: tools, exports.") {
            JsonObject(it - "tools" - "exports")
        },
        changed("a field of another type", "wrongly typed field: preset.") {
            it.with("preset", JsonPrimitive(3))
        },
        changed("a null field", "wrongly typed field: config.") {
            it.with("config", JsonNull)
        },
        changed("an entry without hash", "sha256") { manifest ->
            manifest.at("files", MODEL) { JsonObject(it - "sha256") }
        },
        changed("an unknown field in config", "Unknown parameter layers=2 in config. Known: ") {
            it.at("config") { config -> config.with("layers", JsonPrimitive(2)) }
        },
        changed("an unknown flag", "Unknown parameter upper=true in added_tokens") {
            it.at("tokenizer") { stated ->
                val flags = mapOf("content" to JsonPrimitive("a"), "upper" to JsonPrimitive(true))
                stated.with("added_tokens", JsonArray(listOf(JsonObject(flags))))
            }
        },
        changed("a config without vocabulary", "vocabulary_size") {
            it.at("config") { config -> JsonObject(config - "vocabulary_size") }
        },
        changed("an unknown setting", "Unknown parameter beams=2 in generation. Known: ") {
            it.at("generation") { settings -> settings.with("beams", JsonPrimitive(2)) }
        },
        changed("a setting out of range", "num_beams must be an integer of at least 1") {
            it.at("generation") { settings -> settings.with("num_beams", JsonPrimitive(0)) }
        },
        contract(3, "3. Update the bart-export library for a newer one."),
        contract(0, "contract_version of $MODEL must be from 1 to 2, received 0."),
        named("../x"),
        named("tokenizer/../../x"),
        named("/x"),
        named("tokenizer//x"),
        named("./x"),
        named("..\\x"),
        named("manifest.json", "names manifest.json, which is a reserved name"),
        named("Manifest.JSON", "names Manifest.JSON, which is a reserved name"),
        named(".cache/verified.json", "which is a reserved name"),
        named("$MODEL.part", "which is a reserved name"),
        named(MODEL.uppercase(), "$MODEL and ${MODEL.uppercase()}, which differ only in case"),
        described("bytes", JsonPrimitive(-1)),
        described("bytes", JsonPrimitive(Long.MAX_VALUE)),
        described("sha256", JsonPrimitive("0".repeat(63))),
        rewritten("nested without end", "nests deeper than 64") {
            it.replace("\"format_version\": 1", "\"format_version\": ${"[".repeat(1_000_000)}")
        },
        rewritten("a version of many digits", "received 1111") {
            it.replace("\"format_version\": 1", "\"format_version\": ${"1".repeat(1_000_000)}")
        },
        rewritten("too large", "has more than") { it + " ".repeat(MAX_MANIFEST_BYTES) },
        Damage("a pipe", "it is not a regular file") {
            File(it, "manifest.json").delete()
            ProcessBuilder("mkfifo", File(it, "manifest.json").path).start().waitFor()
        },
    )

    @TestFactory
    fun `is refused`(): List<DynamicTest> = refusedToOpen.map { row ->
        dynamicTest(row.name) {
            val directory = artifact()
            row.damage(directory)
            val error = assertFailsWith<ArtifactError> { Artifact.open(directory) }
            assertOneLine(error.message, row.says, directory.path)
        }
    }

    private fun damaged(name: String, says: String, damage: (File) -> Unit) =
        Damage(name, says, damage)

    private val refusedFiles = listOf(
        damaged("a missing file", "is missing or cannot be read") { File(it, MODEL).delete() },
        damaged("a truncated file", "(20 bytes instead of 21)") {
            File(it, MODEL).writeText("a model of some byte")
        },
        damaged("a longer file", "(22 bytes instead of 21)") { File(it, MODEL).appendText("s") },
        damaged("an empty file", "(0 bytes instead of 21)") { File(it, MODEL).writeText("") },
        damaged("an edited file of the same size", "modified or damaged after the export (its") {
            File(it, MODEL).writeText("a model of other byte")
        },
        damaged("a swapped file", "modified or damaged") {
            File(it, VOCABULARY).copyTo(File(it, MODEL), overwrite = true)
        },
        damaged("a directory in its place", "modified or damaged") {
            File(it, MODEL).delete()
            File(it, MODEL).mkdir()
        },
    )

    @TestFactory
    fun `is refused by name`(): List<DynamicTest> = refusedFiles.map { row ->
        dynamicTest(row.name) {
            val directory = artifact()
            row.damage(directory)
            val opened = Artifact.open(directory)
            val error = assertFailsWith<ArtifactError> { opened.path(MODEL) }
            assertOneLine(error.message, row.says, File(directory, MODEL).path)
            opened.path(MERGES)
        }
    }

    @Test
    fun `a link that leaves the directory is refused, whatever it leads to`() {
        val directory = artifact()
        val elsewhere = File(temporary, "elsewhere").apply { writeText("a model of some bytes") }
        File(directory, MODEL).delete()
        Files.createSymbolicLink(File(directory, MODEL).toPath(), elsewhere.toPath())
        val error = assertFailsWith<ArtifactError> { Artifact.open(directory).path(MODEL) }
        assertOneLine(error.message, MODEL, "is a link that leads outside the artifact")
    }

    @Test
    fun `a file that the manifest does not name is refused with those that it names`() {
        val directory = artifact()
        File(directory, "other").writeText("here, too")
        val error = assertFailsWith<ArtifactError> { Artifact.open(directory).path("other") }
        assertOneLine(error.message, "has no file other. It has: $MODEL, $VOCABULARY", "other")
    }

    @Test
    fun `a file that was hashed is not read again, by this process or the next`() {
        val directory = artifact()
        val model = File(directory, MODEL)
        val opened = Artifact.open(directory)
        opened.path(MODEL)
        val changed = Files.getLastModifiedTime(model.toPath())
        model.writeText("a model of other byte")
        Files.setLastModifiedTime(model.toPath(), changed)

        assertEquals(model, opened.path(MODEL))
        assertEquals(model, Artifact.open(directory).path(MODEL))
        assertFailsWith<ArtifactError> { opened.path(MODEL, rehash = true) }
        File(directory, ".cache").deleteRecursively()
        assertFailsWith<ArtifactError> { Artifact.open(directory).path(MODEL) }
    }

    @Test
    fun `a file that was hashed is read again once its time, size or identity is another`() {
        val changes = listOf<(File, FileTime) -> Unit>(
            { file, time ->
                file.writeText("a model of other byte")
                val later = time.to(TimeUnit.NANOSECONDS) + 1000
                Files.setLastModifiedTime(file.toPath(), FileTime.from(later, TimeUnit.NANOSECONDS))
            },
            { file, time ->
                file.appendText("s")
                Files.setLastModifiedTime(file.toPath(), time)
            },
            { file, time ->
                val other = File(file.path + ".other").also {
                    it.writeText("a model of other byte")
                }
                assertTrue(other.renameTo(file))
                Files.setLastModifiedTime(file.toPath(), time)
            },
        )
        for (change in changes) {
            val directory = artifact()
            val opened = Artifact.open(directory)
            val model = opened.path(MODEL)
            change(model, Files.getLastModifiedTime(model.toPath()))
            assertFailsWith<ArtifactError> { opened.path(MODEL) }
        }
    }

    @Test
    fun `an artifact that cannot be written is read, and remembers as long as it is open`() {
        val directory = artifact()
        File(directory, ".cache").writeText("no directory can be made here")
        val opened = Artifact.open(directory)
        val model = opened.path(MODEL)
        val changed = Files.getLastModifiedTime(model.toPath())
        model.writeText("a model of other byte")
        Files.setLastModifiedTime(model.toPath(), changed)
        opened.path(MODEL)
        assertFailsWith<ArtifactError> { Artifact.open(directory).path(MODEL) }
    }

    @Test
    fun `what was remembered is hashed again when the memory is damaged, and drafts are removed`() {
        val directory = artifact()
        Artifact.open(directory).path(MODEL)
        val cache = File(directory, ".cache")
        assertEquals(listOf("verified.json"), cache.list().orEmpty().toList())
        for (content in listOf("{", "[]", "{\"$MODEL\": 1}")) {
            File(cache, "verified.json").writeText(content)
            assertTrue(Artifact.open(directory).path(MODEL).isFile)
            assertFalse(File(cache, "verified.json").readText() == content)
        }
    }

    @Test
    fun `a file that LiteRT must not run, or with shapes that vary, is refused with the reason`() {
        val rows = listOf<Pair<String, (JsonObject) -> JsonObject>>(
            "must not be run with ai-edge-litert: it computes wrong numbers." to { file ->
                val refusals = mapOf("ai-edge-litert" to JsonPrimitive("it computes wrong numbers"))
                file.with("runtimes", JsonObject(emptyMap())).with("refusals", JsonObject(refusals))
            },
            "must not be run with ai-edge-litert: the export did not verify it." to { file ->
                file.with("runtimes", JsonObject(emptyMap()))
            },
            "is not a static .tflite file" to { JsonObject(it - "shapes") },
            "is not a static .tflite file" to { it.with("target", JsonPrimitive("edgetpu")) },
        )
        for ((says, change) in rows) {
            val opened = Artifact.open(
                artifact { manifest ->
                    manifest.at("files") {
                        it.with("other", change(it.getValue(MODEL) as JsonObject))
                    }
                },
            )
            assertEquals(listOf(MODEL), opened.staticFiles())
            val error = assertFailsWith<ArtifactError> { opened.buckets("other") }
            assertOneLine(error.message, says, "Use one of: $MODEL.")
        }
    }

    @Test
    fun `damaged signatures are refused by the name of their file`() {
        val opened = Artifact.open(
            artifact { manifest ->
                manifest.at("files", MODEL, "signatures") { JsonObject(it - "encode_16") }
            },
        )
        val error = assertFailsWith<ArtifactError> { opened.buckets(MODEL) }
        assertOneLine(error.message, "manifest.json is damaged: $MODEL: signatures must", "16_4")
    }
}

internal fun assertOneLine(message: String?, vararg parts: String) {
    val line = message.orEmpty()
    assertEquals(1, line.lines().size, line)
    for (part in parts) assertTrue(part in line, "\"$part\" is not in: $line")
}
