"""What a report says of each `.tflite` file, gathered from a manifest's fields.

Figures of quality and speed come with the interval in which chance leaves them.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from bart_export.recipes.table import STORAGES
from bart_export.runtime.generator import build

LONGEST = 32  # letters of a name
Z = 1.96  # the normal distribution's 97.5th percentile
FLOAT, INT8, INT4, CALIBRATED = "float", "int8", "int4", "calibrated"


@dataclasses.dataclass(frozen=True)
class Reported:
    """A file: its name, its entry in the manifest, and its rows there of figures and times.

    `figures` are its row of `verification`, `times` that of `measurements`.
    """

    name: str
    entry: Mapping[str, Any]
    parameter_count: int
    figures: Mapping[str, Any]
    times: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What a picture calls the file; a name that leaves no room for it is cut."""
        recipe: str = self.entry["recipe"]
        recipe = recipe if len(recipe) <= LONGEST else f"{recipe[: LONGEST - 1]}…"
        return recipe if build(self.entry) == "dynamic" else f"{recipe} (static)"

    @property
    def kind(self) -> str:
        """What of its numbers are narrow: `CALIBRATED`, or the narrowest of its matrices."""
        if self.entry.get("mode", "").startswith("static"):
            return CALIBRATED
        layers = self.entry.get("layers", [])
        bits = min((STORAGES[storage].bits for _, storage in layers), default=32)
        return INT4 if bits <= 4 else INT8 if bits <= 8 else FLOAT

    @property
    def megabytes(self) -> float:
        """Size in units of 10^6 bytes."""
        return float(self.entry["bytes"] / 1e6)

    @property
    def rouge_l(self) -> Mapping[str, float] | None:
        """Scores in ROUGE-L, `model` and `file`, the `loss` and its interval `low` to `high`."""
        found: Mapping[str, float] | None = (self.figures.get("rouge") or {}).get("rouge_l")
        return found

    @property
    def same_token(self) -> "Figure | None":
        """Share of steps at which the file finds the model's token likeliest."""
        return share(self.figures.get("top1"), self.figures.get("steps", 0))

    @property
    def same_text(self) -> "Figure | None":
        """Share of questions that the file answers token for token."""
        return share(self.figures.get("tokens"), self.figures.get("questions", 0))

    @property
    def rouge_loss(self) -> "Figure | None":
        """Points of ROUGE-L that the file loses."""
        rouge = self.rouge_l
        return Figure(rouge["loss"], rouge["low"], rouge["high"]) if rouge else None

    def work(self, num_beams: int) -> Mapping[str, Any] | None:
        """Return what was measured of generations with so many beams."""
        return next(
            (row for row in self.times.get("lengths", []) if row["num_beams"] == num_beams), None
        )

    def tokens_per_second(self, num_beams: int) -> "Figure | None":
        """Return new tokens over the seconds of a whole generation, and its slowest and fastest."""
        row = self.work(num_beams)
        if row is None or not {"slowest", "fastest"} <= row.keys():
            return None
        rates = (row["new_tokens"] / row[name] for name in ("seconds", "slowest", "fastest"))
        return Figure(*rates)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, and between what it would lie were it taken again."""

    value: float
    low: float
    high: float


def share(value: float | None, count: int) -> Figure | None:
    """Return a share of `count` trials with its 95 % interval, None where there were none.

    The interval is Wilson's (E. B. Wilson, Probable inference, the law of succession, and
    statistical inference, JASA 22, 1927), which is right for shares near 1 and few trials, too.
    """
    if value is None or not count:
        return None
    middle = value + Z**2 / (2 * count)
    half = Z * math.sqrt(value * (1 - value) / count + (Z / (2 * count)) ** 2)
    whole = 1 + Z**2 / count
    return Figure(value, (middle - half) / whole, min((middle + half) / whole, 1.0))


def told_apart(figures: Iterable[Figure | None]) -> bool:
    """Return whether two of the figures differ by more than chance: their intervals are apart."""
    known = [one for one in figures if one is not None]
    return bool(known) and max(one.low for one in known) > min(one.high for one in known)


def reported(manifest: Mapping[str, Any]) -> list[Reported]:
    """Return the `.tflite` files of a manifest, largest first."""
    rows = {
        field: {row["file"]: row for row in manifest.get(field, [])}
        for field in ("verification", "measurements")
    }
    files = [
        Reported(
            name,
            entry,
            manifest["parameter_count"],
            rows["verification"].get(name, {}),
            rows["measurements"].get(name, {}),
        )
        for name, entry in manifest["files"].items()
        if entry.get("target") == "tflite"
    ]
    return sorted(files, key=lambda one: -one.entry["bytes"])
