"""What a target takes and what it gives: a model, and files with the way to check each."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from bart_export.artifact.figures import Answer, LayerSensitivity, Verification
from bart_export.artifact.manifest import FileEntry
from bart_export.bench.measurements import Measured
from bart_export.config import GenerationConfig
from bart_export.model import BartBackbone
from bart_export.runtime.generator import ModelInfo
from bart_export.verify.reference import KerasReference
from bart_export.verify.verify import Reference


@dataclasses.dataclass(frozen=True)
class Model:
    """What every target exports; `directory` is the checkpoint's."""

    info: ModelInfo
    backbone: BartBackbone
    directory: pathlib.Path


# Compares with the reference; also the answer to each question, None to those that were not asked.
Check = Callable[[KerasReference, Reference], tuple[Verification, Sequence[Answer | None]]]


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """A file that a target wrote, or a directory of files that go together, by name.

    `entries` are those of its files in the manifest, `check` compares it with the float model.
    `settings` are those of a question that must be asked besides the usual ones, None for none.
    `measured` is how the times are taken that the report is to have, None where it has none.
    """

    name: str
    entries: Mapping[str, FileEntry]
    check: Check
    settings: GenerationConfig | None = None
    measured: Measured | None = None


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What a target wrote, and what was learnt about the model's layers, if they were measured."""

    files: Sequence[ExportedFile]
    sensitivity: Sequence[LayerSensitivity] = ()
