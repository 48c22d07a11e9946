"""What an export to TFLite, or for the Edge TPU, is told: recipes, shapes, texts and bounds.

Values only, as the command line has them; who reads which is not known here.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bart_export.errors import ConfigurationError
from bart_export.recipes import Recipe

NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class StaticShapes:
    """The buckets of a static build: lengths in tokens, start and end included.

    `source_lengths` and `num_beams` are ascending; there is an `encode` for every source length and
    a `decode` for every pair. `target_length` is the room of a cache.

    Raises:
        ConfigurationError: for a number below 1, or none.
    """

    source_lengths: tuple[int, ...]
    target_length: int
    num_beams: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("source_lengths", "num_beams"):
            numbers = tuple(sorted(set(getattr(self, name))))
            if not numbers or numbers[0] < 1:
                raise ConfigurationError(
                    f"{name} must be one or more numbers of at least 1, received "
                    f"{', '.join(map(str, numbers)) or 'none'}."
                )
            object.__setattr__(self, name, numbers)
        if self.target_length < 1:
            raise ConfigurationError(
                f"target_length must be at least 1, received {self.target_length}."
            )

    def within(self, source_length: int) -> "StaticShapes":
        """Return the shapes for a model whose sources never have more tokens than these.

        What is longer is cut to that length: a longer bucket would never be full.
        """
        lengths = tuple(min(length, source_length) for length in self.source_lengths)
        return dataclasses.replace(self, source_lengths=lengths)

    def to_dict(self) -> dict[str, Any]:
        """Return the shapes as a manifest has them."""
        return {
            "source_lengths": list(self.source_lengths),
            "target_length": self.target_length,
            "num_beams": list(self.num_beams),
        }


@dataclasses.dataclass(frozen=True)
class TfliteOptions:
    """What to write and how to judge it.

    `shapes` None makes the dynamic build. `calibration_data` and `data` are files of texts, None
    for those that ship with the preset and for the golden texts alone. `tolerance` goes on top of
    the recipes' own.
    """

    recipes: tuple[Recipe, ...]
    shapes: StaticShapes | None = None
    calibration_data: pathlib.Path | None = None
    data: pathlib.Path | None = None
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=lambda: NOTHING)


@dataclasses.dataclass(frozen=True)
class EdgeTpuOptions:
    """What an export for the Edge TPU is told.

    `source_length` is how many positions a segment of the encoder takes at once: longer texts go
    through in pieces. The rest is as in `TfliteOptions`.
    """

    source_length: int = 128
    calibration_data: pathlib.Path | None = None
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=lambda: NOTHING)
