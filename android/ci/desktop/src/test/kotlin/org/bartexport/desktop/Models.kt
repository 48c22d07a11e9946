/*
 * The bundles that tools/android_fixtures.py exported, opened once for all tests, and copies of
 * bundles to modify.
 */
package org.bartexport.desktop

import java.io.File
import java.security.MessageDigest
import java.util.concurrent.atomic.AtomicInteger
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.boolean
import kotlinx.serialization.json.jsonObject
import org.bartexport.Artifact
import org.bartexport.GenerationConfig
import org.bartexport.litert.CompiledModelEngine
import org.bartexport.litert.EngineOptions
import org.bartexport.litert.openGenerator
import org.bartexport.runtime.Decoding
import org.bartexport.runtime.GenerationEvent
import org.bartexport.runtime.GenerationResult
import org.bartexport.runtime.Generator
import org.bartexport.runtime.Hypothesis
import org.bartexport.runtime.SearchEvent
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.Stepped
import org.bartexport.runtime.drive
import org.bartexport.runtime.search
import org.bartexport.text.BartTokenizer

internal const val VOCABULARY = "tokenizer/vocabulary.json"
internal const val MERGES = "tokenizer/merges.txt"
internal const val GOLDEN = "golden.json"
internal val BUILD = File(System.getProperty("bart_export.build"))

/** A bundle whose tokenizer and engine are opened lazily. */
internal class Model(directory: File) {
    val artifact: Artifact = Artifact.open(directory)
    val file: String = artifact.staticFiles().single()
    val tokenizer: BartTokenizer by lazy { artifact.tokenizer() }

    /** Shared by all tests and never closed. */
    val engine: CompiledModelEngine by lazy { open() }

    /** Opens another engine, which the caller closes. */
    fun open(options: EngineOptions = OPTIONS): CompiledModelEngine =
        CompiledModelEngine.open(artifact, file, options)

    override fun toString(): String = artifact.directory.name
}

internal val OPTIONS = EngineOptions(numThreads = 2)
internal val MINI = Model(File(BUILD, "bart_mini_en"))
internal val TINY =
    listOf("bart_tiny_symmetric", "bart_tiny_distilled").map { Model(File(BUILD, it)) }

/** An artifact with version 1 of the contract. */
internal val ONE_SOURCE = Model(File(BUILD, "one_source"))

/** Opens a bundle's generator with [OPTIONS]. */
internal fun generatorOf(directory: File): Generator =
    runBlocking { openGenerator(directory, OPTIONS) }

/** A text of generations.jsonl with Python's answers. */
internal class Row(content: JsonObject) {
    val text: String = (content.getValue("text") as JsonPrimitive).content
    val sourceTokenIds: List<Int> = integers(content.getValue("source_token_ids"))
    val truncated: Boolean = (content.getValue("truncated") as JsonPrimitive).boolean
    private val content = content.filterValues { it is JsonObject }

    /** Python's best sequence with the named settings. */
    fun answer(settings: String): JsonObject = content.getValue(settings).jsonObject
}

internal val ROWS: List<Row> by lazy {
    File(BUILD, "generations.jsonl").readLines().map { Row(json(it)) }
}

/** Python's settings, by name. */
internal val SETTINGS: Map<String, GenerationConfig> by lazy {
    json(File(BUILD, "generations.json").readText()).mapValues { (_, settings) ->
        Json.decodeFromJsonElement(GenerationConfig.serializer(), settings)
    }
}

/** Counts steps and calls [beforeStep] with the number of each, from 1. */
internal class WatchedEngine(
    private val engine: Seq2SeqEngine,
    private val beforeStep: (Int) -> Unit = {},
) : Seq2SeqEngine by engine {
    val steps = AtomicInteger()

    override fun step(state: Decoding, request: SearchEvent.Decode): Stepped<Decoding> {
        beforeStep(steps.incrementAndGet())
        return engine.step(state, request)
    }
}

/** Searches from token ids, with a state for [rows] beams; [lookedUp] is the source of drafts. */
internal fun Seq2SeqEngine.answer(
    tokenIds: List<Int>,
    generation: GenerationConfig,
    rows: Int = generation.numBeams,
    lookedUp: List<Int> = tokenIds,
): List<Hypothesis> {
    val state = start(tokenIds.toIntArray(), rows, generation.maxLength)
    val end = drive(search(generation, lookedUp.toIntArray()), ::step, state).last()
    return (end as SearchEvent.Finished).hypotheses
}

/** Returns a generator over an engine that is shared, so it must not be closed. */
internal fun Model.generator(engine: Seq2SeqEngine = this.engine): Generator = Generator(
    tokenizer,
    engine,
    artifact.generation,
    artifact.manifest.encoderSequenceLength,
    Dispatchers.Default,
)

internal fun Generator.result(
    text: String,
    generation: GenerationConfig,
    truncate: Boolean = true,
): GenerationResult = runBlocking {
    (generate(text, generation, truncate).last() as GenerationEvent.Finished).result
}

/** Copies a bundle. */
internal fun Model.copyTo(directory: File): File {
    for (name in artifact.manifest.files.keys + "manifest.json") {
        val copy = File(directory, name).also { it.parentFile.mkdirs() }
        File(artifact.directory, name).copyTo(copy, overwrite = true)
    }
    return directory
}

/**
 * Rewrites the manifest of a modified bundle with a valid hash, and with the size and hash of each
 * [replaced] file.
 */
internal fun reseal(
    directory: File,
    vararg replaced: String,
    change: (JsonObject) -> JsonObject = { it },
) {
    val file = File(directory, "manifest.json")
    var manifest = change(json(file.readText()))
    for (name in replaced) {
        val content = File(directory, name).readBytes()
        manifest = manifest.at("files", name) {
            it + ("bytes" to JsonPrimitive(content.size)) +
                ("sha256" to JsonPrimitive(digits(content)))
        }
    }
    val unsealed = JsonObject(manifest + ("manifest_sha256" to JsonPrimitive(UNSEALED)))
    val text = PRETTY.encodeToString(JsonObject.serializer(), unsealed)
    file.writeText(text.replaceFirst(UNSEALED, digits(text.toByteArray())))
}

/** Returns a copy with a change to the object at a path of [names]. */
internal fun JsonObject.at(
    vararg names: String,
    change: (JsonObject) -> Map<String, JsonElement>,
): JsonObject {
    if (names.isEmpty()) return JsonObject(change(this))
    val inner = getValue(names.first()).jsonObject
    val changed = inner.at(*names.drop(1).toTypedArray(), change = change)
    return JsonObject(this + (names.first() to changed))
}

internal fun json(text: String): JsonObject = Json.parseToJsonElement(text).jsonObject

internal fun integers(ids: JsonElement): List<Int> =
    (ids as JsonArray).map { (it as JsonPrimitive).content.toInt() }

/** Asserts that a message is one line with all [parts]. */
internal fun assertOneLine(message: String?, vararg parts: String) {
    val line = message.orEmpty()
    assertEquals(1, line.lines().size, line)
    for (part in parts) assertTrue(part in line, "\"$part\" is not in: $line")
}

private val PRETTY = Json { prettyPrint = true }
private val UNSEALED = "0".repeat(64)

private fun digits(content: ByteArray) = MessageDigest.getInstance("SHA-256").digest(content)
    .joinToString("") { "%02x".format(it) }
