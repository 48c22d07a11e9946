/*
 * Tests of LiteRT's API on this machine, with a small model of tools/android_fixtures.py.
 */
package com.google.ai.edge.litert

import java.io.File
import java.nio.file.Path
import kotlin.test.assertContains
import kotlin.test.assertContentEquals
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertTrue
import org.bartexport.Artifact
import org.bartexport.Axis
import org.bartexport.Bucket
import org.bartexport.SignatureName
import org.bartexport.TensorName
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

private val artifact = Artifact.open(
    File(System.getProperty("bart_export.build"), "bart_tiny_symmetric"),
)
private val file = artifact.staticFiles().first()
private val path = artifact.path(file).path
private val buckets = artifact.buckets(file)
private val encode = buckets.first { it.signature == SignatureName.ENCODE }
private val decode =
    buckets.first {
        it.signature == SignatureName.DECODE && it.sizes[Axis.SOURCE] == encode.sizes[Axis.SOURCE]
    }

/** The buffers of one signature, of which [given] replace inputs. */
private class Buffers(
    model: CompiledModel,
    val bucket: Bucket,
    given: Map<String, TensorBuffer> = mapOf(),
) : AutoCloseable {
    private val own =
        (bucket.inputs.keys - given.keys).associateWith { model.createInputBuffer(it, bucket.name) }
    val inputs = own + given.filterKeys { it in bucket.inputs }
    val outputs =
        bucket.outputs.keys.associateWith { model.createOutputBuffer(it, bucket.name) }

    fun fill(from: Int = 1) {
        for ((name, buffer) in own) {
            val spec = bucket.inputs.getValue(name)
            val count = spec.elements
            when (spec.dtype) {
                "int32" -> buffer.writeInt(IntArray(count) { if (count == 1) from else 1 })
                else -> buffer.writeFloat(FloatArray(count) { (it + from) % 7 / 7f })
            }
        }
    }

    override fun close() = (own.values + outputs.values).forEach(TensorBuffer::close)
}

private fun model(cpu: CompiledModel.CpuOptions? = null, environment: Environment? = null) =
    CompiledModel.create(
        path,
        CompiledModel.Options(Accelerator.CPU).apply { cpuOptions = cpu },
        environment,
    )

private fun CompiledModel.run(buffers: Buffers) =
    run(buffers.inputs, buffers.outputs, buffers.bucket.name)

private fun residentBytes() = File("/proc/self/statm").readText().split(" ")[1].toLong() * 4096

/** Returns the threads created by this one or its native code, which inherit its name. */
private fun threads(): Int {
    val own = File("/proc/thread-self/comm").readText()
    return File("/proc/self/task").listFiles().orEmpty().count { task ->
        runCatching { File(task, "comm").readText() }.getOrNull() == own
    }
}

class CompiledModelTest {
    @Test
    fun `what encode writes is what decode reads, without a copy`() {
        model().use { model ->
            Buffers(model, encode).use { encoding ->
                encoding.fill()
                model.run(encoding)
                val cross = encoding.outputs
                Buffers(model, decode, given = cross).use { shared ->
                    Buffers(model, decode).use { copied ->
                        shared.fill()
                        copied.fill()
                        model.run(copied)
                        val without = copied.outputs.getValue(TensorName.LOGITS).readFloat()
                        cross.forEach { (name, buffer) ->
                            copied.inputs.getValue(name).writeFloat(buffer.readFloat())
                        }
                        listOf(copied, shared).forEach(model::run)
                        val expected = copied.outputs.getValue(TensorName.LOGITS).readFloat()
                        val received = shared.outputs.getValue(TensorName.LOGITS).readFloat()
                        assertContentEquals(expected, received)
                        assertFalse(without.contentEquals(received))
                    }
                }
            }
        }
    }

    @Test
    fun `what is written is read`() {
        model().use { model ->
            Buffers(model, encode).use { buffers ->
                val ids = buffers.inputs.getValue(TensorName.ENCODER_TOKEN_IDS)
                val data = IntArray(encode.sizes.getValue(Axis.SOURCE)) { it - 3 }
                ids.writeInt(data)
                assertContentEquals(data, ids.readInt())
            }
        }
    }

    @Test
    fun `a closed handle is refused, and closed again in peace`() {
        val environment = Environment.create()
        val model = model(environment = environment)
        val buffers = Buffers(model, encode)
        buffers.fill()
        val ids = buffers.inputs.getValue(TensorName.ENCODER_TOKEN_IDS)
        repeat(2) { ids.close() }
        assertFailsWith<IllegalStateException> { ids.readInt() }
        assertFailsWith<IllegalStateException> { model.run(buffers) }
        buffers.close()
        repeat(2) { model.close() }
        assertFailsWith<IllegalStateException> { model.run(buffers) }
        assertFailsWith<IllegalStateException> {
            model.createInputBuffer(TensorName.ENCODER_TOKEN_IDS, encode.name)
        }
        environment.close()
        assertFailsWith<IllegalStateException> { environment.getAvailableAccelerators() }
        assertFailsWith<IllegalStateException> { model(environment = environment) }
    }

    @Test
    fun `a name that the model does not have is refused by name`() {
        model().use { model ->
            Buffers(model, encode).use { buffers ->
                val (inputs, outputs) = buffers.inputs to buffers.outputs
                val some = inputs.values.first()
                val first = inputs.keys.first()
                val refused =
                    mapOf(
                        "recode" to { model.run(inputs, outputs, "recode") },
                        "nothing" to
                            { model.run(inputs + ("nothing" to some), outputs, encode.name) },
                        first to { model.run(inputs - first, outputs, encode.name) },
                        "color" to { model.createInputBuffer("color", encode.name) },
                        "taste" to { model.createOutputBuffer("taste", encode.name) },
                    )
                for ((name, call) in refused) {
                    assertContains(
                        assertFailsWith<LiteRtException> {
                            call()
                        }.message.orEmpty(),
                        name,
                    )
                }
            }
        }
    }

    @Test
    fun `values of another type or number are refused`() {
        model().use { model ->
            Buffers(model, encode).use { buffers ->
                val ids = buffers.inputs.getValue(TensorName.ENCODER_TOKEN_IDS)
                val length = encode.sizes.getValue(Axis.SOURCE)
                for (count in listOf(0, length - 1, length + 1)) {
                    assertFailsWith<LiteRtException> { ids.writeInt(IntArray(count)) }
                }
                assertFailsWith<LiteRtException> { ids.writeFloat(FloatArray(length)) }
                assertFailsWith<LiteRtException> { ids.readFloat() }
            }
        }
    }

    @Test
    fun `a buffer of another signature's size is refused`() {
        val longer =
            buckets.first {
                it.signature == SignatureName.ENCODE && it.name != encode.name
            }
        model().use { model ->
            Buffers(model, encode).use { small ->
                Buffers(model, longer).use { large ->
                    listOf(small, large).forEach(Buffers::fill)
                    for ((from, to) in listOf(small to large, large to small)) {
                        assertFailsWith<LiteRtException> {
                            model.run(from.inputs, to.outputs, to.bucket.name)
                        }
                        assertFailsWith<LiteRtException> {
                            model.run(to.inputs, from.outputs, to.bucket.name)
                        }
                    }
                }
            }
        }
    }

    // No truncated model: LiteRT may crash on one; see CompiledModel.create.
    @Test
    fun `a file that is no model is refused with its name`(@TempDir directory: Path) {
        val contents =
            mapOf(
                "empty" to byteArrayOf(),
                "text" to "no model".repeat(100).toByteArray(),
                "start" to File(path).readBytes().copyOf(4),
            )
        for ((name, bytes) in contents) directory.resolve(name).toFile().writeBytes(bytes)
        for (name in contents.keys + "missing") {
            val error =
                assertFailsWith<LiteRtException> { CompiledModel.create("$directory/$name") }
            assertContains(error.message.orEmpty(), "$directory/$name")
        }
    }

    @Test
    fun `two models are open side by side`() {
        Environment.create().use { environment ->
            model(environment = environment).use { one ->
                model().use { other ->
                    val logits =
                        listOf(one, other).map { model ->
                            Buffers(model, decode).use { buffers ->
                                buffers.fill()
                                model.run(buffers)
                                buffers.outputs.getValue(TensorName.LOGITS).readFloat()
                            }
                        }
                    assertContentEquals(logits[0], logits[1])
                }
            }
        }
    }

    @Test
    fun `the weight cache is written once and read again`(@TempDir directory: Path) {
        val cache = directory.resolve("weights of a model #1").toFile()
        val options = CompiledModel.CpuOptions(xnnPackWeightCachePath = cache.path)
        model(options).close()
        val written = cache.lastModified() to cache.length()
        assertTrue(written.second > 0)
        model(options).close()
        assertEquals(written, cache.lastModified() to cache.length())
    }

    @Test
    fun `there are as many threads as asked for`() {
        val before = threads()
        for (count in listOf(1, 2, 7)) {
            model(CompiledModel.CpuOptions(numThreads = count)).use {
                assertEquals(count - 1, threads() - before)
            }
        }
    }

    @Test
    fun `the GPU is refused where there is none`() {
        Environment.create().use {
            assertEquals(setOf(Accelerator.CPU), it.getAvailableAccelerators())
        }
        val error =
            assertFailsWith<LiteRtException> {
                CompiledModel.create(path, CompiledModel.Options(Accelerator.GPU))
            }
        assertContains(error.message.orEmpty(), "GPU")
    }

    @Test
    fun `runs and buffers leave no memory behind`() {
        val largest = buckets.maxBy { bucket -> bucket.inputs.values.sumOf { it.elements } }
        val data = largest.inputs.filterValues { it.dtype == "float32" }
            .mapValues { (_, spec) -> FloatArray(spec.elements) }
        val bytes = data.values.sumOf { it.size.toLong() * Float.SIZE_BYTES }
        val rounds = 200
        model().use { model ->
            Buffers(model, largest).use { buffers ->
                buffers.fill()
                val position = buffers.inputs.getValue(TensorName.POSITION)
                val open = {
                    val made = data.keys.map { model.createInputBuffer(it, largest.name) }
                    made.zip(data.values).forEach { (buffer, values) -> buffer.writeFloat(values) }
                    made.forEach(TensorBuffer::close)
                }
                val all = {
                    repeat(rounds) { open() }
                    repeat(1000) {
                        model.run(buffers)
                        position.readInt()
                    }
                }
                all()
                val before = residentBytes()
                all()
                val grown = residentBytes() - before
                assertTrue(grown < rounds * bytes / 2, "grew by $grown bytes")
            }
        }
    }
}
