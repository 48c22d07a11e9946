"""A BART over batches in TensorFlow: the encoder, the whole decoder, and what their layers share.

Ids come in batch-major with their lengths (or masks), hidden states, logits and log-probabilities
go out. Weights are laid out as `graph.parameters.BatchParameters` says, as variables or tensors; a
matrix of another dtype is cast once a call. Inside, hidden states are rows, (batch * length,
hidden), so that a projection is one product. Nothing here chooses a token.
"""

from collections.abc import Sequence

import tensorflow as tf

from bart_export.checkpoints.names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.config import BartConfig
from bart_export.graph.layers import CLOSED, Parameters, attend, feedforward, layer_norm, linear

Tensors = dict[str, tf.Tensor]
SCORED_ROWS = 64  # positions whose logits `score` holds at a time


def float32(parameters: Parameters) -> Parameters:
    """Return the parameters as float32.

    Called once in a graph and outside of loops, so that no step casts a matrix again. A float32
    variable stays one: a loop reads it without carrying it along.
    """
    return {
        name: value if value.dtype == tf.float32 else tf.cast(value, tf.float32)
        for name, value in parameters.items()
    }


def mask(lengths: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Return the padding mask, int32 (batch, length), of sequences of at least one token."""
    return tf.sequence_mask(tf.maximum(lengths, 1), length, tf.int32)


def encode(
    config: BartConfig,
    parameters: Parameters,
    encoder_token_ids: tf.Tensor,
    encoder_lengths: tf.Tensor,
) -> tf.Tensor:
    """Run the encoder: ids (batch, source) to (batch, source, hidden)."""
    padding_mask = mask(encoder_lengths, tf.shape(encoder_token_ids)[1])
    # Whatever stands beyond a sequence's end need not be a token.
    return encode_masked(
        config, float32(parameters), encoder_token_ids * padding_mask, padding_mask
    )


def decode(
    config: BartConfig,
    parameters: Parameters,
    encoded: tf.Tensor,
    encoder_lengths: tf.Tensor,
    decoder_token_ids: tf.Tensor,
    decoder_lengths: tf.Tensor,
) -> tf.Tensor:
    """Run the decoder over whole sequences, ids (batch, target), to (batch, target, hidden)."""
    padding_mask = mask(decoder_lengths, tf.shape(decoder_token_ids)[1])
    return decode_masked(
        config,
        float32(parameters),
        encoded,
        mask(encoder_lengths, tf.shape(encoded)[1]),
        decoder_token_ids * padding_mask,
        padding_mask,
    )


def backbone(
    config: BartConfig,
    parameters: Parameters,
    encoder_token_ids: tf.Tensor,
    encoder_padding_mask: tf.Tensor,
    decoder_token_ids: tf.Tensor,
    decoder_padding_mask: tf.Tensor,
) -> Tensors:
    """Compute both outputs of `BartBackbone`. A mask is 0 at padding, wherever that is."""
    parameters = float32(parameters)
    encoder_padding_mask = tf.cast(encoder_padding_mask != 0, tf.int32)
    decoder_padding_mask = tf.cast(decoder_padding_mask != 0, tf.int32)
    encoded = encode_masked(config, parameters, encoder_token_ids, encoder_padding_mask)
    decoded = decode_masked(
        config, parameters, encoded, encoder_padding_mask, decoder_token_ids, decoder_padding_mask
    )
    return {"encoder_sequence_output": encoded, "decoder_sequence_output": decoded}


def score(
    config: BartConfig,
    parameters: Parameters,
    encoder_token_ids: tf.Tensor,
    encoder_lengths: tf.Tensor,
    decoder_token_ids: tf.Tensor,
    decoder_lengths: tf.Tensor,
) -> tf.Tensor:
    """Return the log-probability of each decoder token after those before it, (batch, target).

    It is 0 for the first token and beyond a sequence's length.
    """
    parameters = float32(parameters)
    encoded = encode(config, parameters, encoder_token_ids, encoder_lengths)
    real = mask(decoder_lengths, tf.shape(decoder_token_ids)[1])
    ids = decoder_token_ids * real
    hidden = decode(config, parameters, encoded, encoder_lengths, ids, decoder_lengths)
    rows = tf.reshape(hidden[:, :-1], [-1, config.hidden_dim])
    following = tf.reshape(ids[:, 1:], [-1])
    # Logits of all positions at once would be the largest tensor by far.
    count = tf.shape(following)[0]
    missing = -count % SCORED_ROWS
    scored = tf.map_fn(
        lambda block: token_log_probabilities(config, parameters, *block),
        (
            tf.reshape(tf.pad(rows, [[0, missing], [0, 0]]), [-1, SCORED_ROWS, config.hidden_dim]),
            tf.reshape(tf.pad(following, [[0, missing]]), [-1, SCORED_ROWS]),
        ),
        fn_output_signature=tf.TensorSpec([SCORED_ROWS], tf.float32),
    )
    scored = tf.reshape(tf.reshape(scored, [-1])[:count], tf.shape(ids[:, 1:]))
    return tf.pad(scored * tf.cast(real[:, 1:], tf.float32), [[0, 0], [1, 0]])


def token_log_probabilities(
    config: BartConfig, parameters: Parameters, hidden: tf.Tensor, token_ids: tf.Tensor
) -> tf.Tensor:
    """Return the log-probability of one token (rows,) after each of the states (rows, hidden)."""
    scores = logits(config, parameters, hidden)
    return tf.gather(scores, token_ids, batch_dims=1) - tf.reduce_logsumexp(scores, -1)


def encode_masked(
    config: BartConfig, parameters: Parameters, token_ids: tf.Tensor, padding_mask: tf.Tensor
) -> tf.Tensor:
    """Run the encoder under a padding mask: ids (batch, source) to (batch, source, hidden)."""
    batch, heads, hidden = tf.shape(token_ids)[0], config.num_heads, config.hidden_dim
    closed, seen = closed_and_seen(padding_mask[:, None, None, :])
    x = embed_sequences(config, parameters, "encoder", token_ids)
    for layer in range(config.num_layers):
        name = f"transformer_encoder_layer_{layer}"
        attention = f"{name}/self_attention_layer"
        query, key, value = projected(
            config, parameters, f"{attention}/query_key_value", x, batch, heads
        )
        mixed = merged(attend(query, key, value, closed) * seen, hidden)
        mixed = linear(parameters, f"{attention}/attention_output", mixed)
        x = layer_norm(parameters, f"{name}/self_attention_layer_norm", x + mixed)
        x = feedforward(parameters, name, x, config.activation_function)
    return tf.reshape(x, [batch, -1, hidden])


def decode_masked(
    config: BartConfig,
    parameters: Parameters,
    encoded: tf.Tensor,
    encoder_padding_mask: tf.Tensor,
    token_ids: tf.Tensor,
    padding_mask: tf.Tensor,
) -> tf.Tensor:
    """Run the decoder over whole sequences under padding masks: (batch, target, hidden)."""
    batch, heads, hidden = tf.shape(token_ids)[0], config.decoder_heads, config.hidden_dim
    length = tf.shape(token_ids)[1]
    causal = tf.linalg.band_part(tf.ones([length, length], tf.int32), -1, 0)
    closed, seen = closed_and_seen(padding_mask[:, None, None, :] * causal)
    source_closed, source_seen = closed_and_seen(encoder_padding_mask[:, None, None, :])
    encoded = tf.reshape(encoded, [-1, hidden])
    x = embed_sequences(config, parameters, "decoder", token_ids)
    for layer in range(config.decoder_layers):
        name = f"transformer_decoder_layer_{layer}"
        attention = f"{name}/self_attention"
        query, key, value = projected(
            config, parameters, f"{attention}/query_key_value", x, batch, heads
        )
        mixed = merged(attend(query, key, value, closed) * seen, hidden)
        mixed = linear(parameters, f"{attention}/attention_output", mixed)
        x = layer_norm(parameters, f"{name}/self_attention_layer_norm", x + mixed)
        attention = f"{name}/cross_attention"
        (query,) = projected(config, parameters, f"{attention}/query", x, batch, heads)
        key, value = projected(config, parameters, f"{attention}/key_value", encoded, batch, heads)
        mixed = merged(attend(query, key, value, source_closed) * source_seen, hidden)
        mixed = linear(parameters, f"{attention}/attention_output", mixed)
        x = layer_norm(parameters, f"{name}/cross_attention_layer_norm", x + mixed)
        x = feedforward(parameters, name, x, config.activation_function)
    return tf.reshape(x, [batch, -1, hidden])


def logits(config: BartConfig, parameters: Parameters, hidden: tf.Tensor) -> tf.Tensor:
    """Return the logits of every token: (rows, hidden) to (rows, vocabulary)."""
    # With the table on the left TensorFlow reads it once, however many rows there are.
    scores = tf.transpose(tf.matmul(parameters[TOKEN_EMBEDDING], hidden, transpose_b=True))
    if config.final_logits_bias:
        scores += parameters[FINAL_LOGITS_BIAS]
    return scores


def embed(
    config: BartConfig,
    parameters: Parameters,
    side: str,
    token_ids: tf.Tensor,
    positions: tf.Tensor,
) -> tf.Tensor:
    """Sum token and position embeddings and normalize them: ids (..., length) to (rows, hidden).

    Positions are those of the last axis of the ids, or one for all.
    """
    # Gathering from a variable itself makes TensorFlow copy it whenever it is read thereafter.
    table = tf.convert_to_tensor(parameters[TOKEN_EMBEDDING])
    places = tf.convert_to_tensor(parameters[f"{side}_position_embedding/embeddings"])
    tokens = tf.gather(table, token_ids)
    if config.scale_embedding:
        tokens *= float(config.hidden_dim) ** 0.5
    x = tokens + tf.gather(places, positions)
    x = tf.reshape(x, [-1, config.hidden_dim])
    return layer_norm(parameters, f"{side}_embeddings_layer_norm", x)


def embed_sequences(
    config: BartConfig, parameters: Parameters, side: str, token_ids: tf.Tensor
) -> tf.Tensor:
    """Embed whole sequences, ids (batch, length), as rows."""
    length = tf.shape(token_ids)[1]
    fits = tf.debugging.assert_less_equal(
        length,
        config.max_sequence_length,
        f"Expected {side}_token_ids of at most {config.max_sequence_length} tokens a row.",
    )
    with tf.control_dependencies([fits]):
        positions = tf.range(length)
    return embed(config, parameters, side, token_ids, positions)


def projected(
    config: BartConfig,
    parameters: Parameters,
    name: str,
    x: tf.Tensor,
    batch: tf.Tensor,
    heads: int,
) -> Sequence[tf.Tensor]:
    """Apply a projection to rows; return each of the tensors, (batch, heads, length, head_size),
    that it makes.
    """
    x = linear(parameters, name, x)
    parts, size = x.shape[-1] // config.hidden_dim, config.hidden_dim // heads
    x = tf.reshape(x, [batch, -1, parts, heads, size])
    made: Sequence[tf.Tensor] = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
    return made


def merged(x: tf.Tensor, hidden: int) -> tf.Tensor:
    """Turn (batch, heads, length, head_size) into rows, (batch * length, hidden)."""
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, hidden])


def closed_and_seen(visible: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return what to add to attention scores where `visible`, int32 0 or 1, is 0, and 1.0 for each
    query that sees anything: what the others gather is to be multiplied by 0, as in `BartBackbone`.
    """
    closed = tf.cast(1 - visible, tf.float32) * CLOSED
    return closed, tf.cast(tf.reduce_max(visible, -1, keepdims=True), tf.float32)
