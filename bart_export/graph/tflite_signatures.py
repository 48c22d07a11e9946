"""The signatures of a `.tflite` file, `contract.tflite_signatures`, as TensorFlow functions.

`encode` takes one source; `decode` and `decode_single` take one token per row, `decode_draft`
several tokens of one row. All three take the self-attention cache of each decoder layer and return
the entries of the new tokens. `embed`, `mix`, `add_and_norm` and `cross` are parts of `encode` for
a host that computes the projections on an Edge TPU (`edgetpu.parts.host_signatures`). Only `decode`
computes the shape of a reshape; every other one has at most one unknown axis.
"""

from collections.abc import Callable

import tensorflow as tf

from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.config import BartConfig
from bart_export.graph import layers
from bart_export.graph.layers import (
    MASK_BIAS,
    Bart,
    Parameters,
    Tensors,
    attend,
    linear,
    merge_heads,
)

Attend = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def encode(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Run the encoder and project its output to each decoder layer's cross keys and values."""
    mask_bias = padding_bias(inputs["encoder_padding_mask"])

    def attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        query, key, value = (
            split_heads(linear(parameters, f"{name}/{part}", x), config.num_heads, config.head_size)
            for part in ("query", "key", "value")
        )
        return merge_heads(attend(query, key, value, mask_bias), config.hidden_dim)

    x = embed_source(config, parameters, inputs)["hidden"]
    x = layers.encoder_layers(Bart(config, parameters), x, attention)
    return project_cross(config, parameters, {"hidden": x})


def embed_source(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Compute the part of `encode` before the layers: ids to hidden states (source, hidden)."""
    ids = tf.reshape(inputs["encoder_token_ids"], [-1])
    positions = tf.range(tf.shape(ids)[0])
    return {"hidden": layers.embed(Bart(config, parameters), "encoder", ids, positions)}


def mix(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Compute an encoder layer's attention without projections; tensors are (source, hidden)."""
    query, key, value = (
        split_heads(inputs[part], config.num_heads, config.head_size)
        for part in ("query", "key", "value")
    )
    return {"mixed": merge_heads(attend(query, key, value, tf.constant(0.0)), config.hidden_dim)}


def add_and_norm(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Add an update to the hidden states, both (source, hidden), and normalize the sum."""
    vectors = {"norm/gamma": inputs["gamma"], "norm/beta": inputs["beta"]}
    return {"normalized": layers.layer_norm(vectors, "norm", inputs["hidden"] + inputs["update"])}


def project_cross(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Compute the part of `encode` after the layers: the decoder's cross keys and values."""
    heads, size = config.decoder_heads, config.decoder_head_size
    axes = {"key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}  # of (1, source, heads, head_size)
    return {
        f"cross_{part}_{layer}": tf.transpose(
            tf.reshape(
                linear(
                    parameters,
                    f"transformer_decoder_layer_{layer}/cross_attention/{part}",
                    inputs["hidden"],
                ),
                [1, -1, heads, size],
            ),
            axes[part],
        )
        for layer in range(config.decoder_layers)
        for part in axes
    }


def decode(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Run the decoder for one token of every row; return logits and cache entries."""
    beams = tf.shape(inputs["decoder_token_ids"])  # (sources, beams)
    split = tf.concat([beams, [config.decoder_heads, config.decoder_head_size]], 0)

    def attend_source(
        query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask_bias: tf.Tensor
    ) -> tf.Tensor:
        # The beams of a source are the queries of one sequence.
        queries = tf.transpose(tf.reshape(query, split), [0, 2, 1, 3])
        weights = tf.nn.softmax(tf.matmul(queries, key) + mask_bias)
        return merge_heads(tf.matmul(weights, value), config.hidden_dim)

    return decode_rows(config, parameters, inputs, attend_source)


def decode_single(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Run `decode` for one beam of each source."""

    def attend_source(
        query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask_bias: tf.Tensor
    ) -> tf.Tensor:
        column = tf.reshape(query, [-1, config.decoder_heads, config.decoder_head_size, 1])
        scores = tf.reduce_sum(column * key, 2, keepdims=True) + mask_bias
        return weighted_sum(tf.nn.softmax(scores), value)

    return decode_rows(config, parameters, inputs, attend_source)


def decode_rows(
    config: BartConfig, parameters: Parameters, inputs: Tensors, attend_source: Attend
) -> Tensors:
    """Run the decoder for one token of every row.

    `attend_source` returns the context, (rows, hidden) or (rows, heads, 1, head_size), for queries
    (rows, hidden).
    """
    heads, size = config.decoder_heads, config.decoder_head_size
    position = tf.reshape(inputs["position"], [-1, 1, 1, 1])
    source_bias = padding_bias(inputs["encoder_padding_mask"])
    steps = tf.reshape(tf.range(tf.shape(inputs["self_key_0"])[2]), [1, 1, 1, -1])
    earlier, later = (
        tf.cast(mask, tf.float32) for mask in (position > steps, steps > position)
    )  # (rows, 1, 1, capacity)
    current = 1.0 - earlier - later
    future_bias = later * MASK_BIAS
    entries: Tensors = {}

    def project_heads(name: str, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(linear(parameters, name, x), [-1, heads, 1, size])

    def self_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        query, key, value = (
            project_heads(f"{name}/{part}", x) for part in ("query", "key", "value")
        )
        entries[f"self_key_{layer}"], entries[f"self_value_{layer}"] = key, value
        # A matrix product first repacks keys and values, which costs more than the product for a
        # single query.
        products = tf.reduce_sum(query * inputs[f"self_key_{layer}"], -1, keepdims=True)
        cached = tf.transpose(products, [0, 1, 3, 2])  # (rows, heads, 1, capacity)
        own = tf.reduce_sum(query * key, -1, keepdims=True)
        weights = tf.nn.softmax(cached * earlier + own * current + future_bias)
        context = weighted_sum(weights * earlier, inputs[f"self_value_{layer}"])
        context += tf.reduce_sum(weights * current, -1, keepdims=True) * value
        return tf.reshape(context, [-1, config.hidden_dim])

    def cross_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        query = linear(parameters, f"{name}/query", x)
        key, value = inputs[f"cross_key_{layer}"], inputs[f"cross_value_{layer}"]
        context = attend_source(query, key, value, source_bias)
        return tf.reshape(context, [-1, config.hidden_dim])

    ids = tf.reshape(inputs["decoder_token_ids"], [-1])
    bart = Bart(config, parameters)
    x = layers.embed(bart, "decoder", ids, inputs["position"])
    x = layers.decoder_layers(bart, x, self_attention, cross_attention)
    return {"logits": project_logits(config, parameters, x), **entries}


def project_logits(config: BartConfig, parameters: Parameters, x: tf.Tensor) -> tf.Tensor:
    """Return the logits, (rows, vocabulary), of hidden states (rows, hidden)."""
    logits = tf.matmul(x, parameters[TOKEN_EMBEDDING], transpose_b=True)
    return logits + parameters[FINAL_LOGITS_BIAS] if config.final_logits_bias else logits


def decode_draft(config: BartConfig, parameters: Parameters, inputs: Tensors) -> Tensors:
    """Run the decoder for several tokens of one sequence; return logits and cache entries."""
    heads, size = config.decoder_heads, config.decoder_head_size
    source_bias = padding_bias(inputs["encoder_padding_mask"])
    ids = tf.reshape(inputs["decoder_token_ids"], [-1])
    positions = inputs["position"]
    steps = tf.range(tf.shape(inputs["self_key_0"])[2])
    rows, columns = tf.reshape(positions, [1, 1, -1, 1]), tf.reshape(steps, [1, 1, 1, -1])
    future_bias = tf.cast(columns > rows, tf.float32) * MASK_BIAS
    # The caches may contain rejected tokens.
    earlier = tf.cast(positions[0] > tf.reshape(steps, [1, 1, -1, 1]), tf.float32)
    written = tf.cast(
        tf.equal(tf.reshape(steps, [1, 1, -1, 1]), tf.reshape(positions, [1, 1, 1, -1])), tf.float32
    )
    entries: Tensors = {}

    def project_heads(name: str, x: tf.Tensor) -> tf.Tensor:
        return split_heads(linear(parameters, name, x), heads, size)

    def complete(part: str, layer: int, entry: tf.Tensor) -> tf.Tensor:
        entries[f"self_{part}_{layer}"] = entry
        return inputs[f"self_{part}_{layer}"] * earlier + tf.matmul(written, entry)

    def self_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        key, value = (
            complete(part, layer, project_heads(f"{name}/{part}", x)) for part in ("key", "value")
        )
        query = project_heads(f"{name}/query", x)
        return merge_heads(attend(query, key, value, future_bias), config.hidden_dim)

    def cross_attention(layer: int, name: str, x: tf.Tensor) -> tf.Tensor:
        query = project_heads(f"{name}/query", x)
        key, value = inputs[f"cross_key_{layer}"], inputs[f"cross_value_{layer}"]
        weights = tf.nn.softmax(tf.matmul(query, key) + source_bias)
        return merge_heads(tf.matmul(weights, value), config.hidden_dim)

    bart = Bart(config, parameters)
    x = layers.embed(bart, "decoder", ids, positions)
    x = layers.decoder_layers(bart, x, self_attention, cross_attention)
    return {"logits": project_logits(config, parameters, x), **entries}


def weighted_sum(weights: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Return the context of single queries, (batch, heads, 1, head_size).

    Weights are (batch, heads, 1, length), values (batch, heads, length, head_size).
    """
    return tf.reduce_sum(value * tf.transpose(weights, [0, 1, 3, 2]), 2, keepdims=True)


def split_heads(x: tf.Tensor, heads: int, head_size: int) -> tf.Tensor:
    """Reshape one sequence, (length, hidden), to (1, heads, length, head_size)."""
    return tf.transpose(tf.reshape(x, [1, -1, heads, head_size]), [0, 2, 1, 3])


def padding_bias(padding_mask: tf.Tensor) -> tf.Tensor:
    """Turn a padding mask, int32 (1, source), 1 for tokens, into a bias (1, 1, 1, source)."""
    mask_bias = (1.0 - tf.cast(padding_mask, tf.float32)) * MASK_BIAS
    return tf.expand_dims(tf.expand_dims(mask_bias, 1), 1)


FUNCTIONS: dict[str, Callable[[BartConfig, Parameters, Tensors], Tensors]] = {
    "encode": encode,
    "decode": decode,
    "decode_single": decode_single,
    "decode_draft": decode_draft,
    "embed": embed_source,
    "mix": mix,
    "add_and_norm": add_and_norm,
    "cross": project_cross,
}
