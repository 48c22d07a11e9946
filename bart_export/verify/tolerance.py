"""Figures of an exported file are held to bounds, those of its recipe for a `.tflite` file.

An error is one line that says which figure is outside, by how much, and what option would accept
it.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bart_export.artifact.figures import FileVerification
from bart_export.errors import ConfigurationError, VerificationFailed
from bart_export.recipes.metrics import AT_MOST, METRICS
from bart_export.recipes.table import Recipe
from bart_export.verify import data, weights
from bart_export.verify.data import Texts

# Over many texts even the same numbers, summed in another order, decide some near ties otherwise:
# of a hundred answers with several beams one may differ, of a thousand steps one.
NEAR_TIES = {"top1": 0.999, "tokens": 0.99}


class Bound(NamedTuple):
    """A figure and what it must be: its words, its value, the bound, and on which side of it.

    `metric` is the name by which an option may accept the figure, "" where none should.
    """

    what: str
    value: float
    bound: float
    side: int
    metric: str = ""

    @property
    def kept(self) -> bool:
        """Whether the figure is within the bound; a NaN is not."""
        return self.side * self.value <= self.side * self.bound

    def __str__(self) -> str:
        """Return what is wrong with the figure, and what would accept it."""
        side = "at most" if self.side == AT_MOST else "at least"
        words = f"{self.what} must be {side} {self.bound:g}, received {self.value:.6g}."
        if self.metric and math.isfinite(self.value):
            words += f" To accept it: --tolerance {self.metric}={self.accepting()}."
        return words

    def accepting(self) -> str:
        """Return the nearest bound of two digits that accepts the figure."""
        if self.value == 0:
            return "0"
        digit = 10.0 ** (math.floor(math.log10(abs(self.value))) - 1)
        towards = math.ceil if self.side == AT_MOST else math.floor
        return f"{towards(self.value / digit) * digit:.6g}"


def require(name: str, bounds: Sequence[Bound]) -> None:
    """Hold the figures of an exported file, by its name, to their bounds.

    Raises:
        VerificationFailed: for the first figure outside.
    """
    for bound in bounds:
        if not bound.kept:
            raise VerificationFailed(f"{name} does not say what the Keras model says: {bound}")


def bounds_of(recipe: Recipe, figures: FileVerification) -> list[Bound]:
    """Return the figures that were measured, with the bounds of a recipe's tolerance.

    Every recipe's matrices are held to `weights.BOUND`, unless it says otherwise.
    """
    bounds = []
    for metric, bound in {"weights": weights.BOUND, **recipe.tolerance}.items():
        value: float | None = getattr(figures, metric)
        if value is None:
            continue
        if figures.data is not None and bound == 1.0:
            bound = NEAR_TIES.get(metric, bound)
        words = METRICS[metric].description
        if metric == "weights" and figures.worst_row:
            words += f" {figures.worst_row},"
        # Rounding costs more in one checkpoint than in another; a wrong row is wrong in any.
        option = "" if metric == "weights" else metric
        bounds.append(Bound(words, value, bound, METRICS[metric].side, option))
    return bounds


def check_measurable(tolerance: Mapping[str, float], texts: Texts | None) -> None:
    """Refuse bounds on ROUGE where no text has a reference.

    Raises:
        ConfigurationError: for the first of them.
    """
    if texts is not None and any(example.reference is not None for example in texts.examples):
        return
    for metric in data.ROUGE:
        if metric in tolerance:
            raise ConfigurationError(
                f"A bound on {metric} needs texts with references: give them with --data "
                'FILE.jsonl, in lines as {"text": "...", "reference": "..."}.'
            )


@contextlib.contextmanager
def uncommitted() -> Iterator[None]:
    """Add to an error of verification that nothing was committed."""
    try:
        yield
    except VerificationFailed as error:
        raise VerificationFailed(f"{error} Nothing was committed.") from error
