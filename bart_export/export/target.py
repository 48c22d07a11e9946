"""The interface of a target: it takes a model, and returns files with a check for each."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence

from bart_export.artifact import figures, manifest
from bart_export.bench.measurements import MeasurableFile
from bart_export.config import GenerationConfig
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.presets import CALIBRATION_FILE
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import data, golden
from bart_export.verify.compare import Cases
from bart_export.verify.data import Texts
from bart_export.verify.reference import KerasReference

# Number of a preset's texts to calibrate with; more would hardly widen the ranges.
PRESET_TEXTS = 32

# A file's figures, and its answer to each question, with None for one that it was not asked.
Verified = tuple[figures.Verification, Sequence[figures.Answer | None]]
Check = Callable[[KerasReference, Cases], Verified]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
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
    `settings` are the generation settings of additional questions, or None. `measurable` opens
    it to measure its times for the report, or is None if they are not measured.
    """

    name: str
    entries: Mapping[str, manifest.FileEntry]
    check: Check
    settings: GenerationConfig | None = None
    measurable: MeasurableFile | None = None


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
    def measurable(self) -> dict[str, MeasurableFile]:
        """How to measure the files whose times are in the report."""
        return {file.name: file.measurable for file in self.files if file.measurable is not None}


def calibration_texts(
    given: Texts | None, preset: pathlib.Path
) -> tuple[Sequence[str], manifest.Calibration]:
    """Return the given texts, else the first in a preset's directory, else the golden ones.

    Also returns their manifest entry. Its `origin` is "given" (by the user), "preset" or "golden";
    `sha256` is the hash of the file, or of the concatenated golden texts in UTF-8.
    """
    own = preset / CALIBRATION_FILE
    texts: Sequence[str] = golden.TEXTS
    origin, digest = "golden", hashlib.sha256("".join(texts).encode()).hexdigest()
    if given is not None or own.is_file():
        origin, most = ("given", None) if given else ("preset", PRESET_TEXTS)
        read = given or data.read_texts(own)
        texts, digest = [each.text for each in read.examples[:most]], read.file.sha256
    return texts, manifest.Calibration(len(texts), origin=origin, sha256=digest)
