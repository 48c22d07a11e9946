"""Text generation inside a TensorFlow graph, by greedy or beam search.

The results are those of `runtime.search`, token for token. Each row of a batch gets the result
that it would get alone; the batch takes as long as its longest row.
"""

import tensorflow as tf

from bart_export.config import LOWEST, BartConfig, GenerationConfig, check_token_ids
from bart_export.errors import ConfigurationError
from bart_export.graph import sequences
from bart_export.graph.layers import Bart, Tensors
from bart_export.graph.loop import Model, RowSettings
from bart_export.graph.search import beam_search, greedy_search


def generate(
    bart: Bart,
    generation: GenerationConfig,
    encoder_token_ids: tf.Tensor,
    encoder_lengths: tf.Tensor,
    per_row: Tensors,
) -> Tensors:
    """Generate `num_return_sequences` sequences for each source.

    Lengths are clipped to the model's range, and a source longer than the model's positions is
    truncated before its end token. A row stops when its settings forbid every token; if beam search
    then has too few hypotheses, the missing ones have length 0 and the lowest finite float32 as
    their score, because JSON has no infinities. Scores are those of `runtime.search.Hypothesis`.

    When the graph runs, ids outside the vocabulary and invalid values in `per_row` raise
    InvalidArgumentError.

    Args:
        bart: the model, with weights from `graph.parameters.BatchParameters` in float32.
        generation: `num_beams`, `num_return_sequences`, `no_repeat_ngram_size` and the token ids;
            other fields are ignored.
        encoder_token_ids: int32 (batch, source).
        encoder_lengths: int32 (batch,).
        per_row: the tensors of `contract.GENERATION_INPUTS`.

    Returns:
        `decoder_token_ids` int32 (batch, sequences, target), padded to the longest,
        `decoder_lengths` int32 (batch, sequences), `scores` float32 (batch, sequences).

    Raises:
        ConfigurationError: if `do_sample` is set, or a token id is outside the vocabulary.
    """
    check_token_ids(generation, bart.config.vocabulary_size)
    if generation.do_sample:
        raise ConfigurationError(
            "Expected greedy or beam search in a graph, received do_sample=True."
        )
    model = prepare(bart, generation, encoder_token_ids, encoder_lengths, per_row)
    if generation.num_beams > 1:
        found = beam_search(model)
        tokens, lengths, scores = found.finished, found.lengths, found.scores
    else:
        greedy = greedy_search(model)
        tokens, lengths = greedy.tokens[:, None], greedy.lengths[:, None]
        scores = greedy.scores[:, None]
    returned = generation.num_return_sequences
    lengths = lengths[:, :returned]
    longest = tf.reduce_max(tf.concat([tf.reshape(lengths, [-1]), [0]], 0))
    finite = tf.clip_by_value(scores[:, :returned], tf.float32.min, tf.float32.max)
    return {
        "decoder_token_ids": tokens[:, :returned, :longest],
        "decoder_lengths": lengths,
        "scores": tf.cast(finite, tf.float32),
    }


def prepare(
    bart: Bart,
    generation: GenerationConfig,
    encoder_token_ids: tf.Tensor,
    encoder_lengths: tf.Tensor,
    per_row: Tensors,
) -> Model:
    """Encode the sources and return the constants of a search; see `generate`."""
    rows = row_settings(bart.config, per_row)
    ids, mask = fitted_source(bart.config, generation, encoder_token_ids, encoder_lengths)
    source = sequences.project_source(bart, sequences.encode(bart, ids, mask), mask)
    target = tf.reduce_max(tf.concat([rows.max_length, [2]], 0))
    return Model(bart, source, generation, rows, target)


def row_settings(config: BartConfig, per_row: Tensors) -> RowSettings:
    """Return the settings of each row, from the tensors of `contract.GENERATION_INPUTS`.

    Invalid values raise InvalidArgumentError when the graph runs. A `max_length` above the model's
    positions is clipped to them, because a server may batch the texts of several requests.
    """
    stopping, penalty = per_row["early_stopping"], per_row["repetition_penalty"]
    valid = (stopping == "true") | (stopping == "false") | (stopping == "never")
    checks = [
        ("early_stopping", valid, "true, false or never"),
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
    """Return ids (batch, source), truncated to the model's positions, and their padding mask.

    A truncated source ends with the end token. An empty source becomes one visible padding token,
    because attention needs at least one key.
    """
    longest = config.max_sequence_length
    lengths = tf.minimum(lengths, tf.shape(token_ids)[1])
    empty = tf.maximum(1 - tf.shape(token_ids)[1], 0)
    token_ids = tf.pad(
        token_ids[:, :longest], [[0, 0], [0, empty]], constant_values=generation.pad_token_id
    )
    cut = (lengths > longest)[:, None] & (tf.range(tf.shape(token_ids)[1]) == longest - 1)
    return sequences.clear_padding(tf.where(cut, generation.end_token_ids[0], token_ids), lengths)
