"""Figures of decoder steps, added trace by trace, follow their formulas."""

import math

import numpy as np
import pytest

from bart_export.verify.traces import ULP, StepFigures


def figures_of(*traces):
    figures = StepFigures()
    for trace in traces:
        figures.add(*trace)
    return figures.figures()


def test_a_worked_example():
    expected = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    received = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32)) + 2
    found = figures_of((expected, received))
    assert found["kl"] == pytest.approx(
        0.25 * math.log(2) / 2
    )  # shifting all logits changes nothing
    assert (found["top1"], found["steps"]) == (0.5, 2)
    assert found["logits"] == pytest.approx(2 + math.log(2))


def test_figures_do_not_depend_on_how_steps_are_split_into_traces():
    random = np.random.default_rng(0)
    expected = random.normal(size=(30, 17)).astype(np.float32)
    received = expected + random.normal(scale=0.3, size=expected.shape).astype(np.float32)
    parts = ((0, 1), (1, 20), (20, 30))
    found = figures_of(*((expected[first:last], received[first:last]) for first, last in parts))
    spread = np.sqrt(np.square(expected - expected.mean(-1, keepdims=True)).mean())
    error = received - expected
    p = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    q = np.exp(received) / np.exp(received).sum(-1, keepdims=True)
    assert found == {
        "logits": pytest.approx(np.abs(error).max()),
        "spread": pytest.approx(spread),
        "relative": pytest.approx(np.sqrt(np.square(error).mean()) / spread, rel=1e-5),
        "kl": pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-5),
        "top1": (expected.argmax(-1) == received.argmax(-1)).mean(),
        "steps": 30,
    }


def test_nan_propagates_to_every_error():
    right = np.zeros((2, 3), np.float32)
    wrong = right.copy()
    wrong[0, 1] = np.nan
    found = figures_of((right, wrong), (right, right))
    assert all(math.isnan(found[name]) for name in ("logits", "relative", "kl"))


def test_equal_logits_have_no_error():
    """A checkpoint of zeros gives the same logit for every token."""
    zeros = np.zeros((2, 3), np.float32)
    found = figures_of((zeros, zeros))
    assert [found[name] for name in ("spread", "relative", "kl", "top1")] == [0, 0, 0, 1]


def test_extreme_logits_have_a_finite_divergence():
    certain = np.array([[0.0, -3e38]], np.float32)
    assert figures_of((certain, certain[:, ::-1]))["kl"] == pytest.approx(3e38)


def test_rounding_is_relative_to_the_float32_error():
    truth = np.random.default_rng(0).normal(size=(4, 32))
    noise = np.random.default_rng(1).normal(size=(4, 32)) * 1e-5
    found = figures_of((truth, truth + 3 * noise, truth + noise))
    assert found["rounding"] == pytest.approx(3, rel=1e-6)
    assert found["float32"] == pytest.approx(np.abs(noise).max(), rel=1e-6)
    found = figures_of((truth, truth + noise, truth))  # no float32 error by luck
    assert found["rounding"] == pytest.approx(found["relative"] / ULP)
