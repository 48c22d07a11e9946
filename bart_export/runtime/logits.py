"""Logits: processors, the choice of a token, and log-probabilities.

Processors modify logits in place, in the order of Hugging Face's `generate()`, without a pass over
the vocabulary. Sampling draws one number per token from NumPy's PCG64: a seed gives the same tokens
on every platform, but not those of PyTorch.
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

# Token t is in class t modulo CLASSES. The maxima of the classes take one vectorized pass, and the
# n largest tokens are in the n classes with the largest maxima.
CLASSES = 512


def log_normalizers(logits: FloatArray) -> FloatArray:
    """Return log(sum(exp(row))), to subtract from logits for log-probabilities.

    `logits` is (beams, vocabulary), with -inf for forbidden tokens; the result is (beams,) in the
    same precision. It is at least the row's largest logit, so that log-probabilities are at most 0.

    Raises:
        EngineError: if a logit is NaN or +inf, or all tokens of a row are forbidden.
    """
    peaks = logits.max(axis=1)
    if not np.isfinite(peaks).all():
        raise EngineError(
            "Expected finite logits from the decoder, received NaN or infinity: the file is "
            "damaged or this runtime runs it incorrectly. Another recipe or runtime may work."
        )
    sums = np.empty_like(peaks)
    for row, peak in enumerate(peaks):  # one row's exponentials fit the processor's cache
        exponentials = logits[row] - peak
        np.exp(exponentials, out=exponentials)
        sums[row] = exponentials.sum()
    normalizers: FloatArray = peaks + np.log(sums)
    return normalizers


def kth_largest(row: FloatArray, k: int) -> float:
    """Return the k-th largest value of a row (vocabulary,), or the smallest if there are fewer."""
    maxima = class_maxima(row[None])[0]
    if k <= maxima.size:
        row = row[row >= nth_largest(maxima, k)]
    return nth_largest(row, k)


def largest(logits: FloatArray, offsets: Totals, count: int) -> tuple[Indices, Indices, Totals]:
    """Return rows, columns and values of the `count` largest of `logits + offsets[:, None]`.

    `logits` is (beams, vocabulary); `offsets` is (beams,) and may be -inf. The results are (count,)
    or shorter, largest first, with equal values in order of row and column.
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
    even = vocabulary - vocabulary % classes
    maxima: FloatArray = logits[:, :even].reshape(beams, -1, classes).max(axis=1)
    rest = maxima[:, : vocabulary - even]
    np.maximum(rest, logits[:, even:], out=rest)
    return maxima


def nth_largest(values: FloatArray | Totals, n: int) -> float:
    """Return the n-th largest value, or the smallest if there are fewer."""
    return float(np.partition(values, -n)[-n] if n < values.size else values.min())


# Takes sequences (beams, length) with the start token; logits (beams, vocabulary), modified in
# place; and zeros (beams,), the logit of a score of 0: 0 for raw logits, or the row's normalizer
# for log-probabilities.
Processor = Callable[[IntArray, FloatArray, FloatArray], None]


def processors(generation: GenerationConfig) -> tuple[Processor, ...]:
    """Return the processors that the settings enable, in order."""
    switches = (
        (generation.repetition_penalty != 1.0, repetition_penalty(generation.repetition_penalty)),
        (generation.no_repeat_ngram_size > 0, no_repeat_ngram(generation.no_repeat_ngram_size)),
        (generation.min_length > 0, min_length(generation.min_length, generation.end_token_ids)),
    )
    return tuple(processor for on, processor in switches if on)


def forced_token(generation: GenerationConfig, length: int) -> int | None:
    """Return the forced token after `length` tokens, including the start token, or None.

    If both a first and a last token are forced, the last wins.
    """
    if length == generation.max_length - 1 and generation.forced_eos_token_id is not None:
        return generation.forced_eos_token_id
    return generation.forced_bos_token_id if length == 1 else None


def repetition_penalty(penalty: float) -> Processor:
    """Return the processor that penalizes tokens that have already occurred.

    It divides their positive scores by `penalty` and multiplies negative ones by it (Keskar et al.
    2019, https://arxiv.org/abs/1909.05858). Extreme penalties are clipped to keep logits within
    float32.
    """
    penalty = min(max(penalty, 1e-30), 1e30)

    def process(sequences: IntArray, logits: FloatArray, zeros: FloatArray) -> None:
        seen = sequences.astype(np.intp)
        scores = np.take_along_axis(logits, seen, axis=1) - zeros[:, None]
        scores = np.where(scores < 0, scores * penalty, scores / penalty) + zeros[:, None]
        np.put_along_axis(logits, seen, scores.astype(logits.dtype), axis=1)

    return process


def no_repeat_ngram(size: int) -> Processor:
    """Return the processor that bans tokens that would repeat an earlier n-gram.

    Scanning the tokens at each step is cheaper than a table of n-grams per beam.
    """

    def process(sequences: IntArray, logits: FloatArray, zeros: FloatArray) -> None:
        beams, length = sequences.shape
        starts = length - size + 1  # number of earlier n-grams
        if starts <= 0:
            return
        repeats = np.ones((beams, starts), dtype=bool)
        for place in range(size - 1):
            last = sequences[:, starts + place, None]  # of the incomplete n-gram
            repeats &= sequences[:, place : place + starts] == last
        rows, positions = np.nonzero(repeats)
        logits[rows, sequences[rows, positions + size - 1]] = -np.inf

    return process


def min_length(length: int, end_token_ids: tuple[int, ...]) -> Processor:
    """Return the processor that bans end tokens before `length` tokens, including the start."""

    def process(sequences: IntArray, logits: FloatArray, zeros: FloatArray) -> None:
        if sequences.shape[1] < length:
            logits[:, end_token_ids] = -np.inf

    return process


Choice = Callable[[FloatArray], int]


def greedy_choice(row: FloatArray) -> int:
    """Return the most likely token, or the lowest id among equals."""
    return int(row.argmax())


def sampled_choice(generation: GenerationConfig) -> Choice:
    """Return a function that samples a token from processed logits (vocabulary,).

    Top-k keeps all tokens that are at least as likely as the k-th. Top-p keeps the fewest tokens
    whose probabilities reach `top_p`, preferring lower ids among equals. If all tokens are
    forbidden, the result is 0.
    """
    uniform = np.random.Generator(np.random.PCG64(generation.seed))
    top_k, top_p = generation.top_k, generation.top_p

    def choose(row: FloatArray) -> int:
        peak = row.max()
        if peak == -np.inf:
            return 0
        possible = row >= kth_largest(row, top_k) if top_k else row > -np.inf
        tokens = np.flatnonzero(possible)
        scores = row[tokens].astype(np.float64) - float(peak)
        with np.errstate(over="ignore"):  # a temperature near 0 leaves only the peak
            weights = np.exp(scores / generation.temperature)
        if top_p < 1:
            order = nucleus(weights, top_p)
            tokens, weights = tokens[order], weights[order]
        cumulative = weights.cumsum()
        place = int(np.searchsorted(cumulative, uniform.random() * cumulative[-1], side="right"))
        return int(tokens[min(place, tokens.size - 1)])

    return choose


def nucleus(weights: Totals, top_p: float) -> Indices:
    """Return the fewest indices whose weights reach `top_p` of the total, largest first."""
    total = weights.sum()
    # All weights below this threshold fit into the tail together, so they need no sorting.
    heavy = np.flatnonzero(weights >= (1 - top_p) * total / weights.size)
    order = heavy[np.argsort(-weights[heavy], kind="stable")]
    before = np.cumsum(weights[order])[:-1]
    return order[: 1 + int(np.searchsorted(before, top_p * total, side="left"))]
