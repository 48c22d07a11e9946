"""What is fixed when a SavedModel is exported: the command line fills it in, the target reads it.

Nothing here knows TensorFlow or a file.
"""

import dataclasses

from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError

DTYPES = ("float32", "bfloat16")


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
        if self.dtype not in DTYPES:
            raise ConfigurationError(
                f"dtype must be one of {', '.join(DTYPES)}, received {self.dtype!r}."
            )

    def settings(self, defaults: GenerationConfig) -> GenerationConfig:
        """Return a preset's settings with these in their place.

        Raises:
            ConfigurationError: for settings that sample, or that contradict each other.
        """
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "dtype" and getattr(self, field.name) is not None
        }
        if defaults.do_sample:
            raise ConfigurationError(
                "A SavedModel generates greedily or with beams, received a preset whose settings "
                "say do_sample=True. Change its generation_config.json."
            )
        return defaults.replace(**given)
