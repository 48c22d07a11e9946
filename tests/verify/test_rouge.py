"""ROUGE by its definition, and the interval of a difference by hand."""

import numpy as np
import pytest

from bart_export.verify import rouge


def test_a_worked_example():
    """After Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, section 3.1.

    The stem of "killed" is "kill", and of the second text's bigrams one is the reference's.
    """
    references = ["police killed the gunman"] * 2
    scores = rouge.scores(references, ["police kill the gunman", "the gunman kill police"])
    assert scores["rouge_1"] == pytest.approx([100, 100])
    assert scores["rouge_2"] == pytest.approx([100, 100 / 3])
    assert scores["rouge_l"] == pytest.approx([100, 50])


def test_precision_and_recall_weigh_the_same():
    # 1 of 4 words is found, and 1 of 1 was right: F = 2 * 0.25 * 1 / 1.25.
    scores = rouge.scores(["police killed the gunman"], ["gunman"])
    assert scores["rouge_1"] == pytest.approx([40])


def test_losses_are_differences_of_means():
    references = ["a b c d", "a b c d"]
    losses = rouge.compare(references, ["a b c d", "a b c d"], ["a b c d", "a b"])
    loss = losses["rouge_1"]
    f = 100 * 2 * 0.5 / 1.5
    assert loss.model == 100
    assert loss.file == pytest.approx((100 + f) / 2)
    assert loss.loss == pytest.approx((100 - f) / 2)
    assert (loss.low, loss.high) == pytest.approx((0, 100 - f))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([2.0, 2.0, 2.0], (2, 2)),  # whatever is drawn, the mean is the same
        ([0.0, 1.0], (0, 1)),  # means of two draws: 0, 1/2, 1 with 1/4, 1/2, 1/4
        # Of five draws all are 1 with (4/5)^5 = 0.33, at most one is with 5 * 4/5^5 + 1/5^5 = 0.7 %
        # and at most two are with 6 %: the middle 95 % end at 2/5.
        ([0.0, 1.0, 1.0, 1.0, 1.0], (0.4, 1)),
    ],
)
def test_the_interval_is_that_of_draws_with_replacement(differences, expected):
    assert rouge.interval(np.array(differences)) == pytest.approx(expected)


def test_the_interval_of_many_differences_is_the_normal_one():
    differences = np.tile([0.0, 1.0], 200)
    half = 1.96 * 0.5 / np.sqrt(400)
    low, high = rouge.interval(differences)
    assert low == pytest.approx(0.5 - half, abs=0.003)
    assert high == pytest.approx(0.5 + half, abs=0.003)
    assert rouge.interval(differences) == (low, high)  # the draws are seeded
