/*
 * What this project's Kotlin costs beside the engine: search, tokenizer and detokenizer as a share
 * of the engine's time per token, and the tokenizer's speed.
 *
 * The directory of tools/android_fixtures.py goes in, and perhaps another bundle; a table and a line
 * of JSON come out. Settings are measured in turns, so that a busy machine is busy for all of them.
 */
package org.bartexport.desktop

import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.last
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.put
import org.bartexport.Artifact
import org.bartexport.GenerationConfig
import org.bartexport.litert.CompiledModelEngine
import org.bartexport.litert.EngineOptions
import org.bartexport.runtime.Decoding
import org.bartexport.runtime.GenerationEvent
import org.bartexport.runtime.GenerationResult
import org.bartexport.runtime.Generator
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.Stepped
import org.bartexport.text.BartTokenizer

/** Measures the bundle `bart_mini_en` in the first directory, and every further bundle. */
public fun main(arguments: Array<String>) {
    val build = File(arguments.first())
    val texts = File(build, "generations.jsonl").readLines()
        .map { Json.parseToJsonElement(it).jsonObject.getValue("text").jsonPrimitive.content }
    val bundles = listOf(File(build, "bart_mini_en")) + arguments.drop(1).map(::File)
    println("model, setting: engine and Kotlin, µs a token; Kotlin's share of the engine's time")
    val rows = bundles.flatMap { bundle -> overheads(Artifact.open(bundle), texts.take(TEXTS)) }
    rows.forEach(::println)
    val speed = tokenizerSpeed(Artifact.open(bundles.first()).tokenizer(), texts)
    println("tokenizer: %.1f MB of English a second on one core".format(speed))
    println(JsonObject(mapOf("tokenizer_mb_per_second" to JsonPrimitive(speed))))
}

/** An engine that counts the time spent in it. */
private class Clocked(private val engine: Seq2SeqEngine) : Seq2SeqEngine by engine {
    var nanoseconds = 0L
    var steps = 0

    override fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding =
        clocked { engine.start(tokenIds, numBeams, maxLength) }

    override fun step(
        state: Decoding,
        tokenIds: IntArray,
        beamIndex: IntArray,
    ): Stepped<Decoding> = clocked { engine.step(state, tokenIds, beamIndex) }.also { steps += 1 }

    private inline fun <Result> clocked(block: () -> Result): Result {
        val began = System.nanoTime()
        return block().also { nanoseconds += System.nanoTime() - began }
    }
}

/** One generation: microseconds a step in the engine's `step` and `start`, and in all else. */
private class Measured(val engine: Double, val kotlin: Double)

private fun overheads(artifact: Artifact, texts: List<String>): List<JsonObject> {
    val file = artifact.staticFiles().first()
    val engine = CompiledModelEngine.open(artifact, file, EngineOptions(numThreads = 1))
    val clocked = Clocked(engine)
    val sourceLength = minOf(artifact.manifest.encoderSequenceLength, engine.sourceLength)
    val generator = Generator(
        artifact.tokenizer(),
        clocked,
        artifact.generation,
        sourceLength,
        Dispatchers.Unconfined,
    )
    val settings = mapOf("greedy" to 1, "4 beams" to 4).mapValues { (_, beams) ->
        artifact.generation.copy(numBeams = beams, maxLength = LENGTH, minLength = LENGTH - 1)
    }
    val measured = settings.mapValues { mutableListOf<Measured>() }
    generator.use {
        for (round in 0 until ROUNDS + 1) {
            for (text in texts) {
                for ((name, setting) in settings) {
                    val one = measure(generator, clocked, text, setting)
                    // The first round warms up.
                    if (round > 0) measured.getValue(name) += one
                }
            }
        }
    }
    return measured.map { (name, all) -> row(artifact, name, all) }
}

private fun measure(
    generator: Generator,
    clocked: Clocked,
    text: String,
    settings: GenerationConfig,
): Measured {
    clocked.nanoseconds = 0
    clocked.steps = 0
    val began = System.nanoTime()
    generate(generator, text, settings)
    val all = System.nanoTime() - began
    val microseconds = clocked.steps * MICROSECOND
    return Measured(
        clocked.nanoseconds / microseconds,
        (all - clocked.nanoseconds) / microseconds,
    )
}

private fun generate(
    generator: Generator,
    text: String,
    settings: GenerationConfig,
): GenerationResult = runBlocking {
    (generator.generate(text, settings, truncate = true).last() as GenerationEvent.Finished).result
}

private fun row(artifact: Artifact, name: String, all: List<Measured>): JsonObject {
    val engine = median(all.map { it.engine })
    val kotlin = median(all.map { it.kotlin })
    val share = median(all.map { it.kotlin / it.engine })
    println(
        "%-16s %-8s %8.1f %8.1f %6.1f %%"
            .format(artifact.manifest.preset, name, engine, kotlin, 100 * share),
    )
    return buildJsonObject {
        put("preset", artifact.manifest.preset)
        put("setting", name)
        put("engine_us_per_token", engine)
        put("kotlin_us_per_token", kotlin)
        put("share", share)
        put("generations", all.size)
    }
}

/** Megabytes of UTF-8 a second, the median over passes over all texts. */
private fun tokenizerSpeed(tokenizer: BartTokenizer, texts: List<String>): Double {
    val bytes = texts.sumOf { it.toByteArray().size }
    val seconds = List(PASSES) {
        val began = System.nanoTime()
        val tokens = texts.sumOf { tokenizer.tokenize(it).size }
        check(tokens > texts.size)
        (System.nanoTime() - began) / 1e9
    }
    return bytes / 1e6 / median(seconds.drop(PASSES / 2))
}

private fun median(values: List<Double>): Double = values.sorted()[values.size / 2]

private const val TEXTS = 20
private const val ROUNDS = 5
private const val LENGTH = 32
private const val PASSES = 60
private const val MICROSECOND = 1e3
