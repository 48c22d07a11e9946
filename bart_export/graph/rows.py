"""What a request says about each row of a batch, checked and brought within bounds in the graph.

In go the tensors of a request as they came, out come tensors that a search can rely on: no length
exceeds the model's positions, and no value is one that means nothing. A server may put texts of
several requests into one batch, so a length beyond what there is room for is brought within it.
"""

from typing import NamedTuple

import tensorflow as tf

from bart_export.config import LOWEST, BartConfig, GenerationConfig
from bart_export.graph import sequences


class RowSettings(NamedTuple):
    """Settings of each row: `max_length` (2 to the model's positions) and `min_length` int32,
    `length_penalty` float64, `repetition_penalty` float32, `stops_early` and `never_early` bool;
    all (batch,).
    """

    max_length: tf.Tensor
    min_length: tf.Tensor
    length_penalty: tf.Tensor
    repetition_penalty: tf.Tensor
    stops_early: tf.Tensor
    never_early: tf.Tensor


def row_settings(config: BartConfig, per_row: dict[str, tf.Tensor]) -> RowSettings:
    """Return the settings of each row, from the tensors of `contract.GENERATION_INPUTS`.

    The graph fails with InvalidArgumentError for an `early_stopping` that is none of the three
    words, a `length_penalty` that is not finite, a `repetition_penalty` that is not above 0 and a
    length below `config.LOWEST`.
    """
    stopping, penalty = per_row["early_stopping"], per_row["repetition_penalty"]
    known = (stopping == "true") | (stopping == "false") | (stopping == "never")
    checks = [
        checked(known, "early_stopping must be true, false or never, received", stopping),
        checked(
            tf.math.is_finite(penalty) & (penalty > 0),
            "repetition_penalty must be a number above 0, received",
            penalty,
        ),
        checked(
            tf.math.is_finite(per_row["length_penalty"]),
            "length_penalty must be a finite number, received",
            per_row["length_penalty"],
        ),
        *(
            checked(
                per_row[name] >= LOWEST[name],
                f"{name} must be an integer of at least {LOWEST[name]}, received",
                per_row[name],
            )
            for name in ("max_length", "min_length")
        ),
    ]
    with tf.control_dependencies(checks):
        return RowSettings(
            max_length=tf.minimum(per_row["max_length"], config.max_sequence_length),
            min_length=tf.identity(per_row["min_length"]),
            length_penalty=tf.cast(per_row["length_penalty"], tf.float64),
            repetition_penalty=tf.identity(penalty),
            stops_early=stopping == "true",
            never_early=stopping == "never",
        )


def checked(accepted: tf.Tensor, message: str, values: tf.Tensor) -> tf.Operation:
    """Return an operation that fails with the message and the first value not accepted."""
    refused = tf.boolean_mask(values, ~accepted)[:1]
    return tf.debugging.Assert(tf.reduce_all(accepted), [message, refused])


def fitted_source(
    config: BartConfig, generation: GenerationConfig, token_ids: tf.Tensor, lengths: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return ids (batch, source) that the model has positions for, and their padding mask.

    A longer source keeps its beginning and ends with the end token. An empty one is a padding
    token, which its mask shows: attention needs something to look at.
    """
    longest = config.max_sequence_length
    lengths = tf.minimum(lengths, tf.shape(token_ids)[1])
    empty = tf.maximum(1 - tf.shape(token_ids)[1], 0)
    token_ids = tf.pad(
        token_ids[:, :longest], [[0, 0], [0, empty]], constant_values=generation.pad_token_id
    )
    padding_mask = sequences.mask(lengths, tf.shape(token_ids)[1])
    cut = (lengths > longest)[:, None] & (tf.range(tf.shape(token_ids)[1]) == longest - 1)
    token_ids = tf.where(cut, generation.end_token_ids[0], token_ids)
    # Whatever stands beyond a sequence's end need not be a token.
    return token_ids * padding_mask, padding_mask
