"""The metrics that compare an exported file with the Keras model.

Their names are used in recipes' tolerances, `--tolerance`, `--budget` and manifests.
"""

import dataclasses
import math
from collections.abc import Iterable

from bart_export.errors import ConfigurationError, lookup

AT_MOST, AT_LEAST = 1, -1
POINTS = (-100, 100)  # a file may be better than the model


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric and its valid bounds.

    `side` says whether a bound is an upper (AT_MOST) or a lower one (AT_LEAST); `low` and `high`
    limit the bounds that can be set.
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
        Metric("rounding", "the relative error, in units of Keras' float32 error,", AT_MOST),
        Metric("kl", "the mean Kullback-Leibler divergence per step, in nats,", AT_MOST),
        Metric("top1", "the share of steps with the same most likely token", AT_LEAST, high=1),
        Metric("tokens", "the share of identical answers", AT_LEAST, high=1),
        Metric("weights", "the error of the worst row of a matrix, in rounding steps,", AT_MOST),
        Metric("rouge_1", "the loss of ROUGE-1, in points,", AT_MOST, *POINTS),
        Metric("rouge_2", "the loss of ROUGE-2, in points,", AT_MOST, *POINTS),
        Metric("rouge_l", "the loss of ROUGE-L, in points,", AT_MOST, *POINTS),
    )
}


def parse_bounds(bounds: Iterable[str]) -> dict[str, float]:
    """Parse bounds of the form NAME=VALUE; raise ConfigurationError for any other."""
    parsed = {}
    for bound in bounds:
        name, equals, value = bound.partition("=")
        if not equals:
            raise ConfigurationError(
                f"A bound must have the form NAME=VALUE, such as top1=0.98, received {bound!r}."
            )
        parsed[name] = require_bound(name, value)
    return parsed


def require_bound(name: str, value: object) -> float:
    """Return a bound as a number; raise ConfigurationError if it is not valid for the metric."""
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
        # It may be a percentage, of equal or of different steps.
        percent = number if number >= 50 else 100 - number
        message += f" Did you mean {percent / 100:g}?"
    raise ConfigurationError(message)
