"""Figures along decode traces: expected and received logits go in, text by text; figures come out.

Only sums are kept, so that any number of texts over any vocabulary fits in memory. Where logits
come from, and what a figure should be, is not known here.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

# No float32 computation is surely nearer, in units of the spread, than neighbouring numbers are.
ULP = 2.0**-23
TINY = 1e-30  # stands for the spread of values that are all equal


@dataclasses.dataclass
class ArrayFigures:
    """How far arrays are from what they should be.

    `largest` is the largest absolute error, NaN if one is; `spread` the root mean square of the
    expected values about the mean of each row, along the last axis; `relative` that of the errors,
    over `spread`.
    """

    largest: float = 0.0
    squared_errors: float = 0.0
    squared_spreads: float = 0.0
    values: int = 0

    def add(self, expected: FloatArray, received: FloatArray) -> None:
        """Count the values of an array, of any shape, with those that they should be."""
        error = received.astype(np.float64) - expected
        about_mean = expected - expected.mean(axis=-1, keepdims=True, dtype=np.float64)
        self.largest = worst([self.largest, float(np.abs(error).max(initial=0.0))])
        self.squared_errors += float(np.square(error).sum())
        self.squared_spreads += float(np.square(about_mean).sum())
        self.values += error.size

    @property
    def spread(self) -> float:
        """Root mean square of the expected values about the mean of their row."""
        return float(np.sqrt(self.squared_spreads / max(self.values, 1)))

    @property
    def relative(self) -> float:
        """Root mean square of the errors over the spread, 0 for nothing."""
        error = float(np.sqrt(self.squared_errors / max(self.values, 1)))
        return error / max(self.spread, TINY)


@dataclasses.dataclass
class StepFigures:
    """How far a file's decode steps are from the float model's along the latter's traces.

    `logits` is the largest absolute error of a logit, `spread` and `relative` are those of
    `ArrayFigures`; `kl` is the mean, over steps, of the Kullback-Leibler divergence of the file's
    distribution of the next token from the model's, sum p log(p / q), in nats; `top1` the share of
    `steps` with the same likeliest token. Where the model's logits are known in float64, `rounding`
    is `relative` over that of the model in float32, whose largest error is `float32`.
    """

    errors: ArrayFigures = dataclasses.field(default_factory=ArrayFigures)
    rounded: ArrayFigures = dataclasses.field(default_factory=ArrayFigures)
    divergence: float = 0.0
    agreeing: int = 0
    steps: int = 0

    def add(
        self,
        expected_logits: FloatArray,
        received_logits: FloatArray,
        rounded_logits: FloatArray | None = None,
    ) -> None:
        """Count the steps of a trace: logits (steps, vocabulary) of the model and of the file.

        `rounded_logits` are the model's in float32 where those that are expected are in float64.
        """
        self.errors.add(expected_logits, received_logits)
        if rounded_logits is not None:
            self.rounded.add(expected_logits, rounded_logits)
        with np.errstate(invalid="ignore"):  # a file that gives no numbers
            expected, received = log_softmax(expected_logits), log_softmax(received_logits)
        self.divergence += float((np.exp(expected) * (expected - received)).sum())
        same = expected_logits.argmax(-1) == received_logits.argmax(-1)
        self.agreeing += int(same.sum())
        self.steps += len(same)

    @property
    def kl(self) -> float:
        """Mean divergence of a step, in nats; NaN if a file gave no numbers."""
        return self.divergence / max(self.steps, 1)

    @property
    def top1(self) -> float:
        """Share of steps with the same likeliest token."""
        return self.agreeing / max(self.steps, 1)

    @property
    def rounding(self) -> float:
        """Relative error in units of what float32 costs the model."""
        return self.errors.relative / max(self.rounded.relative, ULP)

    def figures(self) -> dict[str, float]:
        """Return the figures by name.

        They are `logits`, `spread`, `relative`, `kl`, `top1`, `steps` and, where the model is known
        in float64, `rounding` and `float32`.
        """
        rounding = {"rounding": self.rounding, "float32": self.rounded.largest}
        return {
            "logits": self.errors.largest,
            "spread": self.errors.spread,
            "relative": self.errors.relative,
            "kl": self.kl,
            "top1": self.top1,
            "steps": self.steps,
            **(rounding if self.rounded.values else {}),
        }


def log_softmax(logits: FloatArray) -> FloatArray:
    """Return log-probabilities (steps, vocabulary), float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_probabilities: FloatArray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_probabilities


def worst(errors: Iterable[float]) -> float:
    """Return the largest of some errors, NaN if one of them is."""
    return float(np.max(list(errors)))
