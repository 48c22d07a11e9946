/*
 * The architecture of a BART model and its generation settings; mirrors bart_export/config.py.
 */
package org.bartexport

import kotlinx.serialization.KSerializer
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.builtins.ListSerializer
import kotlinx.serialization.builtins.serializer
import kotlinx.serialization.descriptors.PrimitiveKind
import kotlinx.serialization.descriptors.PrimitiveSerialDescriptor
import kotlinx.serialization.descriptors.SerialDescriptor
import kotlinx.serialization.encoding.Decoder
import kotlinx.serialization.encoding.Encoder
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonDecoder
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonEncoder
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.JsonTransformingSerializer

/**
 * The architecture of a BART encoder-decoder, with KerasHub's names.
 *
 * @throws ConfigurationError if a size is not positive, `hiddenDim` is not divisible by the number
 *   of heads, the dropout is outside [0, 1), or the activation function is unknown
 */
@Serializable
public data class BartConfig(
    @SerialName("vocabulary_size") val vocabularySize: Int,
    @SerialName("num_layers") val numLayers: Int,
    @SerialName("num_heads") val numHeads: Int,
    @SerialName("hidden_dim") val hiddenDim: Int,
    @SerialName("intermediate_dim") val intermediateDim: Int,
    val dropout: Double,
    @SerialName("max_sequence_length") val maxSequenceLength: Int,
    @SerialName("decoder_num_layers") val decoderNumLayers: Int,
    @SerialName("decoder_num_heads") val decoderNumHeads: Int,
    @SerialName("decoder_intermediate_dim") val decoderIntermediateDim: Int,
    @SerialName("scale_embedding") val scaleEmbedding: Boolean,
    @SerialName("activation_function") val activationFunction: String,
    @SerialName("final_logits_bias") val finalLogitsBias: Boolean,
) {
    init {
        val sizes = mapOf(
            "vocabulary_size" to vocabularySize,
            "num_layers" to numLayers,
            "num_heads" to numHeads,
            "hidden_dim" to hiddenDim,
            "intermediate_dim" to intermediateDim,
            "max_sequence_length" to maxSequenceLength,
            "decoder_num_layers" to decoderNumLayers,
            "decoder_num_heads" to decoderNumHeads,
            "decoder_intermediate_dim" to decoderIntermediateDim,
        )
        for ((name, size) in sizes) {
            require(size > 0, "$name must be a positive integer, received $size.")
        }
        for ((name, heads) in sizes.filterKeys { it.endsWith("num_heads") }) {
            require(
                hiddenDim % heads == 0,
                "hidden_dim must be divisible by $name, received hidden_dim=$hiddenDim and " +
                    "$name=$heads.",
            )
        }
        require(dropout >= 0 && dropout < 1, "dropout must be in [0, 1), received $dropout.")
        require(
            activationFunction in ACTIVATION_FUNCTIONS,
            "activation_function must be one of ${ACTIVATION_FUNCTIONS.joinToString()}, received " +
                "\"$activationFunction\".",
        )
    }
}

private val ACTIVATION_FUNCTIONS = listOf("gelu", "gelu_new", "relu", "silu", "tanh")

/** When beam search stops: Hugging Face's `early_stopping`, which is true, false or "never". */
@Serializable(with = EarlyStoppingSerializer::class)
public enum class EarlyStopping { TRUE, FALSE, NEVER }

/**
 * Generation settings, with the names, semantics and defaults of Hugging Face's `generate()`
 * (transformers 4.57) and an additional `seed`.
 *
 * Lengths count decoder tokens, including the start token. `topK = 0` and `topP = 1.0` disable
 * those filters. Sampling parameters take effect only with `doSample = true`. Any of the
 * [eosTokenIds] ends a sequence. [promptLookupNumTokens] is the maximum number of next tokens that
 * greedy search guesses and verifies together, if the file was exported with that setting; it does
 * not change the result.
 *
 * @throws ConfigurationError if a value is out of range, or parameters contradict each other
 */
@Serializable
public data class GenerationConfig(
    @SerialName("max_length") val maxLength: Int = 20,
    @SerialName("min_length") val minLength: Int = 0,
    @SerialName("num_beams") val numBeams: Int = 1,
    @SerialName("num_return_sequences") val numReturnSequences: Int = 1,
    @SerialName("length_penalty") val lengthPenalty: Double = 1.0,
    @SerialName("early_stopping") val earlyStopping: EarlyStopping = EarlyStopping.FALSE,
    @SerialName("no_repeat_ngram_size") val noRepeatNgramSize: Int = 0,
    @SerialName("repetition_penalty") val repetitionPenalty: Double = 1.0,
    @SerialName("do_sample") val doSample: Boolean = false,
    val temperature: Double = 1.0,
    @SerialName("top_k") val topK: Int = 50,
    @SerialName("top_p") val topP: Double = 1.0,
    val seed: Long? = null,
    @SerialName("prompt_lookup_num_tokens") val promptLookupNumTokens: Int = 0,
    @SerialName("decoder_start_token_id") val decoderStartTokenId: Int = 2,
    @SerialName("bos_token_id") val bosTokenId: Int = 0,
    @SerialName("pad_token_id") val padTokenId: Int = 1,
    @SerialName("eos_token_id")
    @Serializable(with = TokenIdsSerializer::class)
    val eosTokenIds: List<Int> = listOf(2),
    @SerialName("forced_bos_token_id") val forcedBosTokenId: Int? = null,
    @SerialName("forced_eos_token_id") val forcedEosTokenId: Int? = null,
) {
    init {
        within("max_length", maxLength, 2)
        within("min_length", minLength, 0)
        within("num_beams", numBeams, 1, MAX_BEAMS)
        within("num_return_sequences", numReturnSequences, 1, MAX_BEAMS)
        within("no_repeat_ngram_size", noRepeatNgramSize, 0)
        within("top_k", topK, 0)
        within("prompt_lookup_num_tokens", promptLookupNumTokens, 0, MAX_DRAFTED)
        seed?.let { require(it >= 0, "seed must be an integer of at least 0, received $it.") }
        require(
            eosTokenIds.isNotEmpty(),
            "eos_token_id must be a token id or a list of token ids, received [].",
        )
        for ((name, tokenId) in tokenIds()) {
            within(name, tokenId, 0)
        }
        number("length_penalty", lengthPenalty, "a finite number") { true }
        number("repetition_penalty", repetitionPenalty, "a number above 0") { it > 0 }
        number("temperature", temperature, "a number above 0") { it > 0 }
        number("top_p", topP, "a number above 0 and at most 1") { it > 0 && it <= 1 }
        require(
            minLength <= maxLength,
            "min_length must not exceed max_length, received min_length=$minLength and " +
                "max_length=$maxLength.",
        )
        require(
            !doSample || numBeams == 1,
            "do_sample=true requires num_beams=1, received num_beams=$numBeams.",
        )
        require(
            doSample || numReturnSequences <= numBeams,
            "num_return_sequences must not exceed num_beams without do_sample=true, received " +
                "num_return_sequences=$numReturnSequences, num_beams=$numBeams.",
        )
    }

    /** Throws a [ConfigurationError] if a token id is not in the model's vocabulary. */
    internal fun checkTokenIds(vocabularySize: Int) {
        for ((name, tokenId) in tokenIds()) {
            require(
                tokenId < vocabularySize,
                "$name must be a token id from 0 to ${vocabularySize - 1}, received $tokenId.",
            )
        }
    }

    /**
     * Returns a copy with the given values. `minLength` is lowered to [maxLength] and
     * `numReturnSequences` to [numBeams] if they would exceed it.
     *
     * @param maxNewTokens like [maxLength], but not counting the start token
     * @throws ConfigurationError if a value is out of range, or both lengths are given
     */
    public fun replace(
        maxLength: Int? = null,
        maxNewTokens: Int? = null,
        numBeams: Int? = null,
    ): GenerationConfig {
        require(
            maxLength == null || maxNewTokens == null,
            "max_length and max_new_tokens set the same length. Give only one of them.",
        )
        val longest = maxLength ?: maxNewTokens?.plus(1) ?: this.maxLength
        val beams = numBeams ?: this.numBeams
        return copy(
            maxLength = longest,
            minLength = minOf(minLength, longest),
            numBeams = beams,
            numReturnSequences =
            if (doSample) numReturnSequences else minOf(numReturnSequences, beams),
        )
    }

    private fun tokenIds(): List<Pair<String, Int>> = listOf(
        "decoder_start_token_id" to decoderStartTokenId,
        "bos_token_id" to bosTokenId,
        "pad_token_id" to padTokenId,
        "forced_bos_token_id" to forcedBosTokenId,
        "forced_eos_token_id" to forcedEosTokenId,
    ).mapNotNull { (name, tokenId) -> tokenId?.let { name to it } } +
        eosTokenIds.map { "eos_token_id" to it }
}

/** Serializes `eos_token_id`: a number, or an array of several. */
internal object TokenIdsSerializer :
    JsonTransformingSerializer<List<Int>>(ListSerializer(Int.serializer())) {
    override fun transformDeserialize(element: JsonElement): JsonElement =
        element as? JsonArray ?: JsonArray(listOf(element))

    override fun transformSerialize(element: JsonElement): JsonElement =
        (element as JsonArray).singleOrNull() ?: element
}

/** Serializes `early_stopping`: a JSON boolean or "never". */
internal object EarlyStoppingSerializer : KSerializer<EarlyStopping> {
    private val values = mapOf(
        JsonPrimitive(true) to EarlyStopping.TRUE,
        JsonPrimitive(false) to EarlyStopping.FALSE,
        JsonPrimitive("never") to EarlyStopping.NEVER,
    )

    override val descriptor: SerialDescriptor =
        PrimitiveSerialDescriptor("org.bartexport.EarlyStopping", PrimitiveKind.STRING)

    override fun deserialize(decoder: Decoder): EarlyStopping {
        val value = (decoder as JsonDecoder).decodeJsonElement()
        return values[value] ?: throw SerializationException(
            "early_stopping must be true, false or \"never\", received $value.",
        )
    }

    override fun serialize(encoder: Encoder, value: EarlyStopping) {
        val element = values.entries.first { it.value == value }.key
        (encoder as JsonEncoder).encodeJsonElement(element)
    }
}

private const val MAX_BEAMS = 10_000
private const val MAX_DRAFTED = 64

private fun require(condition: Boolean, message: String) {
    if (!condition) throw ConfigurationError(message)
}

private fun within(name: String, value: Int, lowest: Int, highest: Int = Int.MAX_VALUE) {
    require(value >= lowest, "$name must be an integer of at least $lowest, received $value.")
    require(value <= highest, "$name must be at most $highest, received $value.")
}

private fun number(name: String, value: Double, accepted: String, accepts: (Double) -> Boolean) =
    require(value.isFinite() && accepts(value), "$name must be $accepted, received $value.")
