"""Multi-head attention, and the masks that say what a position may look at.

There is one attention path. It scores all pairs, replaces the scores of masked keys by a large
negative number, takes the softmax and then sets masked probabilities to zero, so that a query with
no key to look at receives zeros. This is what KerasHub computes for any dropout above 0.

Hidden states and padding masks come in, hidden states go out. Axes: batch, length (of the
queries), source (length of the keys), hidden, heads, head_size.
"""

from typing import Any

import keras
from keras import ops

from bart_export.errors import ConfigurationError
from bart_export.model.weights import initializer

Shape = tuple[int | None, ...]


def padding_attention_mask(padding_mask: Any) -> Any:
    """Turn a padding mask (batch, source) into an attention mask (batch, 1, 1, source), bool."""
    return ops.expand_dims(ops.cast(padding_mask, "bool"), axis=(1, 2))


def causal_attention_mask(length: Any) -> Any:
    """Return the mask (length, length), bool, that lets a position see itself and its past."""
    position = ops.arange(length)
    return ops.greater_equal(ops.expand_dims(position, 1), ops.expand_dims(position, 0))


def masked_softmax(scores: Any, mask: Any) -> Any:
    """Turn scores (batch, heads, length, source) into probabilities, 0 where `mask` is false."""
    # Far below any score, and still a float16.
    closed = -3e4 if keras.backend.standardize_dtype(scores.dtype) == "float16" else -1e9
    scores = ops.where(mask, scores, closed)
    # Of a single key the softmax is 1; Keras warns when asked for it.
    single = scores.shape[-1] == 1
    probabilities = ops.ones_like(scores) if single else ops.softmax(scores, axis=-1)
    return ops.where(mask, probabilities, 0.0)


@keras.saving.register_keras_serializable("bart_export")
class MultiHeadAttention(keras.layers.Layer):
    """Attention of `num_heads` heads between queries and the values they look at.

    Args:
        num_heads: number of heads, which must divide the hidden width.
        dropout: share of attention probabilities that training drops.

    Call with `query` (batch, length, hidden), `value` (batch, source, hidden) and an
    `attention_mask` that broadcasts to (batch, heads, length, source), true where a query may
    look; returns (batch, length, hidden).
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
                f"The hidden width must be divisible by num_heads, received {hidden} and "
                f"num_heads={self.num_heads}."
            )
        head_size = hidden // self.num_heads
        heads = (None, self.num_heads, head_size)
        self.query_dense = self._projection("query", "abc,cde->abde", heads, "de")
        self.query_dense.build(query_shape)
        self.key_dense = self._projection("key", "abc,cde->abde", heads, "de")
        self.key_dense.build(value_shape)
        self.value_dense = self._projection("value", "abc,cde->abde", heads, "de")
        self.value_dense.build(value_shape)
        self.output_dense = self._projection(
            "attention_output", "abcd,cde->abe", (None, hidden), "e"
        )
        self.output_dense.build((*query_shape[:-1], self.num_heads, head_size))
        self._dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self._query_scale = head_size**-0.5

    def _projection(
        self, name: str, equation: str, output_shape: Shape, bias_axes: str
    ) -> keras.layers.EinsumDense:
        return keras.layers.EinsumDense(
            equation,
            output_shape=output_shape,
            bias_axes=bias_axes,
            kernel_initializer=initializer(),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(
        self, query: Any, value: Any, attention_mask: Any, training: bool | None = None
    ) -> Any:
        """Return what each query position gathers from the values, (batch, length, hidden)."""
        key = self.key_dense(value)  # (batch, source, heads, head_size)
        value = self.value_dense(value)
        query = self.query_dense(query)  # (batch, length, heads, head_size)
        query = ops.multiply(query, ops.cast(self._query_scale, query.dtype))
        scores = ops.einsum("bsnd,blnd->bnls", key, query)  # (batch, heads, length, source)
        probabilities = masked_softmax(scores, attention_mask)
        probabilities = self._dropout_layer(probabilities, training=training)
        gathered = ops.einsum("bnls,bsnd->blnd", probabilities, value)
        return self.output_dense(gathered)

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape) -> Shape:
        """Return the shape of the query."""
        return query_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads, "dropout": self.dropout}
