"""Figures of decode steps: sums over traces equal what the formulas say of all steps at once."""

import math

import numpy as np
import pytest

from bart_export.verify.evaluation import StepFigures


def test_a_worked_example():
    figures = StepFigures()
    expected = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    received = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32)) + 2
    figures.add(expected, received)
    found = figures.figures()
    assert found["kl"] == pytest.approx(0.25 * math.log(2) / 2)  # a shift of all logits is nothing
    assert found["top1"] == 0.5
    assert found["steps"] == 2
    assert found["logits"] == pytest.approx(2 + math.log(2))


def test_traces_one_by_one_give_the_figures_of_all_together():
    random = np.random.default_rng(0)
    expected = random.normal(size=(30, 17)).astype(np.float32)
    received = expected + random.normal(scale=0.3, size=expected.shape).astype(np.float32)
    figures = StepFigures()
    for first, last in ((0, 1), (1, 20), (20, 30)):
        figures.add(expected[first:last], received[first:last])
    found = figures.figures()
    spread = np.sqrt(np.square(expected - expected.mean(-1, keepdims=True)).mean())
    error = received - expected
    assert found["spread"] == pytest.approx(spread)
    assert found["relative"] == pytest.approx(np.sqrt(np.square(error).mean()) / spread, rel=1e-5)
    assert found["logits"] == pytest.approx(np.abs(error).max())
    assert found["top1"] == (expected.argmax(-1) == received.argmax(-1)).mean()
    p = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    q = np.exp(received) / np.exp(received).sum(-1, keepdims=True)
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-5)


def test_one_number_that_is_none_spoils_every_error():
    figures = StepFigures()
    right = np.zeros((2, 3), np.float32)
    wrong = right.copy()
    wrong[0, 1] = np.nan
    figures.add(right, wrong)
    figures.add(right, right)
    found = figures.figures()
    assert all(math.isnan(found[name]) for name in ("logits", "relative", "kl"))


def test_logits_of_certainty_have_a_finite_divergence():
    figures = StepFigures()
    certain = np.array([[0.0, -3e38]], np.float32)
    figures.add(certain, certain[:, ::-1])
    assert figures.kl == pytest.approx(3e38)
