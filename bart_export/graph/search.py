"""Generation inside a TensorFlow graph: source ids and settings go in, hypotheses come out.

The semantics are those of `runtime.search`, token for token, greedy and with beams. A batch gives
each row what the row alone would get, and takes as long as its last row.
"""

import tensorflow as tf

from bart_export.config import BartConfig, GenerationConfig, check_token_ids
from bart_export.errors import ConfigurationError
from bart_export.graph import cached, sequences
from bart_export.graph.beams import beam_search
from bart_export.graph.greedy import greedy_search
from bart_export.graph.layers import Parameters
from bart_export.graph.loop import Model
from bart_export.graph.rows import fitted_source, row_settings

Tensors = dict[str, tf.Tensor]


def generate(
    config: BartConfig,
    parameters: Parameters,
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
        config: the architecture.
        parameters: weights, laid out as `graph.parameters.BatchParameters` says.
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
    check_token_ids(generation, config.vocabulary_size)
    if generation.do_sample:
        raise ConfigurationError(
            "A graph searches greedily or with beams, received do_sample=True."
        )
    rows = row_settings(config, per_row)
    token_ids, padding_mask = fitted_source(config, generation, encoder_token_ids, encoder_lengths)
    parameters = sequences.float32(parameters)
    encoded = sequences.encode_masked(config, parameters, token_ids, padding_mask)
    source = cached.cross_tensors(config, parameters, encoded, padding_mask)
    model = Model(config, parameters, source, generation, rows)
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
