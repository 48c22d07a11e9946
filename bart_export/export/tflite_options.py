"""What an export to TFLite, or for the Edge TPU, is told: recipes, shapes, texts and bounds.

Values only, as the command line has them; who reads which is not known here.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType

from bart_export.contract import StaticShapes
from bart_export.recipes.table import Recipe

NOTHING: Mapping[str, float] = MappingProxyType({})


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
