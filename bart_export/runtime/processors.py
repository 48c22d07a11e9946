"""What forbids or discourages tokens: edits of logits that depend on the tokens so far.

In go the sequences and their next logits, which are changed in place; out comes nothing. A
processor touches a few entries a row and never passes over the vocabulary. Meaning and order are
those of Hugging Face's `generate()`. Nothing here knows how a token is then chosen.
"""

from collections.abc import Callable

import numpy as np

from bart_export.config import GenerationConfig
from bart_export.runtime.scores import FloatArray, IntArray

# sequences (beams, length), start token included; logits (beams, vocabulary), changed in place;
# zeros (beams,), the logit that stands for a score of 0: zero itself where raw logits are
# processed, the row's normalizer where log-probabilities are.
Processor = Callable[[IntArray, FloatArray, FloatArray], None]


def processors(generation: GenerationConfig) -> tuple[Processor, ...]:
    """Return the processors that the settings switch on, in the order they are applied."""
    switches = (
        (generation.repetition_penalty != 1.0, repetition_penalty(generation.repetition_penalty)),
        (generation.no_repeat_ngram_size > 0, no_repeat_ngram(generation.no_repeat_ngram_size)),
        (generation.min_length > 0, min_length(generation.min_length, generation.end_token_ids)),
    )
    return tuple(processor for on, processor in switches if on)


def forced_token(generation: GenerationConfig, length: int) -> int | None:
    """Return the only token that may follow `length` tokens, start token included, if one is set.

    A forced token has a log-probability of 0, and its logits need not be computed. The end is
    forced after the beginning, and wins where both apply.
    """
    if length == generation.max_length - 1 and generation.forced_eos_token_id is not None:
        return generation.forced_eos_token_id
    return generation.forced_bos_token_id if length == 1 else None


def repetition_penalty(penalty: float) -> Processor:
    """Return the processor that divides positive scores of tokens seen before by `penalty` and
    multiplies negative ones by it (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).

    A penalty beyond what keeps logits within float32 does what the nearest one within does.
    """
    penalty = min(max(penalty, 1e-30), 1e30)

    def process(sequences: IntArray, logits: FloatArray, zeros: FloatArray) -> None:
        seen = sequences.astype(np.intp)
        scores = np.take_along_axis(logits, seen, axis=1) - zeros[:, None]
        scores = np.where(scores < 0, scores * penalty, scores / penalty) + zeros[:, None]
        np.put_along_axis(logits, seen, scores.astype(logits.dtype), axis=1)

    return process


def no_repeat_ngram(size: int) -> Processor:
    """Return the processor that bans every token that would end an n-gram seen before.

    Scanning the tokens anew costs less than keeping a table of n-grams for each beam would.
    """

    def process(sequences: IntArray, logits: FloatArray, zeros: FloatArray) -> None:
        beams, length = sequences.shape
        starts = length - size + 1  # where an n-gram seen before may start
        if starts <= 0:
            return
        repeats = np.ones((beams, starts), dtype=bool)
        for place in range(size - 1):
            last = sequences[:, starts + place, None]  # the n-gram about to be completed
            repeats &= sequences[:, place : place + starts] == last
        rows, positions = np.nonzero(repeats)
        logits[rows, sequences[rows, positions + size - 1]] = -np.inf

    return process


def min_length(length: int, end_token_ids: tuple[int, ...]) -> Processor:
    """Return the processor that bans every end token before `length` tokens, start included."""

    def process(sequences: IntArray, logits: FloatArray, zeros: FloatArray) -> None:
        if sequences.shape[1] < length:
            logits[:, end_token_ids] = -np.inf

    return process
