"""ROUGE: how much of the texts that people wanted two models wrote, and the difference.

References, the float model's texts and a file's go in; for ROUGE-1, 2 and L the mean scores of both
and what the file loses come out, in points of 100, with a paired bootstrap interval. Scores are F
measures of the package rouge-score with its Porter stemmer, as is customary in summarization.
What wrote the texts is not known here.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export.artifact.figures import RougeLoss
from bart_export.errors import MissingExtra

Floats = npt.NDArray[np.floating[Any]]

# Metric of `metrics.METRICS` -> the package's name.
KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0


def compare(
    references: Sequence[str], model: Sequence[str], file: Sequence[str]
) -> dict[str, RougeLoss]:
    """Score the texts of the float model and of a file for the same sources.

    Returns:
        A `RougeLoss` for every one of `KINDS`.

    Raises:
        MissingExtra: if rouge-score is not installed.
    """
    expected, received = scores(references, model), scores(references, file)
    losses = {}
    for kind in KINDS:
        low, high = interval(expected[kind] - received[kind])
        means = float(expected[kind].mean()), float(received[kind].mean())
        losses[kind] = RougeLoss(*means, means[0] - means[1], low, high)
    return losses


def scores(references: Sequence[str], texts: Sequence[str]) -> dict[str, Floats]:
    """Return the F measure of every text, in points of 100, for every one of `KINDS`."""
    try:
        package = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError:
        raise MissingExtra("Measuring ROUGE", "rouge-score", "export") from None
    scorer = package.RougeScorer(list(KINDS.values()), use_stemmer=True)
    scored = [
        scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)
    ]
    return {
        kind: np.array([100 * one[name].fmeasure for one in scored]) for kind, name in KINDS.items()
    }


def interval(differences: Floats) -> tuple[float, float]:
    """Return a bootstrap interval of the mean of paired differences.

    It is the percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13): texts are drawn with replacement as often as there are texts, both models' scores
    of a text together, and of the means of many such draws the middle ones are kept.
    """
    random = np.random.default_rng(SEED)
    means = [
        differences[random.integers(0, len(differences), len(differences))].mean()
        for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
