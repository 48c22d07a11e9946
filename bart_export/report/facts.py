"""What a report says of each `.tflite` file, gathered from a manifest's fields.

Figures of quality and speed come with the interval in which chance leaves them.
"""

import dataclasses
import math
from collections.abc import Iterable

from bart_export.artifact.figures import FileVerification, Measurement, RougeLoss
from bart_export.artifact.manifest import Manifest, TfliteEntry
from bart_export.recipes.table import STORAGES

LONGEST = 32  # letters of a name
Z = 1.96  # the normal distribution's 97.5th percentile
FLOAT, INT8, INT4, CALIBRATED = "float", "int8", "int4", "calibrated"


@dataclasses.dataclass(frozen=True)
class Reported:
    """A file: its name, its entry in the manifest, and what was found out of its quality and speed,
    None where it was not."""

    name: str
    entry: TfliteEntry
    verification: FileVerification | None
    measurement: Measurement | None

    @property
    def label(self) -> str:
        """What a picture calls the file; a name that leaves no room for it is cut."""
        recipe = self.entry.recipe
        recipe = recipe if len(recipe) <= LONGEST else f"{recipe[: LONGEST - 1]}…"
        return recipe if self.entry.build == "dynamic" else f"{recipe} (static)"

    @property
    def kind(self) -> str:
        """What of its numbers are narrow: `CALIBRATED`, or the narrowest of its matrices."""
        if self.entry.mode.startswith("static"):
            return CALIBRATED
        bits = min((STORAGES[storage].bits for _, storage in self.entry.layers), default=32)
        return INT4 if bits <= 4 else INT8 if bits <= 8 else FLOAT

    @property
    def megabytes(self) -> float:
        """Size in units of 10^6 bytes."""
        return self.entry.bytes / 1e6

    @property
    def rouge_l(self) -> RougeLoss | None:
        """What the file loses in ROUGE-L."""
        losses = self.verification and self.verification.rouge
        return losses.get("rouge_l") if losses else None

    @property
    def same_token(self) -> "Figure | None":
        """Share of steps at which the file finds the model's token likeliest."""
        row = self.verification
        return share(row.top1, row.steps) if row else None

    @property
    def same_text(self) -> "Figure | None":
        """Share of questions that the file answers token for token."""
        row = self.verification
        return share(row.tokens, row.questions) if row else None

    @property
    def rouge_loss(self) -> "Figure | None":
        """Points of ROUGE-L that the file loses."""
        rouge = self.rouge_l
        return Figure(rouge.loss, rouge.low, rouge.high) if rouge else None

    def tokens_per_second(self, num_beams: int) -> "Figure | None":
        """Return new tokens over the seconds of a whole generation, and its slowest and fastest."""
        rows = self.measurement.lengths if self.measurement else ()
        row = next((row for row in rows if row.num_beams == num_beams), None)
        if row is None or row.slowest is None or row.fastest is None:
            return None
        rates = (row.new_tokens / seconds for seconds in (row.seconds, row.slowest, row.fastest))
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


def reported(manifest: Manifest) -> list[Reported]:
    """Return the `.tflite` files of a manifest, largest first."""
    verified = {row.file: row for row in manifest.verification if isinstance(row, FileVerification)}
    measured = {row.file: row for row in manifest.measurements}
    files = [
        Reported(name, entry, verified.get(name), measured.get(name))
        for name, entry in manifest.tflite().items()
    ]
    return sorted(files, key=lambda one: -one.entry.bytes)
