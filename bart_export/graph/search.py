"""Greedy and beam search over a batch inside a TensorFlow graph.

Each row gets the result of `runtime.search`; finished rows no longer change. Sums of
log-probabilities are float64, as in `runtime.search`.
"""

from typing import NamedTuple

import tensorflow as tf

from bart_export.graph import sequences
from bart_export.graph.layers import MASK_BIAS
from bart_export.graph.loop import (
    INFINITY,
    Model,
    RowSettings,
    forced_tokens,
    initial_sequences,
    is_end,
    log_normalizers,
    process_logits,
    run,
    set_token,
)
from bart_export.graph.sequences import Caches


class Greedy(NamedTuple):
    """The state of a greedy search; the next token is at `length`."""

    length: tf.Tensor  # int32
    running: tf.Tensor  # bool (batch,)
    tokens: tf.Tensor  # int32 (batch, target)
    lengths: tf.Tensor  # int32 (batch,)
    scores: tf.Tensor  # float64 (batch,)
    caches: Caches


def greedy_search(model: Model) -> Greedy:
    """Choose each row's most likely token until every row has ended."""
    batch = tf.shape(model.rows.max_length)[0]
    first = Greedy(
        length=tf.constant(1),
        running=tf.fill([batch], True),
        tokens=initial_sequences(model, [batch]),
        lengths=model.rows.max_length,
        scores=tf.zeros([batch], tf.float64),
        caches=(),
    )
    return run(greedy_step, first, model)


def greedy_step(model: Model, state: Greedy, capacity: tf.Tensor) -> Greedy:
    """Choose every row's token at `state.length`."""
    generation, rows, length = model.generation, model.rows, state.length
    position = length - 1
    future = tf.range(capacity) > position
    hidden, caches = sequences.decode_step(
        model.bart,
        model.source,
        state.caches,
        capacity,
        position,
        tf.gather(state.tokens, [position], axis=1),
        tf.cast(future, tf.float32)[None, None, None, :] * MASK_BIAS,
    )
    logits = sequences.logits(model.bart, hidden)
    normalizers = log_normalizers(logits)
    allowed = process_logits(
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
    possible = ~free | (tf.gather(allowed, likeliest, batch_dims=1) > -INFINITY)
    chosen = state.running & possible
    gained = tf.cast(tf.gather(logits, likeliest, batch_dims=1) - normalizers, tf.float64)
    ends = is_end(generation, token) | (length + 1 == rows.max_length)
    stopped_at = tf.where(possible, length + 1, length)
    return Greedy(
        length=length + 1,
        running=chosen & ~ends,
        tokens=set_token(state.tokens, length, tf.where(chosen, token, generation.pad_token_id)),
        lengths=tf.where(state.running & (ends | ~possible), stopped_at, state.lengths),
        scores=state.scores + tf.where(chosen & free, gained, 0.0),
        caches=caches,
    )


class Beams(NamedTuple):
    """The state of a beam search; the next tokens are at `length`.

    Unfinished and finished sequences are kept separately, best first, with totals and scores of
    -inf in unused places.
    """

    length: tf.Tensor  # int32
    running: tf.Tensor  # bool (batch,)
    tokens: tf.Tensor  # int32 (batch, beams, target), unfinished sequences
    totals: tf.Tensor  # float64 (batch, beams), their sums of log-probabilities
    # int32 (batch, beams, target): the beam that wrote a beam's cache entry at each position, or -1
    ancestors: tf.Tensor
    finished: tf.Tensor  # int32 (batch, beams, target), finished sequences
    lengths: tf.Tensor  # int32 (batch, beams), their lengths
    scores: tf.Tensor  # float64 (batch, beams), their scores
    caches: Caches


def beam_search(model: Model) -> Beams:
    """Search with `num_beams` beams per row."""
    beams, batch = model.generation.num_beams, tf.shape(model.rows.max_length)[0]
    first = Beams(
        length=tf.constant(1),
        running=tf.fill([batch], True),
        tokens=initial_sequences(model, [batch, beams]),
        # All beams begin identically, so all but the first are excluded.
        totals=tf.tile(tf.constant([[0.0] + [-INFINITY] * (beams - 1)], tf.float64), [batch, 1]),
        ancestors=tf.fill([batch, beams, model.target], -1),
        finished=tf.fill([batch, beams, model.target], model.generation.pad_token_id),
        lengths=tf.zeros([batch, beams], tf.int32),
        scores=tf.fill([batch, beams], tf.constant(-INFINITY, tf.float64)),
        caches=(),
    )
    return run(beam_step, first, model)


def beam_step(model: Model, state: Beams, capacity: tf.Tensor) -> Beams:
    """Choose the tokens at `state.length` of every beam."""
    generation, rows, length = model.generation, model.rows, state.length
    logits, normalizers, ancestors, caches = beam_logits(model, state, capacity)
    origins, tokens, sums = candidates(model, state, logits, normalizers)
    possible = (sums > -INFINITY) & state.running[:, None]
    last = length + 1 == rows.max_length
    ends = possible & (last[:, None] | is_end(generation, tokens))
    longer = set_token(tf.gather(state.tokens, origins, batch_dims=1), length, tokens)

    finished, lengths, scores = best_finished(model, state, longer, ends, sums)

    # Keep the first unfinished candidates, in order; there may be fewer than `num_beams`.
    unfinished = possible & ~ends
    count = sums.shape[1]
    present, places = tf.math.top_k(
        tf.where(unfinished, tf.range(count, 0, -1), 0), generation.num_beams
    )
    present = present > 0
    places = tf.where(present, places, places[:, :1])
    totals = tf.where(present, tf.gather(sums, places, batch_dims=1), -INFINITY)
    full = scores[:, -1] > -INFINITY
    improves = may_improve(rows, totals[:, 0], length, scores[:, -1])
    return Beams(
        length=length + 1,
        running=tf.reduce_any(unfinished, 1) & (~full | improves),
        tokens=tf.gather(longer, places, batch_dims=1),
        totals=totals,
        ancestors=tf.gather(ancestors, tf.gather(origins, places, batch_dims=1), batch_dims=1),
        finished=finished,
        lengths=lengths,
        scores=scores,
        caches=caches,
    )


def beam_logits(
    model: Model, state: Beams, capacity: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Caches]:
    """Run the decoder for the last token of every beam.

    Returns:
        Processed logits (batch * beams, vocabulary), their normalizers (batch * beams,), the
        ancestors including this position, and the updated caches.
    """
    beams, rows, length = model.generation.num_beams, model.rows, state.length
    position = length - 1
    ancestors = set_token(state.ancestors, position, tf.range(beams))
    mask_bias = tf.one_hot(ancestors[:, :, :capacity], beams, on_value=0.0, off_value=MASK_BIAS)
    hidden, caches = sequences.decode_step(
        model.bart,
        model.source,
        state.caches,
        capacity,
        position,
        tf.reshape(tf.gather(state.tokens, position, axis=2), [-1, beams]),
        tf.reshape(mask_bias, [-1, 1, beams, capacity * beams]),
    )
    logits = sequences.logits(model.bart, hidden)
    normalizers = log_normalizers(logits)
    logits = process_logits(
        model.generation,
        tf.repeat(rows.repetition_penalty, beams),
        tf.repeat(rows.min_length, beams),
        tf.reshape(state.tokens[:, :, :length], [-1, length]),
        logits,
        normalizers,
    )
    return logits, normalizers, ancestors, caches


def candidates(
    model: Model, state: Beams, logits: tf.Tensor, normalizers: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the best continuations of each row, best first.

    There are `(1 + end tokens) * num_beams` candidates, so that at least `num_beams` do not end.

    Returns:
        The beam of each candidate and its token, int32, and its sum of log-probabilities, float64,
        or -inf in unused places; all (batch, candidates).
    """
    beams, rows = model.generation.num_beams, model.rows
    most = (1 + len(model.generation.end_token_ids)) * beams
    each = min(most, model.bart.config.vocabulary_size)
    values, tokens = tf.math.top_k(logits, each)
    offsets = state.totals - tf.cast(tf.reshape(normalizers, [-1, beams]), tf.float64)
    sums = tf.cast(tf.reshape(values, [-1, beams, each]), tf.float64) + offsets[:, :, None]
    count = min(most, beams * each)
    sums, places = tf.math.top_k(tf.reshape(sums, [-1, beams * each]), count)
    tokens = tf.gather(tf.reshape(tokens, [-1, beams * each]), places, batch_dims=1)

    forced = forced_tokens(model.generation, rows.max_length, state.length)[:, None]
    rest = [[0, 0], [0, count - beams]]
    free = forced < 0
    return (
        tf.where(free, places // each, tf.minimum(tf.range(count), beams - 1)),
        tf.where(free, tokens, forced),
        tf.where(free, sums, tf.pad(state.totals, rest, constant_values=-INFINITY)),
    )


def best_finished(
    model: Model, state: Beams, longer: tf.Tensor, ends: tf.Tensor, sums: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the best finished sequences, including this step's, with lengths and scores.

    As in Hugging Face's beam search, candidates ranked below `num_beams` cannot finish.
    """
    beams, length = model.generation.num_beams, state.length
    divisors = length_divisors(model.rows.length_penalty, length)[:, None]
    ending = tf.where(ends[:, :beams], sums[:, :beams] / divisors, -INFINITY)
    # In ties, the earlier sequence comes first.
    scores, places = tf.math.top_k(tf.concat([state.scores, ending], 1), beams)
    finished = tf.concat([state.finished, longer[:, :beams]], 1)
    lengths = tf.concat([state.lengths, tf.where(ends[:, :beams], length + 1, 0)], 1)
    return (
        tf.gather(finished, places, batch_dims=1),
        tf.gather(lengths, places, batch_dims=1),
        scores,
    )


def may_improve(
    rows: RowSettings, totals: tf.Tensor, length: tf.Tensor, worst_scores: tf.Tensor
) -> tf.Tensor:
    """Return whether each row can still improve once `num_beams` sequences are finished.

    `totals` (batch,) are those of the best beams after `length` generated tokens; `worst_scores`
    (batch,) are the lowest scores of finished sequences. See `runtime.search.may_improve`.
    """
    reached = tf.where(rows.never_early & (rows.length_penalty > 0), rows.max_length - 1, length)
    divisors = length_divisors(rows.length_penalty, reached)
    return ~rows.stops_early & (totals / divisors > worst_scores)


def length_divisors(length_penalty: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Return length ** length_penalty, clipped to a range that float64 can divide by."""
    powers = tf.pow(tf.cast(length, tf.float64), length_penalty)
    return tf.clip_by_value(powers, 1e-300, 1e300)
