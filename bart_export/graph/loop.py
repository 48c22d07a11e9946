"""The loop under every search in a graph, and the logits processors it applies.

A search is a state, a tuple of tensors, that a step turns into the next. The loop repeats the step
and sees to the caches. Caches begin small and double, so that a step costs what the tokens so far
cost, not what `max_length` would.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from bart_export.config import GenerationConfig
from bart_export.graph import sequences
from bart_export.graph.layers import Bart
from bart_export.graph.sequences import Source

INFINITY = float("inf")


# A named tuple with `length`, int32: how many tokens every sequence has so far; `running`, bool
# (batch,): the rows that have not ended; and `caches`.
State = TypeVar("State", bound=Any)


class RowSettings(NamedTuple):
    """Settings of each row, all (batch,)."""

    max_length: tf.Tensor  # int32, 2 to the model's positions
    min_length: tf.Tensor  # int32
    length_penalty: tf.Tensor  # float64
    repetition_penalty: tf.Tensor  # float32
    stops_early: tf.Tensor  # bool
    never_early: tf.Tensor  # bool


class Model(NamedTuple):
    """What the steps of one search have in common; `target` is the longest row's length."""

    bart: Bart
    source: Source
    generation: GenerationConfig
    rows: RowSettings
    target: tf.Tensor


def run(step: Callable[[Model, State, tf.Tensor], State], first: State, model: Model) -> State:
    """Repeat a step while any row is running, over caches that double when they are full.

    A step takes the model, a state and the capacity of its caches. `first` comes without caches.
    """
    beams, size = model.generation.num_beams, model.bart.config.decoder_head_size
    batch, capacity = tf.shape(first.running)[0], tf.minimum(sequences.FIRST_CAPACITY, model.target)
    first = first._replace(caches=sequences.first_caches(model.bart.config, batch, beams, capacity))

    def unknown(state: State) -> object:
        return tf.nest.map_structure(
            lambda tensor: tf.TensorShape([None] * tensor.shape.rank), state
        )

    def goes_on(state: State, capacity: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(state.running)

    def until_full(state: State, capacity: tf.Tensor) -> tuple[State, tf.Tensor]:
        full: State = tf.while_loop(
            lambda inner: goes_on(inner, capacity) & (inner.length <= capacity),
            lambda inner: (step(model, inner, capacity),),
            (state,),
            shape_invariants=(unknown(state),),
        )[0]
        larger = tf.where(goes_on(full, capacity), tf.minimum(2 * capacity, model.target), capacity)
        caches = sequences.grown(full.caches, capacity, larger, beams * size)
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


def first_tokens(model: Model, shape: list[tf.Tensor]) -> tf.Tensor:
    """Return sequences (*shape, target) that hold the start token, then padding."""
    padding = tf.fill([*shape, model.target], model.generation.pad_token_id)
    return put(padding, 0, model.generation.decoder_start_token_id)


def put(token_ids: tf.Tensor, place: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Return sequences (..., target) with `tokens` (...) at a place of the last axis."""
    is_place = tf.range(tf.shape(token_ids)[-1]) == place
    return tf.where(is_place, tf.convert_to_tensor(tokens)[..., None], token_ids)


def processed(
    generation: GenerationConfig,
    repetition_penalty: tf.Tensor,
    min_length: tf.Tensor,
    token_ids: tf.Tensor,
    logits: tf.Tensor,
    zeros: tf.Tensor,
) -> tf.Tensor:
    """Apply every processor, in Hugging Face's order.

    Args:
        generation: gives `no_repeat_ngram_size` and `end_token_ids`.
        repetition_penalty: float32 (rows,), above 0; 1 does nothing.
        min_length: int32 (rows,), start token included.
        token_ids: int32 (rows, length), the tokens so far, start token included.
        logits: float32 (rows, vocabulary).
        zeros: float32 (rows,), the logit that stands for a score of 0: zero itself where raw logits
            are processed, the row's normalizer where log-probabilities are.

    Returns:
        Logits (rows, vocabulary), -inf where a token may not follow.
    """
    logits = tf.cond(
        tf.reduce_any(repetition_penalty != 1.0),
        lambda: penalized(repetition_penalty, token_ids, logits, zeros),
        lambda: logits,
    )
    rows, length = tf.unstack(tf.shape(token_ids))
    too_short = (length < min_length)[:, None]
    ends = generation.end_token_ids
    tokens = [tf.tile([ends], [rows, 1])]
    banned = [tf.tile(too_short, [1, len(ends)])]
    if generation.no_repeat_ngram_size:
        repeated, repeats = ngram_ends(generation.no_repeat_ngram_size, token_ids)
        tokens.append(repeated)
        banned.append(repeats)
    return tf.tensor_scatter_nd_min(
        logits,
        logit_places(tf.concat(tokens, 1)),
        tf.where(tf.concat(banned, 1), -INFINITY, INFINITY),
    )


def penalized(
    penalty: tf.Tensor, token_ids: tf.Tensor, logits: tf.Tensor, zeros: tf.Tensor
) -> tf.Tensor:
    """Divide positive scores of tokens seen before by `penalty` and multiply negative ones by it
    (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    """
    zeros, penalty = zeros[:, None], penalty[:, None]
    scores = tf.gather(logits, token_ids, batch_dims=1) - zeros
    scores = tf.where(scores < 0, scores * penalty, scores / penalty) + zeros
    return tf.tensor_scatter_nd_update(logits, logit_places(token_ids), scores)


def ngram_ends(size: int, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the last token of every n-gram in the sequences, and whether the n-gram begins as the
    one about to be completed: int32 and bool, (rows, n-grams).
    """
    starts = tf.shape(token_ids)[1] - size + 1  # where an n-gram seen before may start
    count = tf.maximum(starts, 0)
    ends = token_ids[:, size - 1 : size - 1 + count]
    repeats = tf.fill(tf.shape(ends), True)
    for place in range(size - 1):
        # Of sequences shorter than an n-gram nothing is compared, whatever is gathered for them.
        last = tf.gather(token_ids, tf.maximum(starts + place, 0), axis=1)[:, None]
        repeats &= token_ids[:, place : place + count] == last
    return ends, repeats


def logit_places(tokens: tf.Tensor) -> tf.Tensor:
    """Return the indices into logits of tokens (rows, count): (rows, count, 2)."""
    rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(tokens))
    return tf.stack([rows, tokens], -1)


def is_end(generation: GenerationConfig, tokens: tf.Tensor) -> tf.Tensor:
    """Return whether each token ends a sequence."""
    return tf.reduce_any(tokens[..., None] == tf.constant(generation.end_token_ids), -1)


def forced_tokens(
    generation: GenerationConfig, max_length: tf.Tensor, length: tf.Tensor
) -> tf.Tensor:
    """Return the only token that may follow `length` tokens of each row, -1 where any may.

    A forced token has a log-probability of 0. The end is forced after the beginning, and wins where
    both apply.
    """
    begins = -1 if generation.forced_bos_token_id is None else generation.forced_bos_token_id
    forced = tf.fill(tf.shape(max_length), tf.where(length == 1, begins, -1))
    if generation.forced_eos_token_id is None:
        return forced
    return tf.where(length == max_length - 1, generation.forced_eos_token_id, forced)
