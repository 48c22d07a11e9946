"""BART over batches in TensorFlow: the encoder, the decoder, and single decoder steps.

Weights are float32 in the layout of `graph.parameters.BatchParameters`. Hidden states are rows,
(batch * length, hidden), so that each projection is one matrix product.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.config import BartConfig
from bart_export.graph import layers
from bart_export.graph.layers import MASK_BIAS, Bart, Parameters, attend, linear, merge_heads

SCORED_ROWS = 64  # positions whose logits `score` computes at a time
FIRST_CAPACITY = 32  # initial number of positions in the caches

# Keys and values of each decoder layer in turn, (batch * heads * capacity, beams * head_size).
# Decoder steps update them in place.
Caches = tuple[tf.Tensor, ...]


def cast_to_float32(parameters: Parameters) -> Parameters:
    """Cast the parameters to float32.

    Call this once per graph and outside loops, so that no step repeats a cast. Float32 variables
    are returned as variables, which a loop reads without making them loop variables.
    """
    return {
        name: value if value.dtype == tf.float32 else tf.cast(value, tf.float32)
        for name, value in parameters.items()
    }


def padding_mask(lengths: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Return a padding mask, int32 (batch, length); lengths below 1 count as 1."""
    return tf.sequence_mask(tf.maximum(lengths, 1), length, tf.int32)


def clear_padding(token_ids: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return ids (batch, length) with 0 beyond each sequence's end, and their padding mask."""
    mask = padding_mask(lengths, tf.shape(token_ids)[1])
    # Ids beyond a sequence's end may be outside the vocabulary.
    return token_ids * mask, mask


def encode(bart: Bart, token_ids: tf.Tensor, padding_mask: tf.Tensor) -> tf.Tensor:
    """Run the encoder: ids and mask (batch, source) to hidden states (batch, source, hidden)."""
    batch, hidden = tf.shape(token_ids)[0], bart.config.hidden_dim
    mask_bias, keep_mask = bias_and_keep(padding_mask[:, None, None, :])

    def attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        name = f"{name}/query_key_value"
        query, key, value = project_heads(bart, name, x, batch, bart.config.num_heads)
        return merge_heads(attend(query, key, value, mask_bias) * keep_mask, hidden)

    x = embed_sequences(bart, "encoder", token_ids)
    x = layers.encoder_layers(bart, x, attention)
    return tf.reshape(x, [batch, -1, hidden])


def decode(
    bart: Bart,
    encoded: tf.Tensor,
    encoder_padding_mask: tf.Tensor,
    token_ids: tf.Tensor,
    padding_mask: tf.Tensor,
) -> tf.Tensor:
    """Run the decoder over whole sequences: ids (batch, target) to (batch, target, hidden)."""
    batch, heads, hidden = tf.shape(token_ids)[0], bart.config.decoder_heads, bart.config.hidden_dim
    length = tf.shape(token_ids)[1]
    causal = tf.linalg.band_part(tf.ones([length, length], tf.int32), -1, 0)
    mask_bias, keep_mask = bias_and_keep(padding_mask[:, None, None, :] * causal)
    source_bias, source_keep = bias_and_keep(encoder_padding_mask[:, None, None, :])
    encoded = tf.reshape(encoded, [-1, hidden])

    def self_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        name = f"{name}/query_key_value"
        query, key, value = project_heads(bart, name, x, batch, heads)
        return merge_heads(attend(query, key, value, mask_bias) * keep_mask, hidden)

    def cross_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        (query,) = project_heads(bart, f"{name}/query", x, batch, heads)
        key, value = project_heads(bart, f"{name}/key_value", encoded, batch, heads)
        return merge_heads(attend(query, key, value, source_bias) * source_keep, hidden)

    x = embed_sequences(bart, "decoder", token_ids)
    x = layers.decoder_layers(bart, x, self_attention, cross_attention)
    return tf.reshape(x, [batch, -1, hidden])


def score(
    bart: Bart,
    encoder_token_ids: tf.Tensor,
    encoder_lengths: tf.Tensor,
    decoder_token_ids: tf.Tensor,
    decoder_lengths: tf.Tensor,
) -> tf.Tensor:
    """Return the log-probability of each decoder token given the previous ones, (batch, target).

    It is 0 for the first token and beyond a sequence's end.
    """
    source_ids, source_mask = clear_padding(encoder_token_ids, encoder_lengths)
    ids, target_mask = clear_padding(decoder_token_ids, decoder_lengths)
    encoded = encode(bart, source_ids, source_mask)
    hidden = decode(bart, encoded, source_mask, ids, target_mask)
    hidden_dim = bart.config.hidden_dim
    rows = tf.reshape(hidden[:, :-1], [-1, hidden_dim])
    following = tf.reshape(ids[:, 1:], [-1])
    # The logits of all positions would be the largest tensor by far, so they come in blocks.
    count = tf.shape(following)[0]
    missing = -count % SCORED_ROWS

    def log_probabilities(block: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        scores = logits(bart, block[0])
        return tf.gather(scores, block[1], batch_dims=1) - tf.reduce_logsumexp(scores, -1)

    scored = tf.map_fn(
        log_probabilities,
        (
            tf.reshape(tf.pad(rows, [[0, missing], [0, 0]]), [-1, SCORED_ROWS, hidden_dim]),
            tf.reshape(tf.pad(following, [[0, missing]]), [-1, SCORED_ROWS]),
        ),
        fn_output_signature=tf.TensorSpec([SCORED_ROWS], tf.float32),
    )
    scored = tf.reshape(tf.reshape(scored, [-1])[:count], tf.shape(ids[:, 1:]))
    return tf.pad(scored * tf.cast(target_mask[:, 1:], tf.float32), [[0, 0], [1, 0]])


def logits(bart: Bart, hidden: tf.Tensor) -> tf.Tensor:
    """Map hidden states (rows, hidden) to logits (rows, vocabulary)."""
    # With the table as the left operand, TensorFlow reads it once for all rows.
    table = bart.parameters[TOKEN_EMBEDDING]
    scores = tf.transpose(tf.matmul(table, hidden, transpose_b=True))
    if bart.config.final_logits_bias:
        scores += bart.parameters[FINAL_LOGITS_BIAS]
    return scores


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """The encoder's output, in the form that decoder steps read.

    Each decoder layer has keys (batch, heads, head_size, source) and values (batch, heads, source,
    head_size); `mask_bias` (batch, 1, 1, source) is added to attention scores.
    """

    keys: tuple[tf.Tensor, ...]
    values: tuple[tf.Tensor, ...]
    mask_bias: tf.Tensor


def project_source(bart: Bart, encoded: tf.Tensor, padding_mask: tf.Tensor) -> EncodedSource:
    """Project the encoder output to every decoder layer's cross-attention keys and values."""
    config, batch = bart.config, tf.shape(encoded)[0]
    rows = tf.reshape(encoded, [-1, config.hidden_dim])
    pairs = [
        project_heads(
            bart,
            f"transformer_decoder_layer_{layer}/cross_attention/key_value",
            rows,
            batch,
            config.decoder_heads,
        )
        for layer in range(config.decoder_layers)
    ]
    return EncodedSource(
        # In this layout, steps multiply by the keys without a copy.
        keys=tuple(tf.linalg.matrix_transpose(key) for key, _ in pairs),
        values=tuple(value for _, value in pairs),
        mask_bias=bias_and_keep(padding_mask[:, None, None, :])[0],
    )


def first_caches(config: BartConfig, batch: tf.Tensor, beams: int, capacity: tf.Tensor) -> Caches:
    """Return zeroed caches for `capacity` positions."""
    shape = [batch * config.decoder_heads * capacity, beams * config.decoder_head_size]
    # TensorFlow would merge equal `tf.zeros` into one tensor, but caches are written in place.
    return tuple(
        tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True)
        for _ in range(2 * config.decoder_layers)
    )


def grow_caches(caches: Caches, capacity: tf.Tensor, larger: tf.Tensor, width: int) -> Caches:
    """Return caches, with rows of `width`, enlarged from `capacity` to `larger` positions."""
    added = [[0, 0], [0, larger - capacity], [0, 0]]
    return tuple(
        tf.reshape(tf.pad(tf.reshape(cache, [-1, capacity, width]), added), [-1, width])
        for cache in caches
    )


def decode_step(
    bart: Bart,
    source: EncodedSource,
    caches: Caches,
    capacity: tf.Tensor,
    position: tf.Tensor,
    token_ids: tf.Tensor,
    mask_bias: tf.Tensor,
) -> tuple[tf.Tensor, Caches]:
    """Run the decoder for the next token of every beam.

    The beams of a source share its cache. `mask_bias` lets each beam see only the entries of its
    ancestors, so caches are never reordered.

    Args:
        bart: the model, with float32 weights.
        source: returned by `project_source`.
        caches: returned by the previous step; they are updated in place.
        capacity: number of positions in the caches.
        position: position of the token, int32 scalar below `capacity`.
        token_ids: int32 (batch, beams).
        mask_bias: float32, 0 or MASK_BIAS, broadcastable to (batch, 1, beams, capacity * beams).
            This step writes the entries at `position * beams + beam`.

    Returns:
        Hidden states (batch * beams, hidden) and the updated caches.
    """
    config, beams = bart.config, token_ids.shape[1]
    heads, size = config.decoder_heads, config.decoder_head_size
    batch = tf.shape(token_ids)[0]
    write_position = tf.range(batch * heads) * capacity + position
    updated: list[tf.Tensor] = []

    def write_entries(cache: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
        """Write (batch, heads, beams, head_size) at the position; return the whole cache by head.

        `tf.tensor_scatter_nd_update` would copy the cache on a CPU. The update in place is safe,
        because it depends on everything that the previous step read.
        """
        rows = tf.reshape(entries, [-1, beams * size])
        updated.append(tf.raw_ops.InplaceUpdate(x=cache, i=write_position, v=rows))
        return tf.reshape(updated[-1], [batch, heads, capacity * beams, size])

    def self_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        name = f"{name}/query_key_value"
        query, key, value = project_heads(bart, name, x, batch, heads)
        key, value = (
            write_entries(caches[2 * layer], key),
            write_entries(caches[2 * layer + 1], value),
        )
        return merge_heads(attend(query, key, value, mask_bias), config.hidden_dim)

    def cross_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        (query,) = project_heads(bart, f"{name}/query", x, batch, heads)
        scores = tf.matmul(query, source.keys[layer]) + source.mask_bias
        context = tf.matmul(tf.nn.softmax(scores), source.values[layer])
        return merge_heads(context, config.hidden_dim)

    ids = tf.reshape(token_ids, [-1])
    x = layers.embed(bart, "decoder", ids, position)
    x = layers.decoder_layers(bart, x, self_attention, cross_attention)
    return x, tuple(updated)


def embed_sequences(bart: Bart, side: str, token_ids: tf.Tensor) -> tf.Tensor:
    """Embed sequences, ids (batch, length), as rows."""
    length, longest = tf.shape(token_ids)[1], bart.config.max_sequence_length
    expected = f"Expected {side}_token_ids of at most {longest} tokens per row."
    with tf.control_dependencies([tf.debugging.assert_less_equal(length, longest, expected)]):
        positions = tf.range(length)
    x = layers.embed(bart, side, token_ids, positions)
    return tf.reshape(x, [-1, bart.config.hidden_dim])


def project_heads(
    bart: Bart, name: str, x: tf.Tensor, batch: tf.Tensor, heads: int
) -> Sequence[tf.Tensor]:
    """Apply a concatenated projection to rows; return its parts by head.

    Each part is (batch, heads, length, head_size).
    """
    x, hidden = linear(bart.parameters, name, x), bart.config.hidden_dim
    x = tf.reshape(x, [batch, -1, x.shape[-1] // hidden, heads, hidden // heads])
    parts: Sequence[tf.Tensor] = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
    return parts


def bias_and_keep(visible: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the mask bias and the keep mask for `visible`, int32, 1 for visible keys.

    The keep mask is 0 for queries without a visible key, whose context is zero as in
    `BartBackbone`.
    """
    mask_bias = tf.cast(1 - visible, tf.float32) * MASK_BIAS
    return mask_bias, tf.cast(tf.reduce_max(visible, -1, keepdims=True), tf.float32)
