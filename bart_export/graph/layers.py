"""The arithmetic of BART's layers in plain TensorFlow operators, for inference graphs.

Activations are rank 2, (rows, hidden), so that every projection becomes one `FULLY_CONNECTED`
without the shape operators that Keras layers bring with dynamic lengths. `parameters` maps names
to tensors laid out as `graph.parameters` says. This module knows neither signatures nor caches.
"""

from collections.abc import Mapping

import tensorflow as tf

EPSILON = 1e-5  # layer normalization, as in the published models
# Added to the score of a position that must not be seen. Delegates compute in float16, where more
# than 65504 is infinite and its product with 0 no number.
CLOSED = -3e4

ACTIVATIONS = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: tf.nn.gelu(x, approximate=True),
    "relu": tf.nn.relu,
    "silu": lambda x: x * tf.sigmoid(x),
    "tanh": tf.tanh,
}

Parameters = Mapping[str, tf.Tensor]


def linear(parameters: Parameters, name: str, x: tf.Tensor) -> tf.Tensor:
    """Apply a projection: (rows, inputs) to (rows, outputs).

    Its weights are a `kernel` (outputs, inputs) or a `matrix` (inputs, outputs).
    """
    if f"{name}/matrix" in parameters:
        return tf.nn.bias_add(
            tf.matmul(x, parameters[f"{name}/matrix"]), parameters[f"{name}/bias"]
        )
    product = tf.matmul(x, parameters[f"{name}/kernel"], transpose_b=True)
    return product + parameters[f"{name}/bias"]


def layer_norm(parameters: Parameters, name: str, x: tf.Tensor) -> tf.Tensor:
    """Normalize each row to mean 0 and variance 1, then scale and shift it."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(centred * centred, -1, keepdims=True)
    scaled = centred * tf.math.rsqrt(variance + EPSILON)
    return scaled * parameters[f"{name}/gamma"] + parameters[f"{name}/beta"]


def feedforward(parameters: Parameters, name: str, x: tf.Tensor, activation: str) -> tf.Tensor:
    """Apply the feed-forward block of the layer `name` with its residual and its norm."""
    wide = ACTIVATIONS[activation](linear(parameters, f"{name}/feedforward_intermediate_dense", x))
    narrow = linear(parameters, f"{name}/feedforward_output_dense", wide)
    return layer_norm(parameters, f"{name}/feedforward_layer_norm", x + narrow)


def split_heads(x: tf.Tensor, heads: int, head_size: int) -> tf.Tensor:
    """Turn rows of one sequence, (length, hidden), into (1, heads, length, head_size)."""
    return tf.transpose(tf.reshape(x, [1, -1, heads, head_size]), [0, 2, 1, 3])


def merge_heads(x: tf.Tensor, hidden: int) -> tf.Tensor:
    """Turn (1, heads, length, head_size) into rows, (length, hidden)."""
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, hidden])


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, closed: tf.Tensor) -> tf.Tensor:
    """Mix `value` by the softmax of query-key products; the scale is in the query already.

    All of (batch, heads, length, head_size); `closed` is added to the scores and is 0 or CLOSED.
    """
    scores = tf.matmul(query, key, transpose_b=True) + closed
    return tf.matmul(tf.nn.softmax(scores), value)


def attend_once(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, closed: tf.Tensor) -> tf.Tensor:
    """Do what `attend` does for queries of length 1, by elementwise products and sums.

    A matrix product first copies keys and values into a layout of its own, which for a single
    query costs more than the product. Query and result are (batch, heads, 1, head_size).
    """
    products = tf.reduce_sum(query * key, -1, keepdims=True)  # (batch, heads, length, 1)
    scores = tf.transpose(products, [0, 1, 3, 2]) + closed
    weights = tf.transpose(tf.nn.softmax(scores), [0, 1, 3, 2])
    return tf.reduce_sum(value * weights, 2, keepdims=True)


def closed_positions(mask: tf.Tensor) -> tf.Tensor:
    """Turn a padding mask, int32 (one, source), 1 where real, into (one, 1, 1, source) scores."""
    closed = (1.0 - tf.cast(mask, tf.float32)) * CLOSED
    return tf.expand_dims(tf.expand_dims(closed, 1), 1)
