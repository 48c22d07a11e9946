"""The layers a BART is made of: learned positions, an encoder layer, a decoder layer.

Hidden states and padding masks come in, hidden states go out. A layer knows sizes, not
configurations, presets or token ids. Names of layers, sub-layers and weights are those of
`keras_hub.layers`, because presets store weights under them.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from bart_export.errors import InputError
from bart_export.model.attention import (
    MultiHeadAttention,
    Shape,
    causal_attention_mask,
    padding_attention_mask,
)
from bart_export.model.weights import initializer

EPSILON = 1e-5  # of every layer normalization of a BART

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": keras.activations.gelu,
    "gelu_new": lambda values: keras.activations.gelu(values, approximate=True),
    "relu": keras.activations.relu,
    "silu": keras.activations.silu,
    "tanh": keras.activations.tanh,
}


@keras.saving.register_keras_serializable("bart_export")
class PositionEmbedding(keras.layers.Layer):
    """Learned positions: row i of a table for the i-th token, counted from 0.

    Args:
        sequence_length: number of rows, which is the longest input.

    Call with any tensor (batch, length, hidden), of which only the shape is used; returns the
    positions in that shape.

    Raises:
        InputError: for an input longer than the table. Where the length is known only when the
            graph runs, the backend's assertion fails with the same words.
    """

    def __init__(self, sequence_length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sequence_length = sequence_length

    def build(self, input_shape: Shape) -> None:
        """Create the table (sequence_length, hidden)."""
        self.position_embeddings = self.add_weight(
            name="embeddings",
            shape=(self.sequence_length, input_shape[-1]),
            initializer=initializer(),
        )

    def call(self, inputs: Any) -> Any:
        """Return the positions (batch, length, hidden)."""
        shape = ops.shape(inputs)
        check_length(shape[-2], self.sequence_length)
        table = ops.convert_to_tensor(self.position_embeddings)
        return ops.broadcast_to(ops.slice(table, (0, 0), (shape[-2], shape[-1])), shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "sequence_length": self.sequence_length}


def check_length(length: Any, maximum: int) -> None:
    """Refuse a `length`, an int or a scalar tensor of a graph, above `maximum`.

    Raises:
        InputError: for an int; a tensor fails when the graph runs.
    """
    expected = f"A sequence may have at most {maximum} tokens (max_sequence_length), received "
    if isinstance(length, int):
        if length > maximum:
            raise InputError(f"{expected}{length}.")
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.debugging.Assert(length <= maximum, [expected, length])


class TransformerLayer(keras.layers.Layer):
    """What encoder and decoder layers share: sizes, and the parts of a post-norm residual block.

    A block computes `norm(inputs + dropout(branch(inputs)))`. Its parts are attributes of the
    layer itself, `_<block>_layer_norm` and `_<block>_dropout`, since presets keep them there.

    Args:
        intermediate_dim: width of the feed-forward network.
        num_heads: number of attention heads.
        dropout: share of values that training drops, of each block's output and of the attention
            probabilities.
        activation: name of the feed-forward network's activation, a key of `ACTIVATIONS`.
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        activation: str = "gelu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.activation = activation

    def _attention(self, name: str, query_shape: Shape, value_shape: Shape) -> MultiHeadAttention:
        layer = MultiHeadAttention(self.num_heads, self.dropout, dtype=self.dtype_policy, name=name)
        layer.build(query_shape, value_shape)
        return layer

    def _norm(self, name: str, shape: Shape) -> keras.layers.LayerNormalization:
        layer = keras.layers.LayerNormalization(epsilon=EPSILON, dtype=self.dtype_policy, name=name)
        layer.build(shape)
        return layer

    def _build_feedforward(self, shape: Shape) -> None:
        self._feedforward_intermediate_dense = self._dense(
            "feedforward_intermediate_dense", shape, self.intermediate_dim, self.activation
        )
        self._feedforward_output_dense = self._dense(
            "feedforward_output_dense", (*shape[:-1], self.intermediate_dim), shape[-1]
        )
        self._feedforward_dropout = self._drop("feedforward_dropout")

    def _dense(
        self, name: str, shape: Shape, units: int | None, activation: str | None = None
    ) -> keras.layers.Dense:
        layer = keras.layers.Dense(
            units,
            activation=ACTIVATIONS[activation] if activation else None,
            kernel_initializer=initializer(),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build(shape)
        return layer

    def _drop(self, name: str) -> keras.layers.Dropout:
        return keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name=name)

    def _feedforward(self, inputs: Any, training: bool | None) -> Any:
        outputs = self._feedforward_intermediate_dense(inputs)
        outputs = self._feedforward_output_dense(outputs)
        outputs = self._feedforward_dropout(outputs, training=training)
        return self._feedforward_layer_norm(outputs + inputs)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "activation": self.activation,
        }


@keras.saving.register_keras_serializable("bart_export")
class TransformerEncoder(TransformerLayer):
    """An encoder layer: self-attention and feed-forward, post-norm.

    Call with hidden states (batch, length, hidden) and a `padding_mask` (batch, length), not zero
    where a token is real; returns hidden states of the same shape.
    """

    def build(self, inputs_shape: Shape) -> None:
        """Create the sub-layers; their order is that of the weights."""
        self._self_attention_layer = self._attention(
            "self_attention_layer", inputs_shape, inputs_shape
        )
        self._self_attention_layer_norm = self._norm("self_attention_layer_norm", inputs_shape)
        self._self_attention_dropout = self._drop("self_attention_dropout")
        self._feedforward_layer_norm = self._norm("feedforward_layer_norm", inputs_shape)
        self._build_feedforward(inputs_shape)

    def call(self, inputs: Any, padding_mask: Any, training: bool | None = None) -> Any:
        """Return the layer's hidden states, (batch, length, hidden)."""
        attended = self._self_attention_layer(
            inputs, inputs, padding_attention_mask(padding_mask), training=training
        )
        attended = self._self_attention_dropout(attended, training=training)
        hidden = self._self_attention_layer_norm(attended + inputs)
        return self._feedforward(hidden, training)

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        """Return the shape of the inputs."""
        return inputs_shape


@keras.saving.register_keras_serializable("bart_export")
class TransformerDecoder(TransformerLayer):
    """A decoder layer: causal self-attention, attention to the encoder, feed-forward, post-norm.

    Call with the decoder's hidden states (batch, length, hidden), the encoder's
    (batch, source, hidden) and both padding masks, not zero where a token is real; returns the
    decoder's hidden states.
    """

    def build(self, decoder_sequence_shape: Shape, encoder_sequence_shape: Shape) -> None:
        """Create the sub-layers; their order is that of the weights."""
        shape = decoder_sequence_shape
        self._self_attention_layer = self._attention("self_attention", shape, shape)
        self._self_attention_layer_norm = self._norm("self_attention_layer_norm", shape)
        self._self_attention_dropout = self._drop("self_attention_dropout")
        self._cross_attention_layer = self._attention(
            "cross_attention", shape, encoder_sequence_shape
        )
        self._cross_attention_layer_norm = self._norm("cross_attention_layer_norm", shape)
        self._cross_attention_dropout = self._drop("cross_attention_dropout")
        self._build_feedforward(shape)
        self._feedforward_layer_norm = self._norm("feedforward_layer_norm", shape)

    def call(
        self,
        decoder_sequence: Any,
        encoder_sequence: Any,
        decoder_padding_mask: Any,
        encoder_padding_mask: Any,
        training: bool | None = None,
    ) -> Any:
        """Return the layer's hidden states, (batch, length, hidden)."""
        mask = ops.logical_and(
            padding_attention_mask(decoder_padding_mask),
            causal_attention_mask(ops.shape(decoder_sequence)[1]),
        )  # (batch, 1, length, length)
        attended = self._self_attention_layer(
            decoder_sequence, decoder_sequence, mask, training=training
        )
        attended = self._self_attention_dropout(attended, training=training)
        hidden = self._self_attention_layer_norm(attended + decoder_sequence)

        attended = self._cross_attention_layer(
            hidden,
            encoder_sequence,
            padding_attention_mask(encoder_padding_mask),
            training=training,
        )
        attended = self._cross_attention_dropout(attended, training=training)
        hidden = self._cross_attention_layer_norm(attended + hidden)
        return self._feedforward(hidden, training)

    def compute_output_shape(
        self, decoder_sequence_shape: Shape, encoder_sequence_shape: Shape
    ) -> Shape:
        """Return the shape of the decoder's hidden states."""
        return decoder_sequence_shape


@keras.saving.register_keras_serializable("bart_export")
class LogitsBias(keras.layers.Layer):
    """The bias some checkpoints add to the logits: one number a token, zeros until loaded.

    Not trained, as in Hugging Face's models, where it is a buffer. Its variable's path is the
    layer's name alone.
    """

    def __init__(self, vocabulary_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.bias = keras.Variable(
            ops.zeros((vocabulary_size,)),
            dtype=self.variable_dtype,
            trainable=False,
            name=self.name,
        )
        self.built = True

    def call(self, logits: Any) -> Any:
        """Return the biased logits (batch, length, vocabulary)."""
        return logits + ops.cast(self.bias, logits.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "vocabulary_size": self.vocabulary_size}
