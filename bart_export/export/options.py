"""The options of an export; their class chooses the target."""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType

from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import ConfigurationError, lookup
from bart_export.recipes.table import Recipe

DTYPES = ("float32", "bfloat16")
NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class TfliteOptions:
    """What to write and how to judge it.

    `shapes` None makes the dynamic build. `calibration_data` and `data` are files of texts, None
    for those that ship with the preset and for the golden texts alone. `tolerance` replaces bounds
    of the recipes.
    """

    recipes: tuple[Recipe, ...]
    shapes: StaticShapes | None = None
    calibration_data: pathlib.Path | None = None
    data: pathlib.Path | None = None
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=lambda: NOTHING)


@dataclasses.dataclass(frozen=True)
class EdgeTpuOptions:
    """What to write for the Edge TPU and how to judge it.

    `source_length` is how many positions a segment of the encoder takes at once: longer texts go
    through in pieces. The rest is as in `TfliteOptions`.
    """

    source_length: int = 128
    calibration_data: pathlib.Path | None = None
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=lambda: NOTHING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedModelOptions:
    """What is fixed when a SavedModel is exported; None takes the preset's own setting.

    `dtype` is that of the stored matrices; sums are float32 in any case.
    """

    dtype: str = "float32"
    num_beams: int | None = None
    num_return_sequences: int | None = None
    no_repeat_ngram_size: int | None = None

    def __post_init__(self) -> None:
        lookup("dtype", self.dtype, dict.fromkeys(DTYPES))

    def settings(self, defaults: GenerationConfig) -> GenerationConfig:
        """Return a preset's settings with these in their place.

        Raises:
            ConfigurationError: for settings that sample, or that contradict each other.
        """
        fields = {name: value for name, value in vars(self).items() if name != "dtype"}
        given = {name: value for name, value in fields.items() if value is not None}
        if defaults.do_sample:
            raise ConfigurationError(
                "A SavedModel generates greedily or with beams, received a preset whose settings "
                "say do_sample=True. Change its generation_config.json."
            )
        return defaults.replace(**given)


Options = TfliteOptions | SavedModelOptions | EdgeTpuOptions
