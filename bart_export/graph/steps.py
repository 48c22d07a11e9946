"""The steps of incremental generation, `encode` and two kinds of `decode`, in TensorFlow.

Inputs and outputs are those of `contract.tflite_signatures`: one source, several beams, one
self-attention cache per decoder layer that goes in and comes out whole. `embed`, `mix`,
`add_and_norm` and `cross` are parts of `encode` for when something else computes its projections
(`edgetpu.signatures`). Every reshape has a single unknown axis, so that no shape arithmetic ends up
in the file. The functions know nothing of quantization or search.
"""

from collections.abc import Callable

import tensorflow as tf

from bart_export.checkpoints.names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.config import BartConfig
from bart_export.graph.layers import (
    CLOSED,
    Parameters,
    attend,
    attend_once,
    closed_positions,
    feedforward,
    layer_norm,
    linear,
    merge_heads,
    split_heads,
)

Tensors = dict[str, tf.Tensor]
Attend = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def encode(config: BartConfig, parameters: Parameters, given: Tensors) -> Tensors:
    """Run the encoder and project its output to every decoder layer's cross keys and values."""
    heads, size = config.num_heads, config.head_size
    closed = closed_positions(given["encoder_padding_mask"])
    ids = tf.reshape(given["encoder_token_ids"], [-1])
    x = embed(config, parameters, "encoder", ids, tf.range(tf.shape(ids)[0]))
    for layer in range(config.num_layers):
        name = f"transformer_encoder_layer_{layer}"
        attention = f"{name}/self_attention_layer"
        mixed = attend(
            split_heads(linear(parameters, f"{attention}/query", x), heads, size),
            split_heads(linear(parameters, f"{attention}/key", x), heads, size),
            split_heads(linear(parameters, f"{attention}/value", x), heads, size),
            closed,
        )
        mixed = linear(
            parameters, f"{attention}/attention_output", merge_heads(mixed, config.hidden_dim)
        )
        x = layer_norm(parameters, f"{name}/self_attention_layer_norm", x + mixed)
        x = feedforward(parameters, name, x, config.activation_function)
    return cross(config, parameters, {"hidden": x})


def embed_source(config: BartConfig, parameters: Parameters, given: Tensors) -> Tensors:
    """Do the part of `encode` before the layers: ids to hidden states, (source, hidden)."""
    ids = tf.reshape(given["encoder_token_ids"], [-1])
    return {"hidden": embed(config, parameters, "encoder", ids, tf.range(tf.shape(ids)[0]))}


def mix(config: BartConfig, parameters: Parameters, given: Tensors) -> Tensors:
    """Do the part of an encoder layer's attention that has no weights, all (source, hidden)."""
    query, key, value = (
        split_heads(given[part], config.num_heads, config.head_size)
        for part in ("query", "key", "value")
    )
    return {"mixed": merge_heads(attend(query, key, value, tf.constant(0.0)), config.hidden_dim)}


def add_and_norm(config: BartConfig, parameters: Parameters, given: Tensors) -> Tensors:
    """Do what ends each half of a layer: add to the hidden states, (source, hidden), and norm."""
    vectors = {"norm/gamma": given["gamma"], "norm/beta": given["beta"]}
    return {"normalized": layer_norm(vectors, "norm", given["hidden"] + given["update"])}


def cross(config: BartConfig, parameters: Parameters, given: Tensors) -> Tensors:
    """Do the part of `encode` after the layers: project to the decoder's cross keys and values."""
    return {
        f"cross_{part}_{layer}": split_heads(
            linear(
                parameters,
                f"transformer_decoder_layer_{layer}/cross_attention/{part}",
                given["hidden"],
            ),
            config.decoder_heads,
            config.decoder_head_size,
        )
        for layer in range(config.decoder_layers)
        for part in ("key", "value")
    }


def decode(config: BartConfig, parameters: Parameters, given: Tensors) -> Tensors:
    """Run the decoder for one token of every beam and return logits and the updated caches."""
    beam_index = given["beam_index"]
    reordered = {
        name: tf.gather(tensor, beam_index) if name.startswith("self_") else tensor
        for name, tensor in given.items()
    }
    return decode_rows(config, parameters, reordered, attend)


def decode_single(config: BartConfig, parameters: Parameters, given: Tensors) -> Tensors:
    """Do what `decode` does for one beam, which has no other beam's caches to continue."""
    return decode_rows(config, parameters, given, attend_once)


def decode_rows(
    config: BartConfig, parameters: Parameters, given: Tensors, attend_source: Attend
) -> Tensors:
    """Run the decoder for one token of every row, whose caches are in order."""
    heads, size, position = config.decoder_heads, config.decoder_head_size, given["position"]
    source_closed = closed_positions(given["encoder_padding_mask"])
    steps = tf.range(tf.shape(given["self_key_0"])[2])
    future_closed = tf.cast(tf.reshape(steps, [1, 1, 1, -1]) > position, tf.float32) * CLOSED
    # Positions from here on are zero in every cache, so adding writes.
    here = tf.cast(tf.equal(tf.reshape(steps, [1, 1, -1, 1]), position), tf.float32)

    def one_step(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [-1, heads, 1, size])  # (beams, heads, 1, head_size)

    ids = tf.reshape(given["decoder_token_ids"], [-1])
    x = embed(config, parameters, "decoder", ids, position)
    outputs: Tensors = {}
    for layer in range(config.decoder_layers):
        name = f"transformer_decoder_layer_{layer}"
        cache = {
            part: given[f"self_{part}_{layer}"]
            + here * one_step(linear(parameters, f"{name}/self_attention/{part}", x))
            for part in ("key", "value")
        }
        outputs |= {f"self_{part}_{layer}": cache[part] for part in cache}
        query = one_step(linear(parameters, f"{name}/self_attention/query", x))
        mixed = attend_once(query, cache["key"], cache["value"], future_closed)
        mixed = linear(
            parameters,
            f"{name}/self_attention/attention_output",
            tf.reshape(mixed, [-1, config.hidden_dim]),
        )
        x = layer_norm(parameters, f"{name}/self_attention_layer_norm", x + mixed)
        # All beams read one source: they are the queries of a single sequence.
        query = split_heads(linear(parameters, f"{name}/cross_attention/query", x), heads, size)
        mixed = attend_source(
            query, given[f"cross_key_{layer}"], given[f"cross_value_{layer}"], source_closed
        )
        mixed = linear(
            parameters,
            f"{name}/cross_attention/attention_output",
            merge_heads(mixed, config.hidden_dim),
        )
        x = layer_norm(parameters, f"{name}/cross_attention_layer_norm", x + mixed)
        x = feedforward(parameters, name, x, config.activation_function)
    logits = tf.matmul(x, parameters[TOKEN_EMBEDDING], transpose_b=True)
    if config.final_logits_bias:
        logits += parameters[FINAL_LOGITS_BIAS]
    return {"logits": logits, **outputs}


def embed(
    config: BartConfig, parameters: Parameters, side: str, ids: tf.Tensor, positions: tf.Tensor
) -> tf.Tensor:
    """Sum token and position embeddings and normalize them: ids (rows,) to (rows, hidden)."""
    tokens = tf.gather(parameters[TOKEN_EMBEDDING], ids)
    if config.scale_embedding:
        tokens *= float(config.hidden_dim) ** 0.5
    x = tokens + tf.gather(parameters[f"{side}_position_embedding/embeddings"], positions)
    return layer_norm(parameters, f"{side}_embeddings_layer_norm", x)


STEPS: dict[str, Callable[[BartConfig, Parameters, Tensors], Tensors]] = {
    "encode": encode,
    "decode": decode,
    "decode_single": decode_single,
    "embed": embed_source,
    "mix": mix,
    "add_and_norm": add_and_norm,
    "cross": cross,
}
