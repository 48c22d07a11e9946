"""The decoder of a batch by steps, with caches: what a search in a graph calls for every token.

The encoder's output goes in once, then tokens; hidden states and updated caches come out. Several
beams of a source share what is kept of it and of their past. Nothing here chooses a token.
"""

import dataclasses

import tensorflow as tf

from bart_export.config import BartConfig
from bart_export.graph.layers import Parameters, attend, feedforward, layer_norm, linear
from bart_export.graph.sequences import closed_and_seen, embed, merged, projected

# Keys and values of each decoder layer, in turn: (batch * heads * capacity, beams * head_size).
# A step writes its entries into the tensors that it is given.
Caches = tuple[tf.Tensor, ...]

FIRST_CAPACITY = 32  # positions that caches begin with


@dataclasses.dataclass(frozen=True)
class Source:
    """What decoder steps read of the source, the same at every step.

    For each decoder layer keys (batch, heads, head_size, source) and values (batch, heads, source,
    head_size); `closed` (batch, 1, 1, source) is added to attention scores.
    """

    keys: tuple[tf.Tensor, ...]
    values: tuple[tf.Tensor, ...]
    closed: tf.Tensor


def cross_tensors(
    config: BartConfig, parameters: Parameters, encoded: tf.Tensor, padding_mask: tf.Tensor
) -> Source:
    """Project the encoder's output to what every decoder layer reads of it."""
    batch, heads = tf.shape(encoded)[0], config.decoder_heads
    rows = tf.reshape(encoded, [-1, config.hidden_dim])
    pairs = [
        projected(
            config,
            parameters,
            f"transformer_decoder_layer_{layer}/cross_attention/key_value",
            rows,
            batch,
            heads,
        )
        for layer in range(config.decoder_layers)
    ]
    return Source(
        # Steps multiply by keys in this layout without copying them first.
        keys=tuple(tf.linalg.matrix_transpose(key) for key, value in pairs),
        values=tuple(value for key, value in pairs),
        closed=closed_and_seen(padding_mask[:, None, None, :])[0],
    )


def first_caches(config: BartConfig, batch: tf.Tensor, beams: int, capacity: tf.Tensor) -> Caches:
    """Return caches of zeros with room for `capacity` positions."""
    shape = [batch * config.decoder_heads * capacity, beams * config.decoder_head_size]
    # Zeros that are written into: of plain ones, TensorFlow would make one tensor for all caches.
    return tuple(
        tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True)
        for _ in range(2 * config.decoder_layers)
    )


def grown(caches: Caches, capacity: tf.Tensor, larger: tf.Tensor, beams: int, size: int) -> Caches:
    """Return caches with room for `larger` positions in the place of `capacity`."""
    return tuple(
        tf.reshape(
            tf.pad(
                tf.reshape(cache, [-1, capacity, beams * size]),
                [[0, 0], [0, larger - capacity], [0, 0]],
            ),
            [-1, beams * size],
        )
        for cache in caches
    )


def decode_step(
    config: BartConfig,
    parameters: Parameters,
    source: Source,
    caches: Caches,
    capacity: tf.Tensor,
    position: tf.Tensor,
    token_ids: tf.Tensor,
    closed: tf.Tensor,
) -> tuple[tf.Tensor, Caches]:
    """Run the decoder for the next token of every beam.

    The beams of a source share its cache: each reads, in all of them, the entries that `closed`
    leaves open, those of the beams it descends from. No cache is ever reordered.

    Args:
        config: the architecture.
        parameters: float32 weights.
        source: of `cross_tensors`.
        caches: what the step before returned.
        capacity: positions they have room for.
        position: of the token, int32 scalar, below the capacity.
        token_ids: int32 (batch, beams).
        closed: float32, 0 or CLOSED, broadcastable to (batch, 1, beams, capacity * beams), where
            the entry at `position * beams + beam` is what this step writes.

    Returns:
        Hidden states (batch * beams, hidden) and the updated caches.
    """
    heads, size, beams = config.decoder_heads, config.decoder_head_size, token_ids.shape[1]
    batch = tf.shape(token_ids)[0]
    here = tf.range(batch * heads) * capacity + position

    def written(cache: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
        """Write (batch, heads, beams, head_size) at the position.

        In place, which `tf.tensor_scatter_nd_update` is not on a CPU. No reader can be late: what
        is written follows from all that was read in the step before.
        """
        rows = tf.reshape(entries, [-1, beams * size])
        return tf.raw_ops.InplaceUpdate(x=cache, i=here, v=rows)

    def entries(cache: tf.Tensor) -> tf.Tensor:
        return tf.reshape(cache, [batch, heads, capacity * beams, size])

    ids = tf.reshape(token_ids, [-1])
    x = embed(config, parameters, "decoder", ids, position)
    updated: list[tf.Tensor] = []
    for layer in range(config.decoder_layers):
        name = f"transformer_decoder_layer_{layer}"
        attention = f"{name}/self_attention"
        query, *new = projected(config, parameters, f"{attention}/query_key_value", x, batch, heads)
        key, value = (written(caches[2 * layer + part], new[part]) for part in range(2))
        updated += key, value
        mixed = merged(attend(query, entries(key), entries(value), closed), config.hidden_dim)
        mixed = linear(parameters, f"{attention}/attention_output", mixed)
        x = layer_norm(parameters, f"{name}/self_attention_layer_norm", x + mixed)
        attention = f"{name}/cross_attention"
        (query,) = projected(config, parameters, f"{attention}/query", x, batch, heads)
        scores = tf.matmul(query, source.keys[layer]) + source.closed
        mixed = merged(tf.matmul(tf.nn.softmax(scores), source.values[layer]), config.hidden_dim)
        mixed = linear(parameters, f"{attention}/attention_output", mixed)
        x = layer_norm(parameters, f"{name}/cross_attention_layer_norm", x + mixed)
        x = feedforward(parameters, name, x, config.activation_function)
    return x, tuple(updated)
