/*
 * The engine for static builds on LiteRT's `CompiledModel`; mirrors
 * bart_export/runtime/compiled_model.py.
 */
package org.bartexport.litert

import java.io.File
import org.bartexport.Artifact
import org.bartexport.Axis
import org.bartexport.BartConfig
import org.bartexport.Bucket
import org.bartexport.EngineError
import org.bartexport.runtime.Decoding
import org.bartexport.runtime.Fitted
import org.bartexport.runtime.Logits
import org.bartexport.runtime.SearchEvent
import org.bartexport.runtime.Seq2SeqEngine
import org.bartexport.runtime.Stepped
import org.bartexport.runtime.fillRows
import org.bartexport.runtime.fit

/**
 * An engine that runs each request in the smallest bucket of a static `.tflite` file that fits.
 *
 * Only the current bucket has buffers, since those of a large model take tens of megabytes.
 * Functions may be called from any thread; [close] waits for a running step.
 *
 * @property accelerator the accelerator in use
 * @property fallback one line on why the requested accelerator is not in use, or null if it is
 */
public class CompiledModelEngine private constructor(
    override val config: BartConfig,
    private val buckets: List<Bucket>,
    private val opened: OpenedModel,
    public val accelerator: Accelerator,
    public val fallback: String?,
) : Seq2SeqEngine {
    /** Maximum number of source tokens. */
    public val sourceLength: Int = buckets.maxOf { it.sizes.getValue(Axis.SOURCE) }

    private var serial = 0
    private var buffered: BufferedBuckets? = null
    private var closed = false

    /**
     * @throws org.bartexport.InputError if the request exceeds the largest bucket
     * @throws EngineError if LiteRT fails, or the engine is closed
     */
    @Synchronized
    override fun start(tokenIds: IntArray, numBeams: Int, maxLength: Int): Decoding {
        checkOpen()
        val fitted = fit(config, buckets, tokenIds, numBeams, maxLength)
        serial += 1
        val chosen = buffers(fitted)
        encodeSource(chosen, fitted.tokenIds, fitted.paddingMask)
        return Decoding(serial)
    }

    /** @throws EngineError if a later [start] has ended this decoding, and as [start] does */
    @Synchronized
    override fun step(state: Decoding, request: SearchEvent.Decode): Stepped<Decoding> {
        checkOpen()
        val chosen = buffered
        if (chosen == null || state.serial != serial) throw ended()
        val draft = chosen.draft?.takeIf { it.fits(request) }
        val logits =
            if (draft == null) stepRows(chosen, request) else stepDraft(chosen, draft, request)
        return Stepped(logits, state)
    }

    @Synchronized
    override fun close() {
        if (closed) return
        closed = true
        buffered?.close()
        opened.close()
    }

    private fun buffers(fitted: Fitted): BufferedBuckets {
        val current = buffered
        if (current != null && current.decode.bucket == fitted.decode) return current
        buffered = null
        current?.close()
        return BufferedBuckets(opened.model, fitted).also { buffered = it }
    }

    /** The model has no embeddings for later positions, not even for padding. */
    private fun BufferedSignature.fits(request: SearchEvent.Decode): Boolean =
        request.draft.isNotEmpty() &&
            request.position + bucket.sizes.getValue(Axis.DRAFT) <= config.maxSequenceLength

    private fun stepRows(chosen: BufferedBuckets, request: SearchEvent.Decode): Logits {
        val (rows, places) = fillRows(
            chosen.decode.bucket.sizes.getValue(Axis.BEAMS),
            request.tokenIds,
            request.beamIndex,
        )
        val logits = decodeRows(chosen, request.position, rows, places)
        val beams = request.tokenIds.size
        val size = logits.size / rows.size * beams
        return Logits(if (size == logits.size) logits else logits.copyOf(size), beams)
    }

    private fun stepDraft(
        chosen: BufferedBuckets,
        draft: BufferedSignature,
        request: SearchEvent.Decode,
    ): Logits {
        val size = draft.bucket.sizes.getValue(Axis.DRAFT)
        val tokenIds = (request.tokenIds + request.draft).let { it.copyOf(minOf(it.size, size)) }
        return Logits(decodeDraft(chosen, draft, request.position, tokenIds), tokenIds.size)
    }

    private fun checkOpen() {
        if (closed) throw EngineError("This engine is closed. Open another one.")
    }

    private fun ended() = EngineError(
        "An engine runs one generation at a time, and another one has begun. Finish a " +
            "generation before the next one, or open a second engine.",
    )

    /** Decodes one token, and one with a draft, to test the accelerator. */
    private fun tryOut() {
        val state = start(intArrayOf(0), 1, 1)
        for (draft in listOf(IntArray(0), IntArray(1))) {
            val request = SearchEvent.Decode(intArrayOf(0), intArrayOf(0), draft = draft)
            val logits = step(state, request).logits.values
            if (logits.any { !it.isFinite() }) throw EngineError("its results are not finite.")
        }
    }

    public companion object {
        /**
         * Opens a static build of an artifact.
         *
         * If the GPU is requested but LiteRT finds none, cannot compile the file for it or fails to
         * compute a token, the engine uses the CPU and [fallback] gives the reason.
         *
         * @param file the file's name in the manifest
         * @throws org.bartexport.ArtifactError if the file is missing or modified, or is not a
         *   static build verified with LiteRT
         * @throws EngineError if LiteRT cannot open the file on the CPU
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
