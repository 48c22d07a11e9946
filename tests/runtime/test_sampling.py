import numpy as np
import pytest

from bart_export.config import GenerationConfig
from bart_export.runtime.logits import greedy_choice, nucleus, sampled_choice

ROW = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.1, 0.05])).astype(np.float32)


def counts(row, draws, **parameters):
    choose = sampled_choice(GenerationConfig(do_sample=True, seed=11, **parameters))
    return np.bincount([choose(row) for _ in range(draws)], minlength=row.size)


def possible(row, **parameters):
    return set(np.flatnonzero(counts(np.asarray(row, np.float32), 300, **parameters)))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"top_k": 0}, [0.05, 0.4, 0.1, 0.3, 0.1, 0.05]),
        ({"top_k": 50}, [0.05, 0.4, 0.1, 0.3, 0.1, 0.05]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0, 0]),
        ({"top_k": 0, "top_p": 0.75}, [0, 0.5, 0.125, 0.375, 0, 0]),
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0, 0, 0]),
        ({"top_k": 0, "temperature": 0.5}, [0.009, 0.5614, 0.0351, 0.3158, 0.0351, 0.009]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(parameters, expected):
    draws = 20_000
    found = counts(ROW, draws, **parameters)
    expected = np.array(expected) / np.sum(expected)
    assert (found[expected == 0] == 0).all()
    hopes = expected[expected > 0] * draws
    chi_square = ((found[expected > 0] - hopes) ** 2 / hopes).sum()
    assert chi_square < 20.5  # 99.9 % of draws over 6 tokens stay below


def test_a_seed_gives_the_same_tokens_everywhere():
    choose = sampled_choice(GenerationConfig(do_sample=True, seed=7))
    assert [choose(ROW) for _ in range(12)] == PINNED
    other = sampled_choice(GenerationConfig(do_sample=True, seed=8))
    assert [other(ROW) for _ in range(12)] != PINNED


# PCG64's first numbers for seed 7 (0.625, 0.897, 0.776, 0.225, 0.300, 0.874, 0.005, 0.821, 0.797,
# 0.468, 0.303, 0.278) laid on the row's cumulative probabilities.
PINNED = [3, 4, 3, 1, 1, 4, 0, 3, 3, 2, 1, 1]


def test_without_a_seed_no_two_runs_are_alike():
    first, second = (sampled_choice(GenerationConfig(do_sample=True)) for _ in range(2))
    assert [first(ROW) for _ in range(64)] != [second(ROW) for _ in range(64)]


def test_top_k_keeps_all_that_equal_the_kth():
    assert possible([1.0, 5.0, 1.0, 0.0, 1.0], top_k=2) == {0, 1, 2, 4}
    assert possible([1.0, 5.0, 1.0, 0.0, 1.0], top_k=1) == {1}


def test_top_p_keeps_the_fewest_tokens_and_the_lower_among_equals():
    assert possible([0.0, 0.0, 0.0, 0.0], top_p=0.5) == {0, 1}
    assert possible([0.0, 0.0, 0.0, 0.0], top_p=0.51) == {0, 1, 2}
    assert possible([0.0, 1.0, 0.0, 0.0], top_p=1e-9) == {1}
    assert possible([0.0, 0.0, 0.0, 0.0], top_p=1.0) == {0, 1, 2, 3}


def test_top_p_over_a_whole_vocabulary_is_that_of_a_full_sort():
    stream = np.random.default_rng(0)
    for sharpness, top_p in ((1.0, 0.3), (4.0, 0.9), (9.0, 0.99)):
        row = (stream.normal(size=5_000) * sharpness).astype(np.float32)
        weights = np.exp(row.astype(np.float64))
        order = np.argsort(-weights, kind="stable")
        shares = np.cumsum(weights[order]) / weights.sum()
        expected = order[: 1 + int((shares < top_p).sum())]
        np.testing.assert_array_equal(nucleus(weights, top_p), expected)


def test_forbidden_tokens_are_never_drawn():
    assert possible([-np.inf, 0.0, -np.inf, 0.0], top_k=0) == {1, 3}
    assert possible([-np.inf, 0.0, -np.inf, 0.0], top_k=3, top_p=0.99) == {1, 3}


def test_a_temperature_near_zero_is_greedy():
    assert possible(ROW, temperature=1e-6) == {greedy_choice(ROW)} == {1}
    assert possible(ROW, temperature=1e-320) == {1}
