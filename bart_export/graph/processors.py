"""What forbids or discourages tokens, in TensorFlow: `runtime.processors` for a batch.

In go the sequences of rows that are decoded side by side and their next logits, out come processed
logits. The size of n-grams is fixed when the graph is made, penalties and lengths are values of
each row. Nothing here knows how a token is then chosen.
"""

import tensorflow as tf

from bart_export.config import GenerationConfig

INFINITY = float("inf")


def processed(
    generation: GenerationConfig,
    repetition_penalty: tf.Tensor,
    min_length: tf.Tensor,
    sequences: tf.Tensor,
    logits: tf.Tensor,
    zeros: tf.Tensor,
) -> tf.Tensor:
    """Apply every processor, in Hugging Face's order.

    Args:
        generation: gives `no_repeat_ngram_size` and `end_token_ids`.
        repetition_penalty: float32 (rows,), above 0; 1 does nothing.
        min_length: int32 (rows,), start token included.
        sequences: int32 (rows, length), the tokens so far, start token included.
        logits: float32 (rows, vocabulary).
        zeros: float32 (rows,), the logit that stands for a score of 0: zero itself where raw logits
            are processed, the row's normalizer where log-probabilities are.

    Returns:
        Logits (rows, vocabulary), -inf where a token may not follow.
    """
    logits = tf.cond(
        tf.reduce_any(repetition_penalty != 1.0),
        lambda: penalized(repetition_penalty, sequences, logits, zeros),
        lambda: logits,
    )
    rows, length = tf.unstack(tf.shape(sequences))
    too_short = (length < min_length)[:, None]
    ends = generation.end_token_ids
    tokens = [tf.tile([ends], [rows, 1])]
    banned = [tf.tile(too_short, [1, len(ends)])]
    if generation.no_repeat_ngram_size:
        repeated, repeats = ngram_ends(generation.no_repeat_ngram_size, sequences)
        tokens.append(repeated)
        banned.append(repeats)
    return tf.tensor_scatter_nd_min(
        logits,
        places(tf.concat(tokens, 1)),
        tf.where(tf.concat(banned, 1), -INFINITY, INFINITY),
    )


def penalized(
    penalty: tf.Tensor, sequences: tf.Tensor, logits: tf.Tensor, zeros: tf.Tensor
) -> tf.Tensor:
    """Divide positive scores of tokens seen before by `penalty` and multiply negative ones by it
    (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    """
    zeros, penalty = zeros[:, None], penalty[:, None]
    scores = tf.gather(logits, sequences, batch_dims=1) - zeros
    scores = tf.where(scores < 0, scores * penalty, scores / penalty) + zeros
    return tf.tensor_scatter_nd_update(logits, places(sequences), scores)


def ngram_ends(size: int, sequences: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the last token of every n-gram in the sequences, and whether the n-gram begins as the
    one about to be completed: int32 and bool, (rows, n-grams).
    """
    starts = tf.shape(sequences)[1] - size + 1  # where an n-gram seen before may start
    count = tf.maximum(starts, 0)
    ends = sequences[:, size - 1 : size - 1 + count]
    repeats = tf.fill(tf.shape(ends), True)
    for place in range(size - 1):
        # Of sequences shorter than an n-gram nothing is compared, whatever is gathered here.
        last = tf.gather(sequences, tf.maximum(starts + place, 0), axis=1)[:, None]
        repeats &= sequences[:, place : place + count] == last
    return ends, repeats


def is_end(generation: GenerationConfig, tokens: tf.Tensor) -> tf.Tensor:
    """Say of each token whether it ends a sequence."""
    return tf.reduce_any(tokens[..., None] == tf.constant(generation.end_token_ids), -1)


def places(tokens: tf.Tensor) -> tf.Tensor:
    """Return the indices into logits of tokens (rows, count): (rows, count, 2)."""
    rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(tokens))
    return tf.stack([rows, tokens], -1)


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
