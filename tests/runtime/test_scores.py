import numpy as np
import pytest

from bart_export.errors import EngineError
from bart_export.runtime.logits import CLASSES, kth_largest, largest, log_normalizers

SIZES = (1, 6, CLASSES - 1, CLASSES, CLASSES + 1, 3 * CLASSES, 50265)


def rows(size, beams, stream, distinct):
    """Random logits, a few distinct values so that many are equal, some of them -inf."""
    values = stream.normal(size=distinct).astype(np.float32) * 4
    values[: distinct // 8] = -np.inf
    return values[stream.integers(distinct, size=(beams, size))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("distinct", [5, 100_000])
def test_the_largest_are_those_of_a_stable_sort(size, distinct):
    stream = np.random.default_rng(size)
    for count in (1, 4, 16):
        logits = rows(size, 3, stream, distinct)
        offsets = np.array([0.0, -0.25, -np.inf])
        everything = logits + offsets[:, None]
        order = np.argsort(-everything, axis=None, kind="stable")[:count]
        found = largest(logits, offsets, count)
        expected = (order // size, order % size, everything.ravel()[order])
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("distinct", [5, 100_000])
def test_the_kth_largest_is_that_of_a_sort(size, distinct):
    row = rows(size, 1, np.random.default_rng(size), distinct)[0]
    for k in (1, 2, 50, CLASSES + 3, 60_000):
        assert kth_largest(row, k) == np.sort(row)[::-1][min(k, size) - 1]


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_is_found_at_either_end_of_a_row(size):
    for column in {0, size // 2, size - 1}:
        logits = np.random.default_rng(0).random((2, size), np.float32)
        logits[1, column] = 3.0
        rows, columns, values = largest(logits, np.zeros(2), 1)
        assert (rows[0], columns[0], values[0]) == (1, column, 3.0)
        assert kth_largest(logits[1], 1) == 3.0


def test_normalizers_turn_logits_into_log_probabilities():
    logits = np.random.default_rng(0).normal(size=(4, 50265)).astype(np.float32) * 5
    logits[1] -= 1000
    logits[2] *= 20
    logits[3, 7:] = -np.inf
    normalizers = log_normalizers(logits)
    log_probabilities = logits.astype(np.float64) - normalizers[:, None]
    np.testing.assert_allclose(np.exp(log_probabilities).sum(axis=1), 1, rtol=1e-4)
    assert (log_probabilities <= 0).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_logit_is_an_error(broken):
    logits = np.zeros((4, 50265), np.float32)
    logits[3, 50264] = broken
    with pytest.raises(EngineError, match="finite logits"):
        log_normalizers(logits)


def test_a_row_without_any_token_is_an_error():
    with pytest.raises(EngineError, match="finite logits"):
        log_normalizers(np.full((1, 8), -np.inf, np.float32))
