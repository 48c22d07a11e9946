"""Bounds on an exported file's figures, set by its recipe's tolerance."""

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

# Over many texts, summing the same numbers in a different order decides some near-ties differently:
# one in a hundred answers with several beams may differ, and one in a thousand steps.
NEAR_TIES = {"top1": 0.999, "tokens": 0.99}


class Bound(NamedTuple):
    """A figure's description and value, its bound, and the side of the bound that is accepted.

    `metric` is the name for `--tolerance`, or "" if the bound cannot be changed.
    """

    description: str
    value: float
    bound: float
    side: int
    metric: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure is within the bound; NaN is not."""
        return self.side * self.value <= self.side * self.bound

    def __str__(self) -> str:
        """Return the error message, with a two-digit bound that would accept the figure."""
        side = "at most" if self.side == AT_MOST else "at least"
        message = f"{self.description} must be {side} {self.bound:g}, received {self.value:.6g}."
        if not self.metric or not math.isfinite(self.value):
            return message
        digit = 10.0 ** (math.floor(math.log10(abs(self.value) or 1.0)) - 1)
        towards = math.ceil if self.side == AT_MOST else math.floor
        accepted = towards(self.value / digit) * digit
        return f"{message} To accept it: --tolerance {self.metric}={accepted:.6g}."


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
    for metric, bound in {"weights": weights.BOUND, **recipe.tolerance}.items():
        value: float | None = getattr(figures, metric)
        description, side, option = METRICS[metric].description, METRICS[metric].side, metric
        if figures.data is not None and bound == 1.0:
            bound = NEAR_TIES.get(metric, bound)
        if metric == "weights":
            option = ""  # unlike rounding losses, a wrong row is wrong in any checkpoint
            description += f" {figures.worst_row}," if figures.worst_row else ""
        if value is not None:
            bounds.append(Bound(description, value, bound, side, option))
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


@contextlib.contextmanager
def note_nothing_committed() -> Iterator[None]:
    """Add "Nothing was committed." to verification errors."""
    try:
        yield
    except VerificationFailed as error:
        raise VerificationFailed(f"{error} Nothing was committed.") from error
