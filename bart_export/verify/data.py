"""Files of texts with optional references, and an exported file's loss of ROUGE.

A file is JSON Lines: objects with a `text` and optionally a `reference`, a human-written output.
Other keys are ignored. ROUGE is the F-measure of rouge-score with its Porter stemmer, as is usual
in summarization.
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

LARGEST, MOST_LINES = 64 * documents.MEBIBYTE, 100_000


@dataclasses.dataclass(frozen=True)
class Example:
    """A source text, and its reference if it has one."""

    text: str
    reference: str | None = None


@dataclasses.dataclass(frozen=True)
class Texts:
    """The examples of a file in order, and the file's hash."""

    examples: Sequence[Example]
    file: TextFile


def read_texts(path: pathlib.Path) -> Texts:
    """Read the examples of a file without its empty lines, or raise InputError."""
    try:
        content = documents.read_bounded(path, LARGEST)
        lines = content.decode("utf-8-sig").split("\n", MOST_LINES)
    except OSError as error:
        raise InputError(f"Cannot read the data file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The data file {path} must be UTF-8, but {error}.") from error
    if len(lines) > MOST_LINES and lines[-1]:
        raise InputError(
            f"The data file {path} must have at most {MOST_LINES:,} lines, but has more. Use fewer "
            "texts, because each is decoded several times."
        )
    rows = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]
    examples = [parse_example(place, line) for place, line in rows if line.strip()]
    if not examples:
        raise InputError(f"The data file {path} must have at least one text, but is empty.")
    return Texts(examples, TextFile(hashlib.sha256(content).hexdigest(), len(examples)))


def parse_example(place: str, line: str) -> Example:
    """Return the example of one line; `place` names the line in an error."""
    expected = (
        f'{place} must be an object such as {{"text": "...", "reference": "..."}} with a non-empty '
        "text"
    )
    try:
        row = documents.parse_json(line.encode())
    except ValueError as error:
        raise InputError(f"{expected}, but is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise InputError(f"{expected}, received {shown(row)}.")
    text, reference = row.get("text"), row.get("reference")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{expected}, received the text {shown(text)}.")
    if not isinstance(reference, str | None):
        raise InputError(f"{expected}, received the reference {shown(reference)}.")
    return Example(text, reference)


# Metric -> name in rouge-score.
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
RESAMPLES, SEED = 2000, 0


def rouge_losses(
    references: Sequence[str], model: Sequence[str], file: Sequence[str]
) -> dict[str, RougeLoss]:
    """Return a file's loss of ROUGE relative to the float model, by metric, in points.

    Raises:
        MissingExtra: if rouge-score is not installed.
    """
    losses = {}
    expected, received = rouge_scores(references, model), rouge_scores(references, file)
    for kind in ROUGE:
        means = float(expected[kind].mean()), float(received[kind].mean())
        low, high = bootstrap_interval(expected[kind] - received[kind])
        losses[kind] = RougeLoss(*means, means[0] - means[1], low, high)
    return losses


def rouge_scores(references: Sequence[str], texts: Sequence[str]) -> dict[str, Floats]:
    """Return every text's F-measure by metric, in points from 0 to 100."""
    try:
        package = importlib.import_module("rouge_score.rouge_scorer")
    except ImportError:
        raise MissingExtra("Measuring ROUGE", "rouge-score", "export") from None
    scorer = package.RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scores = list(map(scorer.score, references, texts))
    return {
        kind: np.array([100 * score[name].fmeasure for score in scores])
        for kind, name in ROUGE.items()
    }


def bootstrap_interval(differences: Floats) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences.

    It is the percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13).
    """
    random, count = np.random.default_rng(SEED), len(differences)
    means = [differences[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
