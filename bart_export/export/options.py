"""The options of an export; their class chooses the target."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import ConfigurationError, lookup
from bart_export.recipes.table import Recipe

if TYPE_CHECKING:
    from bart_export.verify.data import Texts

DTYPES = ("float32", "bfloat16")
MOST_BEAMS = 256  # of all texts decoded together; thousands need tens of gigabytes


@dataclasses.dataclass(frozen=True)
class TfliteOptions:
    """Options of `.tflite` files.

    `shapes` are those of a static build, or None for a dynamic one. `calibration_data` are texts,
    or None for the preset's own. `data` are texts to verify with in addition to the golden texts.
    `tolerance` overrides bounds of the recipes.

    Raises:
        ConfigurationError: if a bucket of `shapes` has more than `MOST_BEAMS` beams.
    """

    recipes: tuple[Recipe, ...]
    shapes: StaticShapes | None = None
    calibration_data: "Texts | None" = None
    data: "Texts | None" = None
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shapes is not None:
            beams = self.shapes.num_beams[-1] * self.shapes.sources[-1]
            require_beams("--num-beams times --sources", beams)


@dataclasses.dataclass(frozen=True)
class EdgeTpuOptions:
    """Options of the Edge TPU's files.

    `source_length` is the number of positions that an encoder segment processes per run; longer
    texts take several runs. The other options are as in `TfliteOptions`.
    """

    source_length: int = 128
    calibration_data: "Texts | None" = None
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedModelOptions:
    """Settings that are fixed in a SavedModel; None means the preset's setting.

    `dtype` is that of the stored matrices; the model computes in float32.
    """

    dtype: str = "float32"
    num_beams: int | None = None
    num_return_sequences: int | None = None
    no_repeat_ngram_size: int | None = None

    def __post_init__(self) -> None:
        lookup("dtype", self.dtype, dict.fromkeys(DTYPES))

    def settings(self, defaults: GenerationConfig) -> GenerationConfig:
        """Return a preset's settings with these overrides.

        Raises:
            ConfigurationError: if the preset samples, or if there are more than `MOST_BEAMS` beams.
        """
        fields = {name: value for name, value in vars(self).items() if name != "dtype"}
        given = {name: value for name, value in fields.items() if value is not None}
        if defaults.do_sample:
            raise ConfigurationError(
                "A SavedModel cannot sample, but the preset has do_sample=True. Change its "
                "generation_config.json."
            )
        settings = defaults.replace(**given)
        require_beams("num_beams", settings.num_beams)
        return settings


def require_beams(subject: str, count: int) -> None:
    """Raise ConfigurationError for more beams, of all texts together, than a file may decode."""
    if count > MOST_BEAMS:
        raise ConfigurationError(f"{subject} must be at most {MOST_BEAMS}, received {count}.")


Options = TfliteOptions | SavedModelOptions | EdgeTpuOptions
