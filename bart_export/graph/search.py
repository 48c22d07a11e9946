"""Generation inside a TensorFlow graph: source ids and settings to hypotheses.

The semantics are those of `runtime.search`, token for token, greedy and with beams. A batch gives
each row what the row alone would get, and takes as long as its last row.
"""

import tensorflow as tf

from bart_export.config import LOWEST, BartConfig, GenerationConfig, check_token_ids
from bart_export.errors import ConfigurationError
from bart_export.graph import sequences
from bart_export.graph.layers import Bart, Tensors
from bart_export.graph.loop import Model, RowSettings
from bart_export.graph.strategies import beam_search, greedy_search


def generate(
    bart: Bart,
    generation: GenerationConfig,
    encoder_token_ids: tf.Tensor,
    encoder_lengths: tf.Tensor,
    per_row: Tensors,
) -> Tensors:
    """Generate `num_return_sequences` sequences for each source.

    Lengths out of range are brought into it, and a source longer than the model's positions is cut,
    the end token last. A row whose settings forbid every token stops there; where beam search then
    has fewer hypotheses than asked for, the missing ones have length 0 and the lowest float32 as
    their score, which JSON can carry. Scores are those of `runtime.search.Hypothesis`.

    Args:
        bart: the model, its weights float32 `graph.parameters.BatchParameters`.
        generation: `num_beams`, `num_return_sequences`, `no_repeat_ngram_size` and token ids; the
            rest of it is not looked at.
        encoder_token_ids: int32 (batch, source).
        encoder_lengths: int32 (batch,).
        per_row: the tensors of `contract.GENERATION_INPUTS`.

    Returns:
        `decoder_token_ids` int32 (batch, sequences, target), padded to the longest,
        `decoder_lengths` int32 (batch, sequences), `scores` float32 (batch, sequences).

    Raises:
        ConfigurationError: for settings that sample, or a token id that the model does not have.
            What only a request can get wrong is TensorFlow's InvalidArgumentError when the graph
            runs: ids outside of the vocabulary and values of `per_row` that mean nothing.
    """
    check_token_ids(generation, bart.config.vocabulary_size)
    if generation.do_sample:
        raise ConfigurationError(
            "A graph searches greedily or with beams, received do_sample=True."
        )
    model = prepare(bart, generation, encoder_token_ids, encoder_lengths, per_row)
    if generation.num_beams > 1:
        found = beam_search(model)
        tokens, lengths, scores = found.finished, found.lengths, found.scores
    else:
        alone = greedy_search(model)
        tokens, lengths = alone.tokens[:, None], alone.lengths[:, None]
        scores = alone.scores[:, None]
    returned = generation.num_return_sequences
    lengths = lengths[:, :returned]
    longest = tf.reduce_max(tf.concat([tf.reshape(lengths, [-1]), [0]], 0))
    within = tf.clip_by_value(scores[:, :returned], tf.float32.min, tf.float32.max)
    return {
        "decoder_token_ids": tokens[:, :returned, :longest],
        "decoder_lengths": lengths,
        "scores": tf.cast(within, tf.float32),
    }


def prepare(
    bart: Bart,
    generation: GenerationConfig,
    encoder_token_ids: tf.Tensor,
    encoder_lengths: tf.Tensor,
    per_row: Tensors,
) -> Model:
    """Encode the sources and return what a search needs; see `generate`."""
    rows = row_settings(bart.config, per_row)
    ids, mask = fitted_source(bart.config, generation, encoder_token_ids, encoder_lengths)
    source = sequences.project_source(bart, sequences.encode(bart, ids, mask), mask)
    target = tf.reduce_max(tf.concat([rows.max_length, [2]], 0))
    return Model(bart, source, generation, rows, target)


def row_settings(config: BartConfig, per_row: Tensors) -> RowSettings:
    """Return the settings of each row, from the tensors of `contract.GENERATION_INPUTS`.

    The graph fails with InvalidArgumentError for an `early_stopping` that is none of the three
    words, a `length_penalty` that is not finite, a `repetition_penalty` that is not above 0 and a
    length below `config.LOWEST`. A server may put texts of several requests into one batch, so a
    length beyond what there is room for is brought within it.
    """
    stopping, penalty = per_row["early_stopping"], per_row["repetition_penalty"]
    known = (stopping == "true") | (stopping == "false") | (stopping == "never")
    checks = [
        ("early_stopping", known, "true, false or never"),
        ("repetition_penalty", tf.math.is_finite(penalty) & (penalty > 0), "a number above 0"),
        ("length_penalty", tf.math.is_finite(per_row["length_penalty"]), "a finite number"),
    ]
    for name in ("max_length", "min_length"):
        lowest = LOWEST[name]
        checks.append((name, per_row[name] >= lowest, f"an integer of at least {lowest}"))
    asserted = [
        tf.debugging.Assert(
            tf.reduce_all(accepted),
            [f"{name} must be {words}, received", tf.boolean_mask(per_row[name], ~accepted)[:1]],
        )
        for name, accepted, words in checks
    ]
    with tf.control_dependencies(asserted):
        return RowSettings(
            max_length=tf.minimum(per_row["max_length"], config.max_sequence_length),
            min_length=tf.identity(per_row["min_length"]),
            length_penalty=tf.cast(per_row["length_penalty"], tf.float64),
            repetition_penalty=tf.identity(penalty),
            stops_early=stopping == "true",
            never_early=stopping == "never",
        )


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
    cut = (lengths > longest)[:, None] & (tf.range(tf.shape(token_ids)[1]) == longest - 1)
    return sequences.masked(tf.where(cut, generation.end_token_ids[0], token_ids), lengths)
