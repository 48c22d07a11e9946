"""Greedy search inside a TensorFlow graph, over a batch.

The semantics are those of `runtime.search.token_search` without sampling, for every row as if it
were alone: a row that has ended changes no more.
"""

from functools import partial
from typing import NamedTuple

import tensorflow as tf

from bart_export.graph import cached, sequences
from bart_export.graph.cached import Caches
from bart_export.graph.layers import CLOSED
from bart_export.graph.loop import (
    INFINITY,
    Model,
    first_tokens,
    log_normalizers,
    pick,
    put,
    run,
    target_length,
)
from bart_export.graph.processors import forced_tokens, is_end, processed


class Greedy(NamedTuple):
    """A greedy search before it chooses the token at `length`.

    `running` bool, `lengths` int32 and `scores` float64 are (batch,), `tokens` int32 (batch,
    target).
    """

    length: tf.Tensor
    running: tf.Tensor
    tokens: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    caches: Caches


def greedy_search(model: Model) -> Greedy:
    """Choose the likeliest token of each row until every row has ended."""
    batch, target = tf.shape(model.rows.max_length)[0], target_length(model)
    first = Greedy(
        length=tf.constant(1),
        running=tf.fill([batch], True),
        tokens=first_tokens(model, [batch, target]),
        lengths=model.rows.max_length,
        scores=tf.zeros([batch], tf.float64),
        caches=(),
    )
    return run(partial(greedy_step, model), first, model, target)


def greedy_step(model: Model, state: Greedy, capacity: tf.Tensor) -> Greedy:
    """Choose the token at `state.length` of every row."""
    generation, rows, length = model.generation, model.rows, state.length
    position = length - 1
    future = tf.range(capacity) > position
    hidden, caches = cached.decode_step(
        model.config,
        model.parameters,
        model.source,
        state.caches,
        capacity,
        position,
        tf.gather(state.tokens, [position], axis=1),
        tf.cast(future, tf.float32)[None, None, None, :] * CLOSED,
    )
    logits = sequences.logits(model.config, model.parameters, hidden)
    normalizers = log_normalizers(logits)
    allowed = processed(
        generation,
        rows.repetition_penalty,
        rows.min_length,
        state.tokens[:, :length],
        logits,
        tf.zeros_like(normalizers),
    )
    likeliest = tf.argmax(allowed, -1, tf.int32)
    forced = forced_tokens(generation, rows.max_length, length)
    free = forced < 0
    token = tf.where(free, likeliest, forced)
    possible = ~free | (pick(allowed, likeliest) > -INFINITY)
    chosen = state.running & possible
    gained = tf.cast(pick(logits, likeliest) - normalizers, tf.float64)
    ends = is_end(generation, token) | (length + 1 == rows.max_length)
    stopped_at = tf.where(possible, length + 1, length)
    return Greedy(
        length=length + 1,
        running=chosen & ~ends,
        tokens=put(state.tokens, length, tf.where(chosen, token, generation.pad_token_id)),
        lengths=tf.where(state.running & (ends | ~possible), stopped_at, state.lengths),
        scores=state.scores + tf.where(chosen & free, gained, 0.0),
        caches=caches,
    )
