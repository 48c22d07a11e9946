"""The decoding loop shared by all searches in a graph, and the logits processors.

A search is a step function from one state, a tuple of tensors, to the next. Caches start small and
double when full, so that the cost of a step depends on the tokens generated so far and not on
`max_length`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from bart_export.config import GenerationConfig
from bart_export.graph import sequences
from bart_export.graph.layers import Bart
from bart_export.graph.sequences import EncodedSource

INFINITY = float("inf")


# A named tuple with `length`, int32, the number of tokens so far; `running`, bool (batch,), the
# unfinished rows; and `caches`.
State = TypeVar("State", bound=Any)


class RowSettings(NamedTuple):
    """Generation settings by row, each (batch,)."""

    max_length: tf.Tensor  # int32, from 2 to the model's number of positions
    min_length: tf.Tensor  # int32
    length_penalty: tf.Tensor  # float64
    repetition_penalty: tf.Tensor  # float32
    stops_early: tf.Tensor  # bool
    never_early: tf.Tensor  # bool


class Model(NamedTuple):
    """The constants of a search; `target` is the largest `max_length` in the batch."""

    bart: Bart
    source: EncodedSource
    generation: GenerationConfig
    rows: RowSettings
    target: tf.Tensor


def run(step: Callable[[Model, State, tf.Tensor], State], first: State, model: Model) -> State:
    """Repeat a step while any row is running, doubling the caches when they are full.

    `step` takes the model, a state and the capacity of its caches; `first` has no caches yet.
    """
    beams, size = model.generation.num_beams, model.bart.config.decoder_head_size
    batch, capacity = tf.shape(first.running)[0], tf.minimum(sequences.FIRST_CAPACITY, model.target)
    first = first._replace(caches=sequences.first_caches(model.bart.config, batch, beams, capacity))

    def unknown(state: State) -> object:
        return tf.nest.map_structure(
            lambda tensor: tf.TensorShape([None] * tensor.shape.rank), state
        )

    def unfinished(state: State, capacity: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(state.running)

    def until_full(state: State, capacity: tf.Tensor) -> tuple[State, tf.Tensor]:
        full: State = tf.while_loop(
            lambda inner: unfinished(inner, capacity) & (inner.length <= capacity),
            lambda inner: (step(model, inner, capacity),),
            (state,),
            shape_invariants=(unknown(state),),
        )[0]
        larger = tf.where(
            unfinished(full, capacity), tf.minimum(2 * capacity, model.target), capacity
        )
        caches = sequences.grow_caches(full.caches, capacity, larger, beams * size)
        return full._replace(caches=caches), larger

    shapes = (unknown(first), tf.TensorShape([]))
    last, _ = tf.while_loop(unfinished, until_full, (first, capacity), shape_invariants=shapes)
    ended: State = last
    return ended


def log_normalizers(logits: tf.Tensor) -> tf.Tensor:
    """Return the log-sum-exp of each row of logits (rows, vocabulary), never below its maximum.

    NaN or infinite logits raise InvalidArgumentError when the graph runs.
    """
    peaks = tf.reduce_max(logits, -1, keepdims=True)
    sums = tf.reduce_sum(tf.exp(logits - peaks), -1)
    return tf.debugging.check_numerics(
        peaks[:, 0] + tf.math.log(sums), "Expected finite logits from the decoder."
    )


def initial_sequences(model: Model, shape: list[tf.Tensor]) -> tf.Tensor:
    """Return sequences (*shape, target) of the start token and padding."""
    padding = tf.fill([*shape, model.target], model.generation.pad_token_id)
    return set_token(padding, 0, model.generation.decoder_start_token_id)


def set_token(token_ids: tf.Tensor, position: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Return sequences (..., target) with `tokens` (...) at one position."""
    is_position = tf.range(tf.shape(token_ids)[-1]) == position
    return tf.where(is_position, tf.convert_to_tensor(tokens)[..., None], token_ids)


def process_logits(
    generation: GenerationConfig,
    repetition_penalty: tf.Tensor,
    min_length: tf.Tensor,
    token_ids: tf.Tensor,
    logits: tf.Tensor,
    zeros: tf.Tensor,
) -> tf.Tensor:
    """Apply all logits processors, in Hugging Face's order.

    Args:
        generation: provides `no_repeat_ngram_size` and `end_token_ids`.
        repetition_penalty: float32 (rows,), positive; 1 has no effect.
        min_length: int32 (rows,), including the start token.
        token_ids: int32 (rows, length), the tokens so far, including the start token.
        logits: float32 (rows, vocabulary).
        zeros: float32 (rows,), the logit whose score is 0: zero if scores are raw logits, or the
            row's normalizer if they are log-probabilities.

    Returns:
        Logits (rows, vocabulary), -inf for tokens that are not allowed.
    """
    logits = tf.cond(
        tf.reduce_any(repetition_penalty != 1.0),
        lambda: penalize_repetition(repetition_penalty, token_ids, logits, zeros),
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
        logit_indices(tf.concat(tokens, 1)),
        tf.where(tf.concat(banned, 1), -INFINITY, INFINITY),
    )


def penalize_repetition(
    penalty: tf.Tensor, token_ids: tf.Tensor, logits: tf.Tensor, zeros: tf.Tensor
) -> tf.Tensor:
    """Divide positive scores of repeated tokens by `penalty` and multiply negative ones by it.

    See Keskar et al. 2019, https://arxiv.org/abs/1909.05858.
    """
    zeros, penalty = zeros[:, None], penalty[:, None]
    scores = tf.gather(logits, token_ids, batch_dims=1) - zeros
    scores = tf.where(scores < 0, scores * penalty, scores / penalty) + zeros
    return tf.tensor_scatter_nd_update(logits, logit_indices(token_ids), scores)


def ngram_ends(size: int, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the last token of every n-gram, and whether adding it would repeat the n-gram.

    Both are (rows, n-grams), int32 and bool.
    """
    starts = tf.shape(token_ids)[1] - size + 1  # positions at which an n-gram may start
    count = tf.maximum(starts, 0)
    ends = token_ids[:, size - 1 : size - 1 + count]
    repeats = tf.fill(tf.shape(ends), True)
    for offset in range(size - 1):
        # In sequences shorter than an n-gram, nothing is compared and any gathered token will do.
        last = tf.gather(token_ids, tf.maximum(starts + offset, 0), axis=1)[:, None]
        repeats &= token_ids[:, offset : offset + count] == last
    return ends, repeats


def logit_indices(tokens: tf.Tensor) -> tf.Tensor:
    """Return the indices of tokens (rows, count) in the logits, (rows, count, 2)."""
    rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(tokens))
    return tf.stack([rows, tokens], -1)


def is_end(generation: GenerationConfig, tokens: tf.Tensor) -> tf.Tensor:
    """Return whether each token ends a sequence."""
    return tf.reduce_any(tokens[..., None] == tf.constant(generation.end_token_ids), -1)


def forced_tokens(
    generation: GenerationConfig, max_length: tf.Tensor, length: tf.Tensor
) -> tf.Tensor:
    """Return each row's forced token after `length` tokens, or -1 if there is none.

    A forced token has log-probability 0. Where both apply, the forced end token wins.
    """
    begins = -1 if generation.forced_bos_token_id is None else generation.forced_bos_token_id
    forced = tf.fill(tf.shape(max_length), tf.where(length == 1, begins, -1))
    if generation.forced_eos_token_id is None:
        return forced
    return tf.where(length == max_length - 1, generation.forced_eos_token_id, forced)
