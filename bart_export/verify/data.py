"""Files of texts, perhaps with references, and what a model loses in ROUGE against those.

A file is JSON Lines: objects with a `text` and, optionally, a `reference`, the text that a person
wants for it. Other keys are ignored. ROUGE is the F measure of the package rouge-score with its
Porter stemmer, as is usual in summarization.
"""

import dataclasses
import hashlib
import importlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import documents
from bart_export.artifact.figures import RougeLoss, TextFile
from bart_export.errors import InputError, MissingExtra, shown

Floats = npt.NDArray[np.floating[Any]]

# All of a file is held in memory, and every text costs seconds of computing.
LARGEST, MOST_LINES = 64 * documents.MEBIBYTE, 100_000


@dataclasses.dataclass(frozen=True)
class Example:
    """A source text, and the text wanted for it, None where there is no reference."""

    text: str
    reference: str | None = None


@dataclasses.dataclass(frozen=True)
class Texts:
    """The examples of a file, in its order, and the file's hash."""

    examples: Sequence[Example]
    file: TextFile


def read(path: pathlib.Path) -> Texts:
    """Read the examples of a file; empty lines are skipped.

    Raises:
        InputError: for a file that cannot be read, is too large or has no text, or for a line that
            is no example.
    """
    try:
        content = documents.read_bounded(path, LARGEST)
        lines = content.decode("utf-8-sig").split("\n", MOST_LINES)
    except OSError as error:
        raise InputError(f"Cannot read the data {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The data {path} must be UTF-8, but {error}.") from error
    if len(lines) > MOST_LINES and lines[-1]:
        raise InputError(
            f"The data {path} must have at most {MOST_LINES:,} lines, and has more. Take a part of "
            "them: every text is decoded several times."
        )
    examples = [
        parse_example(f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not examples:
        raise InputError(f"The data {path} must have a text, but has no line.")
    return Texts(examples, TextFile(hashlib.sha256(content).hexdigest(), len(examples)))


def parse_example(place: str, line: str) -> Example:
    """Return the example of one line; `place` names the line in an error."""
    wanted = 'must be an object as in {"text": "...", "reference": "..."}'
    try:
        row = documents.parse_json(line.encode())
    except ValueError as error:
        raise InputError(f"{place}, {wanted}, but is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}, {wanted}, received {shown(row)}.")
    text, reference = row.get("text"), row.get("reference")
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{place}, {wanted}, with a text that is not empty; received {shown(text)}."
        )
    if not isinstance(reference, str | None):
        raise InputError(f"{place}, {wanted}; received the reference {shown(reference)}.")
    return Example(text, reference)


# Metric of `metrics.METRICS` -> the package's name.
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0


def rouge_losses(
    references: Sequence[str], model: Sequence[str], file: Sequence[str]
) -> dict[str, RougeLoss]:
    """Score the float model's and a file's texts against references, in points of 100.

    Raises:
        MissingExtra: if rouge-score is not installed.
    """
    expected, received = rouge_scores(references, model), rouge_scores(references, file)
    losses = {}
    for kind in ROUGE:
        low, high = bootstrap_interval(expected[kind] - received[kind])
        means = float(expected[kind].mean()), float(received[kind].mean())
        losses[kind] = RougeLoss(*means, means[0] - means[1], low, high)
    return losses


def rouge_scores(references: Sequence[str], texts: Sequence[str]) -> dict[str, Floats]:
    """Return the F measure of every text, in points of 100, for every kind of ROUGE."""
    try:
        package = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError:
        raise MissingExtra("Measuring ROUGE", "rouge-score", "export") from None
    scorer = package.RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scored = [
        scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)
    ]
    return {
        kind: np.array([100 * score[name].fmeasure for score in scored])
        for kind, name in ROUGE.items()
    }


def bootstrap_interval(differences: Floats) -> tuple[float, float]:
    """Return a 95 % interval of the mean of paired differences.

    It is the percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13): pairs are drawn with replacement as often as there are pairs, and of the means of
    many such draws the middle ones are kept.
    """
    random = np.random.default_rng(SEED)
    means = [
        differences[random.integers(0, len(differences), len(differences))].mean()
        for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
