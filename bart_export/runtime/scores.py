"""Exact answers about rows of a vocabulary, found without sorting or copying the rows.

In go logits of every token, out come the normalizers that turn them into log-probabilities and the
few largest entries, equal values in the order of their index. A decoding step takes milliseconds;
these functions take tens of microseconds a row. Nothing here knows what a token means.
"""

import numpy as np
import numpy.typing as npt

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
