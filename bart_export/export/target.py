"""The interface of a target: it takes a model, and returns files with a check for each."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence

from bart_export.artifact import figures, manifest
from bart_export.bench.measurements import Measured
from bart_export.config import GenerationConfig
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.presets import CALIBRATION_FILE
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import data, golden
from bart_export.verify.compare import Cases
from bart_export.verify.reference import KerasReference

# Number of a preset's texts to calibrate with; more would hardly widen the ranges.
PRESET_TEXTS = 32

# A file's figures, and its answer to each question, with None for one that it was not asked.
Verified = tuple[figures.Verification, Sequence[figures.Answer | None]]
Check = Callable[[KerasReference, Cases], Verified]


@dataclasses.dataclass(frozen=True)
class Model:
    """The model to export; `directory` is the checkpoint's."""

    info: ModelInfo
    backbone: BartBackbone
    directory: pathlib.Path

    @functools.cached_property
    def parameters(self) -> InferenceParameters:
        """The weights in the form that inference graphs use."""
        return InferenceParameters(self.info.config, self.backbone.named_weights().__getitem__)


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """An exported file, or a directory of files that belong together.

    `entries` are the manifest entries of its files; `check` compares it with the Keras model.
    `settings` are the generation settings of additional questions, or None. `measured` says how to
    measure its times for the report, or is None if they are not measured.
    """

    name: str
    entries: Mapping[str, manifest.FileEntry]
    check: Check
    settings: GenerationConfig | None = None
    measured: Measured | None = None


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """The files that a target wrote, and the sensitivity of each layer if it was measured."""

    files: Sequence[ExportedFile]
    sensitivity: tuple[figures.LayerSensitivity, ...] = ()

    @property
    def entries(self) -> dict[str, manifest.FileEntry]:
        """The manifest entries of all files."""
        return {name: entry for file in self.files for name, entry in file.entries.items()}

    @property
    def settings(self) -> dict[str, GenerationConfig]:
        """The settings of additional questions, by file."""
        return {file.name: file.settings for file in self.files if file.settings is not None}

    @property
    def measured(self) -> dict[str, Measured]:
        """How to measure the files whose times are in the report."""
        return {file.name: file.measured for file in self.files if file.measured is not None}


@dataclasses.dataclass(frozen=True)
class CalibrationTexts:
    """Texts to calibrate with.

    `origin` is "given" (by the user), "preset" or "golden". `sha256` is the hash of the file, or of
    the concatenated golden texts in UTF-8.
    """

    texts: tuple[str, ...]
    origin: str
    sha256: str

    @classmethod
    def choose(cls, given: pathlib.Path | None, preset: pathlib.Path) -> "CalibrationTexts":
        """Return the texts of a given file, else the preset's first texts, else the golden ones."""
        own = preset / CALIBRATION_FILE
        if given is None and not own.is_file():
            joined = "".join(golden.TEXTS).encode()
            return cls(golden.TEXTS, "golden", hashlib.sha256(joined).hexdigest())
        texts = data.read_texts(given or own)
        examples = texts.examples if given else texts.examples[:PRESET_TEXTS]
        origin = "given" if given else "preset"
        return cls(tuple(example.text for example in examples), origin, texts.file.sha256)

    def entry(self, samples: int) -> manifest.Calibration:
        """Return the manifest entry for a calibration with `samples` runs on these texts."""
        return manifest.Calibration(len(self.texts), samples, self.origin, self.sha256)
