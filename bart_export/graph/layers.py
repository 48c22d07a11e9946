"""BART's encoder and decoder layers in plain TensorFlow operators, for inference graphs.

Hidden states are rows, (rows, hidden), so that every projection becomes one `FULLY_CONNECTED`
without the shape operators that Keras layers add for dynamic lengths. Callers pass in the
attention: over whole sequences, or step by step with caches.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from bart_export.checkpoints.weight_names import TOKEN_EMBEDDING
from bart_export.config import BartConfig

EPSILON = 1e-5  # layer normalization, as in the published models
# Added to the attention scores of masked positions. Delegates compute in float16, where magnitudes
# above 65504 are infinite, and infinity times 0 is NaN.
MASK_BIAS = -3e4

ACTIVATIONS = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "relu": tf.nn.relu,
    "silu": lambda x: x * tf.sigmoid(x),
    "tanh": tf.tanh,
}

Tensors = dict[str, tf.Tensor]
Parameters = Mapping[str, tf.Tensor]  # in the layout of `graph.parameters`


class Bart(NamedTuple):
    """An architecture and its weights."""

    config: BartConfig
    parameters: Parameters


# Maps a layer's number, the name of its attention and the hidden states to the context before the
# output projection, (rows, hidden).
Attention = Callable[[int, str, tf.Tensor], tf.Tensor]


def embed(bart: Bart, side: str, ids: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Sum and normalize token and position embeddings: ids (...) to (..., hidden)."""
    # After a gather from a variable itself, TensorFlow copies the variable at every read.
    table = tf.convert_to_tensor(bart.parameters[TOKEN_EMBEDDING])
    places = tf.convert_to_tensor(bart.parameters[f"{side}_position_embedding/embeddings"])
    tokens = tf.gather(table, ids)
    if bart.config.scale_embedding:
        tokens *= float(bart.config.hidden_dim) ** 0.5
    x = tokens + tf.gather(places, positions)
    return layer_norm(bart.parameters, f"{side}_embeddings_layer_norm", x)


def encoder_layers(bart: Bart, x: tf.Tensor, attention: Attention) -> tf.Tensor:
    """Apply all encoder layers to (rows, hidden)."""
    for layer in range(bart.config.num_layers):
        name = f"transformer_encoder_layer_{layer}"
        context = attention(layer, f"{name}/self_attention_layer", x)
        x = finish_attention(bart.parameters, f"{name}/self_attention_layer", x, context)
        x = feedforward(bart.parameters, name, x, bart.config.activation_function)
    return x


def decoder_layers(
    bart: Bart, x: tf.Tensor, self_attention: Attention, cross_attention: Attention
) -> tf.Tensor:
    """Apply all decoder layers to (rows, hidden)."""
    for layer in range(bart.config.decoder_layers):
        name = f"transformer_decoder_layer_{layer}"
        for word, attention in ("self", self_attention), ("cross", cross_attention):
            context = attention(layer, f"{name}/{word}_attention", x)
            x = finish_attention(bart.parameters, f"{name}/{word}_attention", x, context)
        x = feedforward(bart.parameters, name, x, bart.config.activation_function)
    return x


def finish_attention(
    parameters: Parameters, name: str, x: tf.Tensor, context: tf.Tensor
) -> tf.Tensor:
    """Project the context of an attention, add it to the hidden states and normalize the sum."""
    update = linear(parameters, f"{name}/attention_output", context)
    return layer_norm(parameters, f"{name.removesuffix('_layer')}_layer_norm", x + update)


def feedforward(parameters: Parameters, name: str, x: tf.Tensor, activation: str) -> tf.Tensor:
    """Apply the feed-forward block of layer `name`, with residual and norm."""
    wide = ACTIVATIONS[activation](linear(parameters, f"{name}/feedforward_intermediate_dense", x))
    narrow = linear(parameters, f"{name}/feedforward_output_dense", wide)
    return layer_norm(parameters, f"{name}/feedforward_layer_norm", x + narrow)


def linear(parameters: Parameters, name: str, x: tf.Tensor) -> tf.Tensor:
    """Apply a projection, with a `kernel` (outputs, inputs) or a `matrix` (inputs, outputs)."""
    bias = f"{name}/bias"
    if f"{name}/matrix" in parameters:
        return tf.nn.bias_add(tf.matmul(x, parameters[f"{name}/matrix"]), parameters[bias])
    return tf.matmul(x, parameters[f"{name}/kernel"], transpose_b=True) + parameters[bias]


def layer_norm(parameters: Parameters, name: str, x: tf.Tensor) -> tf.Tensor:
    """Normalize each row to mean 0 and variance 1, then scale and shift it."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(centred * centred, -1, keepdims=True)
    scaled = centred * tf.math.rsqrt(variance + EPSILON)
    return scaled * parameters[f"{name}/gamma"] + parameters[f"{name}/beta"]


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, mask_bias: tf.Tensor) -> tf.Tensor:
    """Compute scaled dot-product attention for queries that are already scaled.

    All tensors are (batch, heads, length, head_size); `mask_bias`, 0 or MASK_BIAS, is added to the
    scores.
    """
    scores = tf.matmul(query, key, transpose_b=True) + mask_bias
    return tf.matmul(tf.nn.softmax(scores), value)


def merge_heads(x: tf.Tensor, hidden: int) -> tf.Tensor:
    """Reshape (batch, heads, length, head_size) to rows, (batch * length, hidden)."""
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, hidden])
