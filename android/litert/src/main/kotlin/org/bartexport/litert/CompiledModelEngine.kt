/*
 * The engine for static builds on LiteRT's `CompiledModel`: it takes the smallest bucket of the
 * file that a request fits in; mirrors bart_export/runtime/static_engine.py.
 *
 * The protocol is that of org.bartexport.runtime, the buckets come from the file's entry in the
 * manifest. `encode` writes where `decode` reads and two sets of cache buffers alternate. How a
 * bucket is chosen and filled is not known here, nor is Android: this class also runs on a
 * desktop's JVM.
 */
package org.bartexport.litert

import java.io.File
import org.bartexport.Artifact
import org.bartexport.Axis
import org.bartexport.BartConfig
import org.bartexport.Bucket
import org.bartexport.EngineError
import org.bartexport.runtime.Decoding
import org.bartexport.runtime.Logits
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.Stepped
import org.bartexport.runtime.fillRows
import org.bartexport.runtime.fit

/**
 * An engine over the signatures of a static `.tflite` file.
 *
 * Buffers are made when a bucket is first used and freed when another one is: those of a large
 * model's largest bucket take tens of megabytes, and a phone has none to spare. Its functions may
 * be called from any thread, one at a time; [close] waits for the step that is running.
 *
 * @property accelerator what the model is computed on
 * @property fallback why that is not what was asked for, in one line; null where it is
 */
public class CompiledModelEngine private constructor(
    override val config: BartConfig,
    private val buckets: List<Bucket>,
    private val opened: OpenedModel,
    public val accelerator: Accelerator,
    public val fallback: String?,
) : Seq2SeqEngine {
    /** Most tokens of a source that the file has room for. */
    public val sourceLength: Int = buckets.maxOf { it.sizes.getValue(Axis.SOURCE) }

    private var serial = 0
    private var buffered: BufferedBuckets? = null
    private var closed = false

    /**
     * @throws org.bartexport.InputError for more than the largest bucket takes
     * @throws EngineError if LiteRT fails, or after [close]
     */
    @Synchronized
    override fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding {
        checkOpen()
        val fitted = fit(config, buckets, tokenIds, numBeams, maxLength)
        serial += 1
        val chosen = buffers(fitted.encode, fitted.decode)
        return Decoding(serial, 0, encodeSource(chosen, fitted.tokenIds, fitted.paddingMask))
    }

    /** @throws EngineError for a decoding that another one has ended, and as [start] does */
    @Synchronized
    override fun step(
        state: Decoding,
        tokenIds: IntArray,
        beamIndex: IntArray,
    ): Stepped<Decoding> {
        checkOpen()
        val decode = buffered?.decode
        val caches = state.caches
        if (decode == null || caches !is Caches || state.serial != serial) throw ended()
        val (rows, places) = fillRows(
            decode.bucket.sizes.getValue(Axis.BEAMS),
            tokenIds,
            beamIndex,
        )
        val logits = decodeRows(decode, caches, state.position, rows, places)
        val asked = tokenIds.size
        val wanted = logits.size / rows.size * asked
        val next = Decoding(serial, state.position + 1, Caches(caches.written, caches.read))
        val kept = if (wanted == logits.size) logits else logits.copyOf(wanted)
        return Stepped(Logits(kept, asked), next)
    }

    @Synchronized
    override fun close() {
        if (closed) return
        closed = true
        buffered?.close()
        opened.close()
    }

    private fun buffers(encode: Bucket, decode: Bucket): BufferedBuckets {
        val current = buffered
        if (current != null && current.decode.bucket == decode) return current
        buffered = null
        current?.close()
        return BufferedBuckets(opened.model, encode, decode).also { buffered = it }
    }

    private fun checkOpen() {
        if (closed) throw EngineError("This engine was closed. Open it again to go on.")
    }

    private fun ended() = EngineError(
        "An engine runs one generation at a time, and another one has begun. Finish a text " +
            "before the next one, or open a second engine.",
    )

    /** Decodes one token from one, to see whether the accelerator can. */
    private fun tryOut() {
        val state = start(intArrayOf(0), 1, 1)
        val logits = step(state, intArrayOf(0), intArrayOf(0)).logits.values
        if (logits.any { !it.isFinite() }) throw EngineError("its results are no numbers.")
    }

    public companion object {
        /**
         * Opens a static build of an artifact by its path, so that it is mapped, not read.
         *
         * Where the GPU is asked for and LiteRT finds none, cannot compile the file for it, or
         * fails to compute a first token, the engine is on the CPU and [fallback] says why.
         *
         * @param file its name in the manifest
         * @throws org.bartexport.ArtifactError for a file that is missing, altered, or no static
         *   build that LiteRT computes rightly
         * @throws EngineError if LiteRT cannot open it on the CPU
         */
        public fun open(
            artifact: Artifact,
            file: String,
            options: EngineOptions = EngineOptions(),
        ): CompiledModelEngine {
            val buckets = artifact.buckets(file)
            val path = artifact.path(file)
            val onCpu = { fallback: String? ->
                val opened = openOnCpu(artifact, file, path, options)
                CompiledModelEngine(artifact.config, buckets, opened, Accelerator.CPU, fallback)
            }
            if (options.accelerator == Accelerator.CPU) return onCpu(null)
            return try {
                openOnGpu(artifact.config, buckets, path, options)
            } catch (error: EngineError) {
                onCpu(error.message)
            }
        }

        private fun openOnGpu(
            config: BartConfig,
            buckets: List<Bucket>,
            path: File,
            options: EngineOptions,
        ): CompiledModelEngine {
            val opened = openModel(path, Accelerator.GPU, options.numThreads, null)
            val engine = CompiledModelEngine(config, buckets, opened, Accelerator.GPU, null)
            return try {
                engine.apply { tryOut() }
            } catch (error: EngineError) {
                engine.close()
                throw error
            }
        }

        private fun openOnCpu(
            artifact: Artifact,
            file: String,
            path: File,
            options: EngineOptions,
        ): OpenedModel {
            val openWith = { cache: File? ->
                openModel(path, Accelerator.CPU, options.numThreads, cache)
            }
            val directory = options.cacheDirectory ?: return openWith(null)
            val entry = artifact.manifest.files.getValue(file)
            return WeightCache(directory, entry.sha256, entry.bytes).open(openWith)
        }
    }
}
