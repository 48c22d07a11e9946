"""What exporters take and what they give: a model, and things written with the way to check each.

Values only. No target is known here.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from bart_export.config import GenerationConfig
from bart_export.model import BartBackbone
from bart_export.runtime.engine import Engine
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify.golden import Answer
from bart_export.verify.reference import KerasReference
from bart_export.verify.verify import Reference


@dataclasses.dataclass(frozen=True)
class Model:
    """What every target exports: the Keras model, its tokenizer and its settings.

    `directory` is the checkpoint's.
    """

    backbone: BartBackbone
    tokenizer: BartTokenizer
    generation: GenerationConfig
    encoder_sequence_length: int
    directory: pathlib.Path


# Compares with the reference: a dataclass of figures, and the answer to each question, None to
# those that were not asked.
Check = Callable[[KerasReference, Reference], tuple[Any, Sequence[Answer | None]]]


@dataclasses.dataclass(frozen=True)
class Written:
    """One thing that a target wrote: a file, or a directory of files that go together.

    `files` maps the name of each file to what its entry in the manifest says beside size and hash.
    `settings` are those of a question that must be asked besides the usual ones, None for none.
    `run` opens a file whose times the report is to have, None where it has none.
    """

    name: str
    files: Mapping[str, Mapping[str, Any]]
    check: Check
    settings: GenerationConfig | None = None
    run: Callable[[], AbstractContextManager[Engine]] | None = None


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an exporter did: the things it wrote, and what it learnt about the model's layers.

    `sensitivity` are the fields of `quality.tuning.sensitivity.LayerSensitivity`, nothing where
    layers were not measured.
    """

    written: Sequence[Written]
    sensitivity: Sequence[Mapping[str, Any]] = ()
