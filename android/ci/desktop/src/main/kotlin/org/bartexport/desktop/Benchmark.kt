/*
 * Measures Kotlin's overhead per token, which is the search, the tokenizer and the events of a
 * generation, next to the engine's time; `make bench-android` runs it.
 *
 * It prints a table and a line of JSON. The JVM of this machine is not a phone's, so the shares are
 * more meaningful than the times.
 */
package org.bartexport.desktop

import java.io.File
import java.util.Locale
import kotlin.random.Random
import kotlin.system.exitProcess
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonObjectBuilder
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonObject
import org.bartexport.Artifact
import org.bartexport.litert.CompiledModelEngine
import org.bartexport.litert.EngineOptions
import org.bartexport.litert.openGenerator
import org.bartexport.runtime.Generator

/** Benchmarks a bundle with the texts of a JSON Lines file. */
fun main(arguments: Array<String>) {
    if (arguments.size != 2) {
        System.err.println("usage: Benchmark BUNDLE TEXTS.jsonl")
        exitProcess(2)
    }
    val artifact = Artifact.open(File(arguments[0]))
    val texts = File(arguments[1]).readLines()
        .map { Json.parseToJsonElement(it).jsonObject.getValue("text").jsonPrimitive.content }
    val opening = opening(artifact.directory)
    val tokenizer = tokenizer(artifact, texts)
    val generations = generations(artifact, texts)
    print(table(artifact, opening, tokenizer, generations))
    println(line(artifact, opening, tokenizer, generations))
}

/** Median milliseconds to open a bundle, without and with a weight cache. */
private class Opening(val packing: Double, val cached: Double)

/** Times openings of a verified bundle. */
private fun opening(directory: File): Opening {
    val cache = File.createTempFile("weights", null).also { it.delete() }
    fun median(options: EngineOptions): Double {
        fun open() = runBlocking { openGenerator(directory, options) }
        open().close()
        return (1..OPENINGS).map {
            val began = System.nanoTime()
            open().close()
            (System.nanoTime() - began) / NANOSECONDS_A_MILLISECOND
        }.median()
    }
    try {
        return Opening(median(EngineOptions()), median(EngineOptions(cacheDirectory = cache)))
    } finally {
        cache.deleteRecursively()
    }
}

/** Median MB/s on one core: for all texts once, and for [PASSES] passes in different orders. */
private class Tokenizing(val cold: Double, val mixed: Double)

/** Times new tokenizers after the JVM has compiled their code. */
private fun tokenizer(artifact: Artifact, texts: List<String>): Tokenizing {
    val megabytes = texts.sumOf { it.toByteArray().size } / BYTES_A_MEGABYTE
    val random = Random(0)
    val rounds = (1..TOKENIZER_ROUNDS).map {
        val fresh = artifact.tokenizer()
        val orders = List(PASSES) { texts.shuffled(random) }
        orders.map { order ->
            val began = System.nanoTime()
            val tokens = order.sumOf { fresh.tokenize(it).size }
            check(tokens > 0)
            (System.nanoTime() - began) / NANOSECONDS_A_SECOND
        }
    }.drop(TOKENIZER_ROUNDS / 2)
    return Tokenizing(
        cold = rounds.map { megabytes / it.first() }.median(),
        mixed = rounds.map { megabytes * PASSES / it.sum() }.median(),
    )
}

/** Generates from some texts with each setting in turn, after a warm-up. */
private fun generations(artifact: Artifact, texts: List<String>): Map<Setting, Shares> {
    val engine = TimedEngine(CompiledModelEngine.open(artifact, artifact.staticFile()))
    val sources = minOf(artifact.manifest.encoderSequenceLength, engine.sourceLength)
    val tokenizer = artifact.tokenizer()
    val generators = SETTINGS.associateWith { setting ->
        // A fixed length, so that an untrained model can be measured too.
        val generation = artifact.generation
            .copy(numBeams = setting.numBeams, minLength = LENGTH, maxLength = LENGTH)
        Generator(tokenizer, engine, generation, sources, setting.dispatcher)
    }
    val chosen = texts.filterIndexed { number, _ -> number % (texts.size / TEXTS) == 0 }
    fun round(): Map<Setting, List<Times>> {
        val times = SETTINGS.associateWith { mutableListOf<Times>() }
        for (text in chosen) {
            for ((setting, generator) in generators) {
                times.getValue(setting) += generator.time(engine, text)
            }
        }
        return times
    }
    engine.use {
        // A small model needs many rounds until the JVM has compiled the code.
        rounds(WARM_UP, ::round)
        val measured = rounds(MEASURED, ::round)
        return SETTINGS.associateWith { Shares(measured.flatMap { round -> round.getValue(it) }) }
    }
}

/** Repeats rounds for this many seconds, at least once. */
private fun <Round> rounds(seconds: Double, round: () -> Round): List<Round> {
    val end = System.nanoTime() + seconds * NANOSECONDS_A_SECOND
    return buildList {
        do add(round()) while (System.nanoTime() < end)
    }
}

/**
 * A setting to measure: on the collector's thread, or on another one as in the app, which adds the
 * hand-over of an event for each token.
 */
private class Setting(val name: String, val numBeams: Int, val dispatcher: CoroutineDispatcher)

private fun Generator.time(engine: TimedEngine, text: String): Times {
    engine.reset()
    val began = System.nanoTime()
    runBlocking { generate(text, truncate = true).collect() }
    return engine.times(System.nanoTime() - began)
}

private fun table(
    artifact: Artifact,
    opening: Opening,
    tokenizer: Tokenizing,
    generations: Map<Setting, Shares>,
): String = buildString {
    val name = artifact.manifest.preset
    appendLine("$name, ${EngineOptions().numThreads} threads, JVM ${Runtime.version().feature()}")
    val heading = listOf("encode ms", "engine ms/token", "Kotlin ms/token", "share")
    appendLine("%-24s".format("") + heading.joinToString("") { "%18s".format(it) })
    for ((setting, shares) in generations) {
        val cells = listOf(
            "%.2f".format(Locale.ROOT, shares.encode),
            "%.3f".format(Locale.ROOT, shares.engine),
            "%.3f".format(Locale.ROOT, shares.overhead),
            "%.1f %%".format(Locale.ROOT, shares.share * PERCENT),
        )
        appendLine("%-24s".format(setting.name) + cells.joinToString("") { "%18s".format(it) })
    }
    appendLine(
        "tokenizer %.2f MB/s, %.2f MB/s with a cold cache".format(
            Locale.ROOT,
            tokenizer.mixed,
            tokenizer.cold,
        ),
    )
    appendLine(
        "opening %.0f ms, %.0f ms with packed weights on disk".format(
            Locale.ROOT,
            opening.packing,
            opening.cached,
        ),
    )
}

private fun line(
    artifact: Artifact,
    opening: Opening,
    tokenizer: Tokenizing,
    generations: Map<Setting, Shares>,
): JsonObject = buildJsonObject {
    put("preset", artifact.manifest.preset)
    put("threads", EngineOptions().numThreads)
    for ((setting, shares) in generations) putJsonObject(setting.name) { putShares(shares) }
    putJsonObject("tokenizer_megabytes_per_second") {
        put("mixed", tokenizer.mixed)
        put("cold", tokenizer.cold)
    }
    putJsonObject("opening_milliseconds") {
        put("packing", opening.packing)
        put("cached", opening.cached)
    }
}

private fun JsonObjectBuilder.putShares(shares: Shares) {
    put("encode_milliseconds", shares.encode)
    put("engine_milliseconds_per_token", shares.engine)
    put("overhead_milliseconds_per_token", shares.overhead)
    put("overhead_share", shares.share)
}

private val SETTINGS = mapOf("greedy" to 1, "4 beams" to 4).flatMap { (name, beams) ->
    listOf(
        Setting(name, beams, Dispatchers.Unconfined),
        Setting("$name, app's threads", beams, Dispatchers.Default.limitedParallelism(1)),
    )
}
private const val TEXTS = 20
private const val LENGTH = 20 // tokens, BART's own default
private const val WARM_UP = 15.0 // seconds
private const val MEASURED = 20.0 // seconds
private const val OPENINGS = 5
private const val TOKENIZER_ROUNDS = 100
private const val PASSES = 5
private const val PERCENT = 100
private const val BYTES_A_MEGABYTE = 1e6
private const val NANOSECONDS_A_SECOND = 1e9
