"""Bounds on an exported file's figures, set by its recipe's tolerance."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bart_export.artifact.figures import FileVerification
from bart_export.errors import ConfigurationError, VerificationFailed
from bart_export.recipes.metrics import AT_MOST, METRICS, Metric
from bart_export.recipes.table import Recipe
from bart_export.verify import data, weights
from bart_export.verify.data import Texts

# Over many texts, summing the same numbers in a different order decides some near-ties differently:
# one in a hundred answers with several beams may differ, and one in a thousand steps.
NEAR_TIES = {"top1": 0.999, "tokens": 0.99}


class Bound(NamedTuple):
    """A metric's figure and its bound, which `--tolerance` can change if it is `settable`."""

    metric: Metric
    value: float
    bound: float
    settable: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure is within the bound; NaN is not."""
        return self.metric.side * self.value <= self.metric.side * self.bound

    def __str__(self) -> str:
        """Return the error message, with a two-digit bound that would accept the figure."""
        metric, value = self.metric, self.value
        side = "at most" if metric.side == AT_MOST else "at least"
        message = f"{metric.description} must be {side} {self.bound:g}, received {value:.6g}."
        if not self.settable or not math.isfinite(value):
            return message
        digit = 10.0 ** (math.floor(math.log10(abs(value) or 1.0)) - 1)
        towards = math.ceil if metric.side == AT_MOST else math.floor
        accepted = towards(value / digit) * digit
        return f"{message} To accept it: --tolerance {metric.name}={accepted:.6g}."


def require_bounds(name: str, bounds: Sequence[Bound]) -> None:
    """Raise VerificationFailed for the first figure of a file that is outside its bound."""
    for bound in bounds:
        if not bound.holds:
            raise VerificationFailed(f"{name} differs from the Keras model: {bound}")


def bounds_of(recipe: Recipe, figures: FileVerification) -> list[Bound]:
    """Return the bounds of a recipe's tolerance on the figures that were measured.

    `weights.BOUND` applies if the tolerance has no bound on `weights`.
    """
    bounds = []
    for name, bound in {"weights": weights.BOUND, **recipe.tolerance}.items():
        metric, value = METRICS[name], getattr(figures, name)
        if figures.data is not None and bound == 1.0:
            bound = NEAR_TIES.get(name, bound)
        if name == "weights" and figures.worst_row:
            place = f"{metric.description} {figures.worst_row},"
            metric = dataclasses.replace(metric, description=place)
        if value is not None:
            # Unlike rounding losses, a wrong row is wrong in any checkpoint.
            bounds.append(Bound(metric, value, bound, settable=name != "weights"))
    return bounds


def check_measurable(tolerance: Mapping[str, float], texts: Texts | None) -> None:
    """Raise ConfigurationError for a bound on ROUGE if no text has a reference."""
    if texts is not None and any(example.reference is not None for example in texts.examples):
        return
    for metric in data.ROUGE:
        if metric in tolerance:
            raise ConfigurationError(
                f"A bound on {metric} needs texts with references. Pass --data FILE.jsonl, with "
                'lines such as {"text": "...", "reference": "..."}.'
            )
