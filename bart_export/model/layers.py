"""BART's Keras layers: position embedding, attention, encoder layer, decoder layer, logits bias.

Layers, sublayers and weights are named as in `keras_hub.layers`, because presets store weights
under these names. Axes: batch, length (of queries), source (length of keys), hidden, heads,
head_size.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from bart_export.checkpoints.files import JsonObject
from bart_export.errors import ConfigurationError, InputError

EPSILON = 1e-5  # of all layer normalizations
Shape = tuple[int | None, ...]
Tensor = Any  # a tensor of Keras' backend, or a symbolic one

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": keras.activations.gelu,
    "gelu_new": lambda values: keras.activations.gelu(values, approximate=True),
    "relu": keras.activations.relu,
    "silu": keras.activations.silu,
    "tanh": keras.activations.tanh,
}

# Random initialization takes most of the time to build a model, and is wasted if a checkpoint is
# loaded afterwards.
_draw_weights = contextvars.ContextVar("draw_weights", default=True)


@contextlib.contextmanager
def weights_left_at_zero() -> Iterator[None]:
    """Initialize weights to zero within a `with` block, because a checkpoint will replace them."""
    token = _draw_weights.set(False)
    try:
        yield
    finally:
        _draw_weights.reset(token)


def initializer() -> keras.initializers.Initializer:
    """Return a new initializer for one weight, since an instance repeats its random numbers."""
    if _draw_weights.get():
        return keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.initializers.Zeros()


@keras.saving.register_keras_serializable("bart_export")
class PositionEmbedding(keras.layers.Layer):
    """Learned position embedding.

    Call it with any tensor (batch, length, hidden), of which only the shape is used; it returns the
    embeddings in that shape.

    Args:
        sequence_length: number of positions.

    Raises:
        InputError: if the input is longer. In a graph with a dynamic length, an assertion of the
            backend fails with the same message.
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

    def call(self, inputs: Tensor) -> Tensor:
        """Return the position embeddings (batch, length, hidden)."""
        shape = ops.shape(inputs)
        require_length(shape[-2], self.sequence_length)
        table = ops.convert_to_tensor(self.position_embeddings)
        return ops.broadcast_to(ops.slice(table, (0, 0), (shape[-2], shape[-1])), shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> JsonObject:
        """Return the constructor's arguments."""
        return {**super().get_config(), "sequence_length": self.sequence_length}


def require_length(length: Tensor | int, maximum: int) -> None:
    """Check that `length`, an int or a scalar tensor of a graph, is at most `maximum`.

    Raises:
        InputError: for an int; with a tensor, the graph fails when it runs.
    """
    expected = f"A sequence must have at most {maximum} tokens (max_sequence_length), received "
    if isinstance(length, int):
        if length > maximum:
            raise InputError(f"{expected}{length}.")
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.debugging.Assert(length <= maximum, [expected, length])


def padding_attention_mask(padding_mask: Tensor) -> Tensor:
    """Expand a padding mask (batch, source) to an attention mask (batch, 1, 1, source), bool."""
    return ops.expand_dims(ops.cast(padding_mask, "bool"), axis=(1, 2))


def causal_attention_mask(length: Tensor | int) -> Tensor:
    """Return the causal mask (length, length), bool, true for positions up to the query's."""
    position = ops.arange(length)
    return ops.greater_equal(ops.expand_dims(position, 1), ops.expand_dims(position, 0))


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Apply softmax to scores (batch, heads, length, source), with 0 where `mask` is false.

    The probabilities of a query without visible keys are all 0, as in KerasHub with dropout.
    """
    # Far below any score, and finite in float16.
    masked = -3e4 if keras.backend.standardize_dtype(scores.dtype) == "float16" else -1e9
    scores = ops.where(mask, scores, masked)
    # The softmax of a single key is 1, and Keras warns if it is computed.
    single = scores.shape[-1] == 1
    probabilities = ops.ones_like(scores) if single else ops.softmax(scores, axis=-1)
    return ops.where(mask, probabilities, 0.0)


@keras.saving.register_keras_serializable("bart_export")
class MultiHeadAttention(keras.layers.Layer):
    """Multi-head attention.

    Call it with `query` (batch, length, hidden), `value` (batch, source, hidden) and an
    `attention_mask` that broadcasts to (batch, heads, length, source), true for visible keys; it
    returns (batch, length, hidden).

    Args:
        num_heads: number of heads, which must divide hidden.
        dropout: dropout rate of attention probabilities in training.
    """

    def __init__(self, num_heads: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout = dropout

    def build(self, query_shape: Shape, value_shape: Shape) -> None:
        """Create the four projections."""
        hidden = query_shape[-1]
        assert hidden is not None
        if hidden % self.num_heads:
            raise ConfigurationError(
                f"The hidden size must be divisible by num_heads, received {hidden} and "
                f"num_heads={self.num_heads}."
            )
        split = (self.num_heads, hidden // self.num_heads)
        self.query_dense = self._projection("query", query_shape, split)
        self.key_dense = self._projection("key", value_shape, split)
        self.value_dense = self._projection("value", value_shape, split)
        merged = (*query_shape[:-1], *split)
        self.output_dense = self._projection("attention_output", merged, (hidden,))
        self._dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self._query_scale = split[1] ** -0.5

    def _projection(
        self, name: str, input_shape: Shape, output_axes: tuple[int, ...]
    ) -> keras.layers.EinsumDense:
        splits = len(output_axes) == 2
        layer = keras.layers.EinsumDense(
            "abc,cde->abde" if splits else "abcd,cde->abe",
            output_shape=(None, *output_axes),
            bias_axes="de" if splits else "e",
            kernel_initializer=initializer(),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build(input_shape)
        return layer

    def call(
        self, query: Tensor, value: Tensor, attention_mask: Tensor, training: bool | None = None
    ) -> Tensor:
        """Return the context of each query position, (batch, length, hidden)."""
        key = self.key_dense(value)  # (batch, source, heads, head_size)
        value = self.value_dense(value)
        query = self.query_dense(query)  # (batch, length, heads, head_size)
        query = ops.multiply(query, ops.cast(self._query_scale, query.dtype))
        scores = ops.einsum("bsnd,blnd->bnls", key, query)  # (batch, heads, length, source)
        probabilities = masked_softmax(scores, attention_mask)
        probabilities = self._dropout_layer(probabilities, training=training)
        return self.output_dense(ops.einsum("bnls,bsnd->blnd", probabilities, value))

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape) -> Shape:
        """Return the shape of the query."""
        return query_shape

    def get_config(self) -> JsonObject:
        """Return the constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads, "dropout": self.dropout}


class TransformerLayer(keras.layers.Layer):
    """Base class of encoder and decoder layers, which consist of post-norm residual blocks.

    A block computes `norm(inputs + dropout(branch(inputs)))`. Its parts are attributes of the
    layer, `_<block>_layer_norm` and `_<block>_dropout`, because presets use these names.

    Args:
        intermediate_dim: width of the feed-forward network.
        num_heads: number of attention heads.
        dropout: dropout rate of block outputs and attention probabilities in training.
        activation: activation of the feed-forward network, a key of `ACTIVATIONS`.
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

    def _drop(self, name: str) -> keras.layers.Dropout:
        return keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name=name)

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

    def _build_feedforward(self, shape: Shape) -> None:
        wide = (*shape[:-1], self.intermediate_dim)
        self._feedforward_intermediate_dense = self._dense(
            "feedforward_intermediate_dense", shape, self.intermediate_dim, self.activation
        )
        self._feedforward_output_dense = self._dense("feedforward_output_dense", wide, shape[-1])
        self._feedforward_dropout = self._drop("feedforward_dropout")

    def _feedforward(self, inputs: Tensor, training: bool | None) -> Tensor:
        outputs = self._feedforward_output_dense(self._feedforward_intermediate_dense(inputs))
        outputs = self._feedforward_dropout(outputs, training=training)
        return self._feedforward_layer_norm(outputs + inputs)

    def get_config(self) -> JsonObject:
        """Return the constructor's arguments."""
        names = ("intermediate_dim", "num_heads", "dropout", "activation")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("bart_export")
class TransformerEncoder(TransformerLayer):
    """An encoder layer: self-attention and a feed-forward network, post-norm.

    Call it with hidden states (batch, length, hidden) and a `padding_mask` (batch, length), nonzero
    for tokens; it returns hidden states of the same shape.
    """

    def build(self, inputs_shape: Shape) -> None:
        """Create the sublayers in the order of the weights."""
        shape = inputs_shape
        self._self_attention_layer = self._attention("self_attention_layer", shape, shape)
        self._self_attention_layer_norm = self._norm("self_attention_layer_norm", shape)
        self._self_attention_dropout = self._drop("self_attention_dropout")
        self._feedforward_layer_norm = self._norm("feedforward_layer_norm", shape)
        self._build_feedforward(shape)

    def call(self, inputs: Tensor, padding_mask: Tensor, training: bool | None = None) -> Tensor:
        """Return the layer's hidden states, (batch, length, hidden)."""
        mask = padding_attention_mask(padding_mask)
        context = self._self_attention_layer(inputs, inputs, mask, training=training)
        context = self._self_attention_dropout(context, training=training)
        return self._feedforward(self._self_attention_layer_norm(context + inputs), training)

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        """Return the shape of the inputs."""
        return inputs_shape


@keras.saving.register_keras_serializable("bart_export")
class TransformerDecoder(TransformerLayer):
    """A decoder layer: causal self-attention, cross-attention, feed-forward network, post-norm.

    Call it with decoder states (batch, length, hidden), encoder states (batch, source, hidden) and
    both padding masks, nonzero for tokens; it returns decoder states.
    """

    def build(self, decoder_sequence_shape: Shape, encoder_sequence_shape: Shape) -> None:
        """Create the sublayers in the order of the weights."""
        shape, source = decoder_sequence_shape, encoder_sequence_shape
        self._self_attention_layer = self._attention("self_attention", shape, shape)
        self._self_attention_layer_norm = self._norm("self_attention_layer_norm", shape)
        self._self_attention_dropout = self._drop("self_attention_dropout")
        self._cross_attention_layer = self._attention("cross_attention", shape, source)
        self._cross_attention_layer_norm = self._norm("cross_attention_layer_norm", shape)
        self._cross_attention_dropout = self._drop("cross_attention_dropout")
        self._build_feedforward(shape)
        self._feedforward_layer_norm = self._norm("feedforward_layer_norm", shape)

    def call(
        self,
        decoder_sequence: Tensor,
        encoder_sequence: Tensor,
        decoder_padding_mask: Tensor,
        encoder_padding_mask: Tensor,
        training: bool | None = None,
    ) -> Tensor:
        """Return the layer's hidden states, (batch, length, hidden)."""
        inputs, source_mask = decoder_sequence, padding_attention_mask(encoder_padding_mask)
        mask = ops.logical_and(
            padding_attention_mask(decoder_padding_mask),
            causal_attention_mask(ops.shape(inputs)[1]),
        )  # (batch, 1, length, length)
        context = self._self_attention_layer(inputs, inputs, mask, training=training)
        context = self._self_attention_dropout(context, training=training)
        hidden = self._self_attention_layer_norm(context + inputs)
        context = self._cross_attention_layer(
            hidden, encoder_sequence, source_mask, training=training
        )
        context = self._cross_attention_dropout(context, training=training)
        return self._feedforward(self._cross_attention_layer_norm(context + hidden), training)

    def compute_output_shape(
        self, decoder_sequence_shape: Shape, encoder_sequence_shape: Shape
    ) -> Shape:
        """Return the shape of the decoder's hidden states."""
        return decoder_sequence_shape


@keras.saving.register_keras_serializable("bart_export")
class LogitsBias(keras.layers.Layer):
    """A bias added to the logits by some checkpoints, one value per token, initially zero.

    It is not trained, because it is a buffer in Hugging Face's models. The path of its variable is
    the layer's name.
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

    def call(self, logits: Tensor) -> Tensor:
        """Return the biased logits (batch, length, vocabulary)."""
        return logits + ops.cast(self.bias, logits.dtype)

    def get_config(self) -> JsonObject:
        """Return the constructor's arguments."""
        return {**super().get_config(), "vocabulary_size": self.vocabulary_size}
