"""Rows of logits: what forbids or discourages tokens, how one is chosen, and what it scores.

Processors edit logits in place, by the tokens so far, and never pass over the vocabulary; their
meaning and order are those of Hugging Face's `generate()`, and filters keep what its filters keep.
Chance is NumPy's PCG64 generator, one uniform number a token: a seed gives the same tokens on every
platform, but not those of PyTorch's generator. The largest entries of a row are found without
sorting it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bart_export.config import GenerationConfig
from bart_export.errors import EngineError

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Totals = npt.NDArray[np.float64]

# The tokens of a row fall into this many classes, token t into class t modulo CLASSES. A maximum
# per class is one pass of vector instructions, and the n classes with the largest maxima hold the
# n largest tokens.
CLASSES = 512


def log_normalizers(logits: FloatArray) -> FloatArray:
    """Return log(sum(exp(row))) of each row: what to subtract from a logit for its log-probability.

    `logits` is (beams, vocabulary), the result (beams,) in the same precision. It is never below
    the row's largest logit, so that no log-probability is above 0. Entries of -inf are tokens that
    cannot be had.

    Raises:
        EngineError: when a logit is NaN or infinite, or when no token can be had.
    """
    peaks = logits.max(axis=1)
    if not np.isfinite(peaks).all():
        raise EngineError(
            "Expected finite logits from the decoder, received NaN or infinity: the file is "
            "damaged or this runtime computes it wrongly. Another recipe or runtime may work."
        )
    sums = np.empty_like(peaks)
    for row, peak in enumerate(peaks):  # row by row, the exponentials stay in the cache
        exponentials = logits[row] - peak
        np.exp(exponentials, out=exponentials)
        sums[row] = exponentials.sum()
    normalizers: FloatArray = peaks + np.log(sums)
    return normalizers


def kth_largest(row: FloatArray, k: int) -> float:
    """Return the k-th largest value of a row (vocabulary,), equal values counted apart.

    With fewer than k tokens it is the smallest.
    """
    maxima = class_maxima(row[None])[0]
    if k <= maxima.size:
        row = row[row >= nth_largest(maxima, k)]
    return nth_largest(row, k)


def largest(logits: FloatArray, offsets: Totals, count: int) -> tuple[Indices, Indices, Totals]:
    """Return rows, columns and values of the `count` largest of `logits + offsets[:, None]`.

    `logits` is (beams, vocabulary), `offsets` (beams,) and may be -inf. The results are (count,),
    best first, equal values in the order of row and column; fewer when there are fewer entries.
    """
    vocabulary = logits.shape[1]
    maxima = class_maxima(logits) + offsets[:, None]  # (beams, classes)
    beams, classes = np.nonzero(maxima >= nth_largest(maxima.ravel(), count))
    columns = classes[:, None] + np.arange(0, vocabulary, maxima.shape[1])
    inside = columns < vocabulary
    rows = np.broadcast_to(beams[:, None], columns.shape)[inside]
    columns = columns[inside]
    values = logits[rows, columns] + offsets[rows]
    kept = np.flatnonzero(values >= nth_largest(values, count))
    rows, columns, values = rows[kept], columns[kept], values[kept]
    order = np.lexsort((columns, rows, -values))[:count]
    return rows[order], columns[order], values[order]


def class_maxima(logits: FloatArray) -> FloatArray:
    """Return the largest logit of each class of tokens: (beams, at most CLASSES)."""
    beams, vocabulary = logits.shape
    classes = min(CLASSES, vocabulary)
    whole = vocabulary - vocabulary % classes
    maxima: FloatArray = logits[:, :whole].reshape(beams, -1, classes).max(axis=1)
    rest = maxima[:, : vocabulary - whole]
    np.maximum(rest, logits[:, whole:], out=rest)
    return maxima


def nth_largest(values: FloatArray | Totals, n: int) -> float:
    """Return the n-th largest of some values, the smallest when there are fewer."""
    return float(np.partition(values, -n)[-n] if n < values.size else values.min())


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


Choice = Callable[[FloatArray], int]


def greedy_choice(row: FloatArray) -> int:
    """Return the most likely token, the lowest id among equals."""
    return int(row.argmax())


def sampled_choice(generation: GenerationConfig) -> Choice:
    """Return a function that draws a token from processed logits (vocabulary,).

    Top-k keeps every token that is as likely as the k-th. Top-p keeps the fewest tokens whose
    probabilities reach `top_p`, among equals the lower ids. A row without a possible token gives
    token 0.
    """
    chance = np.random.Generator(np.random.PCG64(generation.seed))
    top_k, top_p = generation.top_k, generation.top_p

    def choose(row: FloatArray) -> int:
        peak = row.max()
        if peak == -np.inf:
            return 0
        possible = row >= kth_largest(row, top_k) if top_k else row > -np.inf
        tokens = np.flatnonzero(possible)
        scores = row[tokens].astype(np.float64) - float(peak)
        with np.errstate(over="ignore"):  # a temperature near 0 leaves the peak alone
            weights = np.exp(scores / generation.temperature)
        if top_p < 1:
            order = nucleus(weights, top_p)
            tokens, weights = tokens[order], weights[order]
        cumulative = weights.cumsum()
        place = int(np.searchsorted(cumulative, chance.random() * cumulative[-1], side="right"))
        return int(tokens[min(place, tokens.size - 1)])

    return choose


def nucleus(weights: Totals, top_p: float) -> Indices:
    """Return the indices of the largest weights that together reach the share `top_p` of all,
    largest first, at least one.
    """
    total = weights.sum()
    # All weights below this mean of the tail fit into the tail together: none needs sorting.
    heavy = np.flatnonzero(weights >= (1 - top_p) * total / weights.size)
    order = heavy[np.argsort(-weights[heavy], kind="stable")]
    before = np.cumsum(weights[order])[:-1]
    return order[: 1 + int(np.searchsorted(before, top_p * total, side="left"))]
