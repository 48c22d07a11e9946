package org.bartexport

import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertTrue
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json

class ConfigTest {
    private val defaults = GenerationConfig()

    private val model = BartConfig(
        vocabularySize = 300,
        numLayers = 2,
        numHeads = 4,
        hiddenDim = 24,
        intermediateDim = 48,
        dropout = 0.1,
        maxSequenceLength = 64,
        decoderNumLayers = 1,
        decoderNumHeads = 3,
        decoderIntermediateDim = 32,
        scaleEmbedding = true,
        activationFunction = "gelu",
        finalLogitsBias = false,
    )

    @Test
    fun `a generation out of range is refused in one line that says what is accepted`() {
        val refusals = mapOf<() -> GenerationConfig, String>(
            { defaults.copy(maxLength = 1) } to
                "max_length must be an integer of at least 2, received 1.",
            { defaults.copy(minLength = -1) } to
                "min_length must be an integer of at least 0, received -1.",
            { defaults.copy(numBeams = 0) } to
                "num_beams must be an integer of at least 1, received 0.",
            { defaults.copy(numReturnSequences = 0) } to
                "num_return_sequences must be an integer of at least 1, received 0.",
            { defaults.copy(noRepeatNgramSize = -1) } to
                "no_repeat_ngram_size must be an integer of at least 0, received -1.",
            { defaults.copy(topK = -1) } to "top_k must be an integer of at least 0, received -1.",
            { defaults.copy(seed = -1) } to "seed must be an integer of at least 0, received -1.",
            { defaults.copy(eosTokenIds = listOf(2, -1)) } to
                "eos_token_id must be an integer of at least 0, received -1.",
            { defaults.copy(forcedBosTokenId = -3) } to
                "forced_bos_token_id must be an integer of at least 0, received -3.",
            { defaults.copy(promptLookupNumTokens = -1) } to
                "prompt_lookup_num_tokens must be an integer of at least 0, received -1.",
            { defaults.copy(promptLookupNumTokens = 65) } to
                "prompt_lookup_num_tokens must be at most 64, received 65.",
            { defaults.copy(numBeams = 10_001) } to
                "num_beams must be at most 10000, received 10001.",
            { defaults.copy(doSample = true, numReturnSequences = 10_001) } to
                "num_return_sequences must be at most 10000, received 10001.",
            { defaults.copy(lengthPenalty = Double.NaN) } to
                "length_penalty must be a finite number, received NaN.",
            { defaults.copy(repetitionPenalty = 0.0) } to
                "repetition_penalty must be a number above 0, received 0.0.",
            { defaults.copy(temperature = -1.0) } to
                "temperature must be a number above 0, received -1.0.",
            { defaults.copy(temperature = Double.POSITIVE_INFINITY) } to
                "temperature must be a number above 0, received Infinity.",
            { defaults.copy(topP = 0.0) } to
                "top_p must be a number above 0 and at most 1, received 0.0.",
            { defaults.copy(topP = 1.1) } to
                "top_p must be a number above 0 and at most 1, received 1.1.",
            { defaults.copy(minLength = 30) } to
                "min_length must not exceed max_length, received min_length=30 and max_length=20.",
            { defaults.copy(doSample = true, numBeams = 2) } to
                "do_sample=true requires num_beams=1, received num_beams=2.",
            { defaults.copy(numReturnSequences = 3, numBeams = 2) } to
                "num_return_sequences must not exceed num_beams without do_sample=true, " +
                "received num_return_sequences=3, num_beams=2.",
        )
        for ((make, expected) in refusals) {
            assertEquals(expected, assertFailsWith<ConfigurationError> { make() }.message)
        }
    }

    @Test
    fun `the bounds themselves are accepted`() {
        defaults.copy(maxLength = 2, minLength = 2, topK = 0, topP = 1.0, seed = Long.MAX_VALUE)
        defaults.copy(doSample = true, numReturnSequences = 5, lengthPenalty = -2.0)
        defaults.copy(eosTokenIds = listOf(0, 3))
        defaults.copy(numBeams = 10_000, promptLookupNumTokens = 64)
        defaults.copy(numBeams = 5, numReturnSequences = 5, forcedEosTokenId = 0, seed = 0)
    }

    @Test
    fun `token ids beyond the vocabulary are refused by name`() {
        val generation = defaults.copy(forcedEosTokenId = 7)
        generation.checkTokenIds(8)
        val error = assertFailsWith<ConfigurationError> { generation.checkTokenIds(7) }
        assertEquals(
            "forced_eos_token_id must be a token id from 0 to 6, received 7.",
            error.message,
        )
    }

    @Test
    fun `settings are read under the manifest's names`() {
        val text = """{"max_length": 9, "min_length": 3, "num_beams": 4, "num_return_sequences": 2,
            "length_penalty": 2.5, "early_stopping": "never", "no_repeat_ngram_size": 3,
            "repetition_penalty": 1.5, "do_sample": false, "temperature": 0.5, "top_k": 6,
            "top_p": 0.25, "seed": 4294967296, "prompt_lookup_num_tokens": 5,
            "decoder_start_token_id": 7, "bos_token_id": 8, "pad_token_id": 9,
            "eos_token_id": 10, "forced_bos_token_id": 11, "forced_eos_token_id": null}"""
        val expected = GenerationConfig(
            maxLength = 9,
            minLength = 3,
            numBeams = 4,
            numReturnSequences = 2,
            lengthPenalty = 2.5,
            earlyStopping = EarlyStopping.NEVER,
            noRepeatNgramSize = 3,
            repetitionPenalty = 1.5,
            doSample = false,
            temperature = 0.5,
            topK = 6,
            topP = 0.25,
            seed = 4294967296,
            promptLookupNumTokens = 5,
            decoderStartTokenId = 7,
            bosTokenId = 8,
            padTokenId = 9,
            eosTokenIds = listOf(10),
            forcedBosTokenId = 11,
            forcedEosTokenId = null,
        )
        assertEquals(expected, Json.decodeFromString<GenerationConfig>(text))
        val again = Json.encodeToString(GenerationConfig.serializer(), expected)
        assertEquals(expected, Json.decodeFromString<GenerationConfig>(again))
    }

    @Test
    fun `one end token is a number, several are an array`() {
        for ((json, ids) in mapOf("10" to listOf(10), "[10,2]" to listOf(10, 2))) {
            val text = """{"eos_token_id": $json}"""
            val read = Json.decodeFromString<GenerationConfig>(text)
            assertEquals(ids, read.eosTokenIds)
            assertEquals(text.filterNot { it == ' ' }, Json.encodeToString(read))
        }
        val error = assertFailsWith<ConfigurationError> {
            Json.decodeFromString<GenerationConfig>("""{"eos_token_id": []}""")
        }
        assertEquals(
            "eos_token_id must be a token id or a list of token ids, received [].",
            error.message,
        )
    }

    @Test
    fun `limits that a call leaves alone yield to what it asks for`() {
        val own = GenerationConfig(
            maxLength = 20,
            minLength = 12,
            numBeams = 4,
            numReturnSequences = 3,
        )
        assertEquals(own.copy(maxLength = 8, minLength = 8), own.replace(maxLength = 8))
        assertEquals(own.copy(maxLength = 9, minLength = 9), own.replace(maxNewTokens = 8))
        assertEquals(own.copy(numBeams = 2, numReturnSequences = 2), own.replace(numBeams = 2))
        assertEquals(own, own.replace())
        val samples = GenerationConfig(doSample = true, numReturnSequences = 3)
        assertEquals(samples, samples.replace(numBeams = 1))
        assertFailsWith<ConfigurationError> { own.replace(maxLength = 8, maxNewTokens = 7) }
        assertFailsWith<ConfigurationError> { own.replace(maxNewTokens = 0) }
    }

    @Test
    fun `early stopping is a boolean or never`() {
        val values = mapOf(
            "true" to EarlyStopping.TRUE,
            "false" to EarlyStopping.FALSE,
            "\"never\"" to EarlyStopping.NEVER,
        )
        for ((json, value) in values) {
            val read = Json.decodeFromString<GenerationConfig>("""{"early_stopping": $json}""")
            assertEquals(value, read.earlyStopping)
            assertEquals(json, Json.encodeToString(EarlyStopping.serializer(), value))
        }
        for (json in listOf("1", "\"true\"", "null", "[]")) {
            val error = assertFailsWith<SerializationException> {
                Json.decodeFromString<GenerationConfig>("""{"early_stopping": $json}""")
            }
            assertTrue("true, false or \"never\", received $json" in error.message.orEmpty())
        }
    }

    @Test
    fun `settings that cannot be are refused when they are read`() {
        val error = assertFailsWith<ConfigurationError> {
            Json.decodeFromString<GenerationConfig>("""{"max_length": 1}""")
        }
        assertEquals("max_length must be an integer of at least 2, received 1.", error.message)
    }

    @Test
    fun `an architecture that cannot be is refused in one line`() {
        val refusals = mapOf<() -> BartConfig, String>(
            { model.copy(vocabularySize = 0) } to
                "vocabulary_size must be a positive integer, received 0.",
            { model.copy(numLayers = -1) } to "num_layers must be a positive integer, received -1.",
            { model.copy(maxSequenceLength = 0) } to
                "max_sequence_length must be a positive integer, received 0.",
            { model.copy(decoderNumHeads = 0) } to
                "decoder_num_heads must be a positive integer, received 0.",
            { model.copy(numHeads = 5) } to
                "hidden_dim must be divisible by num_heads, received hidden_dim=24 and " +
                "num_heads=5.",
            { model.copy(decoderNumHeads = 5) } to
                "hidden_dim must be divisible by decoder_num_heads, received hidden_dim=24 and " +
                "decoder_num_heads=5.",
            { model.copy(dropout = 1.0) } to "dropout must be in [0, 1), received 1.0.",
            { model.copy(activationFunction = "gelu_fast") } to
                "activation_function must be one of gelu, gelu_new, relu, silu, tanh, received " +
                "\"gelu_fast\".",
        )
        for ((make, expected) in refusals) {
            assertEquals(expected, assertFailsWith<ConfigurationError> { make() }.message)
        }
    }

    @Test
    fun `an architecture is read under the manifest's names`() {
        val text = """{"vocabulary_size": 300, "num_layers": 2, "num_heads": 4, "hidden_dim": 24,
            "intermediate_dim": 48, "dropout": 0.1, "max_sequence_length": 64,
            "decoder_num_layers": 1, "decoder_num_heads": 3, "decoder_intermediate_dim": 32,
            "scale_embedding": true, "activation_function": "gelu", "final_logits_bias": false}"""
        assertEquals(model, Json.decodeFromString<BartConfig>(text))
    }
}
