"""What greedy and beam search share: the model under a search, the loop, and small operations.

A search is a state, a tuple of tensors, that a step turns into the next. The loop repeats the step
and sees to the caches. Caches begin small and double, so that a step costs what the tokens so far
cost, not what `max_length` would. Nothing here chooses a token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from bart_export.config import BartConfig, GenerationConfig
from bart_export.graph import cached
from bart_export.graph.cached import Source
from bart_export.graph.layers import Parameters
from bart_export.graph.rows import RowSettings

# A named tuple with `length`, int32: how many tokens every sequence has so far; `running`, bool
# (batch,): the rows that have not ended; and `caches`.
State = TypeVar("State", bound=Any)
INFINITY = float("inf")


class Model(NamedTuple):
    """What the steps of one search have in common."""

    config: BartConfig
    parameters: Parameters
    source: Source
    generation: GenerationConfig
    rows: RowSettings


def run(
    step: Callable[[State, tf.Tensor], State], first: State, model: Model, target: tf.Tensor
) -> State:
    """Repeat a step while any row is running, over caches that double when they are full.

    A step takes a state and the capacity of its caches. `first` comes without caches; no sequence
    becomes longer than `target`.
    """
    beams, size = model.generation.num_beams, model.config.decoder_head_size
    batch, capacity = tf.shape(first.running)[0], tf.minimum(cached.FIRST_CAPACITY, target)
    first = first._replace(caches=cached.first_caches(model.config, batch, beams, capacity))

    def unknown(state: State) -> Any:
        return tf.nest.map_structure(
            lambda tensor: tf.TensorShape([None] * tensor.shape.rank), state
        )

    def goes_on(state: State, capacity: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(state.running)

    def until_full(state: State, capacity: tf.Tensor) -> tuple[State, tf.Tensor]:
        full: State = tf.while_loop(
            lambda inner: goes_on(inner, capacity) & (inner.length <= capacity),
            lambda inner: (step(inner, capacity),),
            (state,),
            shape_invariants=(unknown(state),),
        )[0]
        larger = tf.where(goes_on(full, capacity), tf.minimum(2 * capacity, target), capacity)
        caches = cached.grown(full.caches, capacity, larger, beams, size)
        return full._replace(caches=caches), larger

    shapes = (unknown(first), tf.TensorShape([]))
    last, _ = tf.while_loop(goes_on, until_full, (first, capacity), shape_invariants=shapes)
    ended: State = last
    return ended


def log_normalizers(logits: tf.Tensor) -> tf.Tensor:
    """Return log(sum(exp(row))) of each row of logits (rows, vocabulary), never below its largest.

    NaN or infinite logits are an InvalidArgumentError.
    """
    peaks = tf.reduce_max(logits, -1, keepdims=True)
    sums = tf.reduce_sum(tf.exp(logits - peaks), -1)
    return tf.debugging.check_numerics(
        peaks[:, 0] + tf.math.log(sums), "Expected finite logits from the decoder."
    )


def target_length(model: Model) -> tf.Tensor:
    """Return the tokens that the longest row may have."""
    return tf.reduce_max(tf.concat([model.rows.max_length, [2]], 0))


def first_tokens(model: Model, shape: list[tf.Tensor]) -> tf.Tensor:
    """Return sequences that hold the start token, then padding."""
    return put(
        tf.fill(shape, model.generation.pad_token_id), 0, model.generation.decoder_start_token_id
    )


def put(sequences: tf.Tensor, place: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Return sequences (..., target) with `tokens` (...) at a place of the last axis."""
    here = tf.range(tf.shape(sequences)[-1]) == place
    return tf.where(here, tf.convert_to_tensor(tokens)[..., None], sequences)


def pick(rows: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Return one value (rows,) of each of the rows (rows, values)."""
    return tf.gather(rows, places, batch_dims=1)
