"""The arithmetic of BART's layers in plain TensorFlow operators, for inference graphs.

Hidden states are rows, (rows, hidden), so that every projection becomes one `FULLY_CONNECTED`
without the shape operators that Keras layers bring with dynamic lengths. The encoder layer and the
decoder layer stand here once; how positions attend to each other, over whole sequences or by steps
with caches, is the caller's.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from bart_export.checkpoints.weight_names import TOKEN_EMBEDDING
from bart_export.config import BartConfig

EPSILON = 1e-5  # layer normalization, as in the published models
# Added to the score of a position that must not be seen. Delegates compute in float16, where more
# than 65504 is infinite and its product with 0 no number.
MASK_BIAS = -3e4

ACTIVATIONS = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "relu": tf.nn.relu,
    "silu": lambda x: x * tf.sigmoid(x),
    "tanh": tf.tanh,
}

Tensors = dict[str, tf.Tensor]
Parameters = Mapping[str, tf.Tensor]  # laid out as `graph.parameters` says


class Bart(NamedTuple):
    """An architecture and its weights."""

    config: BartConfig
    parameters: Parameters


# Called with a layer's number, the name of its attention and hidden states; returns the context
# before the output projection, (rows, hidden).
Attention = Callable[[int, str, tf.Tensor], tf.Tensor]


def embed(bart: Bart, side: str, ids: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Sum token and position embeddings and normalize them: ids (...) to (..., hidden)."""
    # Gathering from a variable itself makes TensorFlow copy it whenever it is read thereafter.
    table = tf.convert_to_tensor(bart.parameters[TOKEN_EMBEDDING])
    places = tf.convert_to_tensor(bart.parameters[f"{side}_position_embedding/embeddings"])
    tokens = tf.gather(table, ids)
    if bart.config.scale_embedding:
        tokens *= float(bart.config.hidden_dim) ** 0.5
    x = tokens + tf.gather(places, positions)
    return layer_norm(bart.parameters, f"{side}_embeddings_layer_norm", x)


def encoder_layers(bart: Bart, x: tf.Tensor, attention: Attention) -> tf.Tensor:
    """Apply all layers of the encoder: (rows, hidden) to the same."""
    for layer in range(bart.config.num_layers):
        name = f"transformer_encoder_layer_{layer}"
        context = attention(layer, f"{name}/self_attention_layer", x)
        x = attention_end(bart.parameters, f"{name}/self_attention_layer", x, context)
        x = feedforward(bart.parameters, name, x, bart.config.activation_function)
    return x


def decoder_layers(
    bart: Bart, x: tf.Tensor, self_attention: Attention, cross_attention: Attention
) -> tf.Tensor:
    """Apply all layers of the decoder: (rows, hidden) to the same."""
    for layer in range(bart.config.decoder_layers):
        name = f"transformer_decoder_layer_{layer}"
        for word, attention in ("self", self_attention), ("cross", cross_attention):
            context = attention(layer, f"{name}/{word}_attention", x)
            x = attention_end(bart.parameters, f"{name}/{word}_attention", x, context)
        x = feedforward(bart.parameters, name, x, bart.config.activation_function)
    return x


def attention_end(parameters: Parameters, name: str, x: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
    """Project an attention's context, add it to the hidden states and normalize the sum."""
    update = linear(parameters, f"{name}/attention_output", context)
    return layer_norm(parameters, f"{name.removesuffix('_layer')}_layer_norm", x + update)


def feedforward(parameters: Parameters, name: str, x: tf.Tensor, activation: str) -> tf.Tensor:
    """Apply the feed-forward block of the layer `name` with its residual and its norm."""
    wide = ACTIVATIONS[activation](linear(parameters, f"{name}/feedforward_intermediate_dense", x))
    narrow = linear(parameters, f"{name}/feedforward_output_dense", wide)
    return layer_norm(parameters, f"{name}/feedforward_layer_norm", x + narrow)


def linear(parameters: Parameters, name: str, x: tf.Tensor) -> tf.Tensor:
    """Apply a projection: (rows, inputs) to (rows, outputs).

    Its weights are a `kernel` (outputs, inputs) or a `matrix` (inputs, outputs).
    """
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
    """Return the context of queries: values weighted by the softmax of query-key products.

    All are (batch, heads, length, head_size) and the queries scaled already; `mask_bias`, 0 or
    MASK_BIAS, is added to the scores.
    """
    scores = tf.matmul(query, key, transpose_b=True) + mask_bias
    return tf.matmul(tf.nn.softmax(scores), value)


def merge_heads(x: tf.Tensor, hidden: int) -> tf.Tensor:
    """Turn (batch, heads, length, head_size) into rows, (batch * length, hidden)."""
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, hidden])
