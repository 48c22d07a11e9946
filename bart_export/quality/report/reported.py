"""What a report says of each `.tflite` file, gathered from a manifest's fields.

The fields go in; a value for each file comes out, with its size, how far it is from the float
model, and its times, None for what was not measured. How that is written or drawn is not known
here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bart_export.recipes import STORAGES
from bart_export.runtime.generator import build

LONGEST = 32  # letters of a name
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
    def bytes_a_parameter(self) -> float:
        """Size for each parameter of the model."""
        return float(self.entry["bytes"] / self.parameter_count)

    @property
    def rouge_l(self) -> Mapping[str, float] | None:
        """Scores in ROUGE-L, `model` and `file`, the `loss` and its interval `low` to `high`."""
        found: Mapping[str, float] | None = (self.figures.get("rouge") or {}).get("rouge_l")
        return found

    def lengths(self, num_beams: int) -> dict[int, float]:
        """Return seconds of whole generations by number of new tokens."""
        return {
            row["new_tokens"]: row["seconds"]
            for row in self.times.get("lengths", [])
            if row["num_beams"] == num_beams
        }

    def sources(self, num_beams: int, figure: str) -> dict[int, float]:
        """Return "encode_seconds" or "token_seconds" by number of source tokens."""
        return {
            row["source"]: row[figure]
            for row in self.times.get("sources", [])
            if row["num_beams"] == num_beams
        }

    def tokens_per_second(self, num_beams: int, new_tokens: int) -> float | None:
        """Return new tokens over the seconds of a whole generation of so many."""
        seconds = self.lengths(num_beams).get(new_tokens)
        return None if seconds is None else new_tokens / seconds


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


def usual_tokens(files: list[Reported], num_beams: int, max_length: int) -> int | None:
    """Return the number of new tokens to compare speeds at: the most measured up to `max_length`.

    None where nothing was measured.
    """
    measured = sorted({tokens for one in files for tokens in one.lengths(num_beams)})
    return max((tokens for tokens in measured if tokens <= max_length), default=None) or next(
        iter(measured), None
    )
