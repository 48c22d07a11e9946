"""What every target of an export takes and gives: a model, and files with the check of each."""

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
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import data, golden
from bart_export.verify.compare import Cases
from bart_export.verify.reference import KerasReference

CALIBRATION_FILE = "calibration.jsonl"  # in a preset's directory
# Texts that are run of those that ship with a preset: ranges hardly grow after them.
ENOUGH = 32

# How far a file is from the Keras model, and its answer to each question, None to those not asked.
Verified = tuple[figures.Verification, Sequence[figures.Answer | None]]
Check = Callable[[KerasReference, Cases], Verified]


@dataclasses.dataclass(frozen=True)
class Model:
    """What every target exports; `directory` is the checkpoint's."""

    info: ModelInfo
    backbone: BartBackbone
    directory: pathlib.Path

    @functools.cached_property
    def parameters(self) -> InferenceParameters:
        """The weights as inference graphs use them."""
        return InferenceParameters(self.info.config, self.backbone.named_weights().__getitem__)


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """A file that a target wrote, or a directory of files that go together, by name.

    `entries` are those of its files in the manifest, `check` compares it with the float model.
    `settings` are those of a question that must be asked besides the usual ones, None for none.
    `measured` is how the times are taken that the report is to have, None where it has none.
    """

    name: str
    entries: Mapping[str, manifest.FileEntry]
    check: Check
    settings: GenerationConfig | None = None
    measured: Measured | None = None


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What a target wrote, and what was learnt about the model's layers, if they were measured."""

    files: Sequence[ExportedFile]
    sensitivity: tuple[figures.LayerSensitivity, ...] = ()

    @property
    def entries(self) -> dict[str, manifest.FileEntry]:
        """The entries of all files in the manifest."""
        return {name: entry for file in self.files for name, entry in file.entries.items()}

    @property
    def settings(self) -> dict[str, GenerationConfig]:
        """What must be asked besides the usual questions, by file."""
        return {file.name: file.settings for file in self.files if file.settings is not None}

    @property
    def measured(self) -> dict[str, Measured]:
        """The files whose times the report has."""
        return {file.name: file.measured for file in self.files if file.measured is not None}


@dataclasses.dataclass(frozen=True)
class CalibrationTexts:
    """Texts to calibrate with: all of a file that was given, the first `ENOUGH` of a preset's own.

    `origin` says whose they are: "given", of the "preset", or "golden". `sha256` is that of the
    file, or of the golden texts' UTF-8, one after the other.
    """

    texts: tuple[str, ...]
    origin: str
    sha256: str

    @classmethod
    def choose(cls, given: pathlib.Path | None, preset: pathlib.Path) -> "CalibrationTexts":
        """Return the texts for a preset's directory, those of a file where one is given.

        Raises:
            InputError: for a file that cannot be read.
        """
        own = preset / CALIBRATION_FILE
        if given is None and not own.is_file():
            joined = "".join(golden.TEXTS).encode()
            return cls(golden.TEXTS, "golden", hashlib.sha256(joined).hexdigest())
        path, origin, most = (own, "preset", ENOUGH) if given is None else (given, "given", None)
        texts = data.read(path)
        chosen = tuple(example.text for example in texts.examples[:most])
        return cls(chosen, origin, texts.file.sha256)

    def entry(self, samples: int) -> manifest.Calibration:
        """Return what a file's entry in the manifest says of so many samples of these texts."""
        return manifest.Calibration(len(self.texts), samples, self.origin, self.sha256)
