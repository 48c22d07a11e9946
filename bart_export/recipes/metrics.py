"""Metrics: how far an exported file is from the model it was made of, by name.

One row each. Tolerances of recipes, `--tolerance` and `--budget` on the command line, and the
figures in a manifest all use these names.
"""

import dataclasses
import math
from collections.abc import Iterable

from bart_export.errors import ConfigurationError, lookup

AT_MOST, AT_LEAST = 1, -1
POINTS = (-100, 100)  # a file may do better than the model


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure: what it is, and what a bound on it may be.

    `side` is where the figure must lie of its bound, AT_MOST or AT_LEAST; `low` and `high` are the
    least and the greatest bound that make sense.
    """

    name: str
    description: str
    side: int
    low: float = 0.0
    high: float = math.inf


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("logits", "the largest error of a logit", AT_MOST),
        Metric("relative", "the relative error of the logits", AT_MOST),
        Metric("rounding", "the relative error, in units of what float32 costs Keras,", AT_MOST),
        Metric("kl", "the mean Kullback-Leibler divergence of a step, in nats,", AT_MOST),
        Metric("top1", "the share of steps with the same likeliest token", AT_LEAST, high=1),
        Metric("tokens", "the share of equal answers", AT_LEAST, high=1),
        Metric("weights", "the error of the worst row of a matrix, in rounding steps,", AT_MOST),
        Metric("rouge_1", "the loss in ROUGE-1, in points of 100,", AT_MOST, *POINTS),
        Metric("rouge_2", "the loss in ROUGE-2, in points of 100,", AT_MOST, *POINTS),
        Metric("rouge_l", "the loss in ROUGE-L, in points of 100,", AT_MOST, *POINTS),
    )
}


def within(name: str, value: float, bound: float) -> bool:
    """Return whether a figure keeps a bound; no NaN does."""
    side = METRICS[name].side
    return side * value <= side * bound


def parse(bounds: Iterable[str]) -> dict[str, float]:
    """Return the bounds that were written as NAME=VALUE.

    Raises:
        ConfigurationError: for another form, a name that is no metric, or no finite number.
    """
    parsed = {}
    for bound in bounds:
        name, equals, value = bound.partition("=")
        if not equals:
            raise ConfigurationError(
                f"A bound must be written as NAME=VALUE, as in top1=0.98, received {bound!r}."
            )
        parsed[name] = require_bound(name, value)
    return parsed


def require_bound(name: str, value: object) -> float:
    """Return a bound as a number.

    Raises:
        ConfigurationError: for a name that is no metric, or a value that no bound on it can have.
    """
    metric = lookup("A metric", name, METRICS)
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"The bound of {name} must be a number, received {value!r}.")
    low, high = metric.low, metric.high
    if low <= number <= high:
        return number
    accepted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    message = f"The bound of {name} must be {accepted}, received {number:g}."
    if high == 1 < number <= 100:
        # A percentage, of what must be equal or of what may differ.
        percent = number if number >= 50 else 100 - number
        message += f" Did you mean {percent / 100:g}?"
    raise ConfigurationError(message)
