"""A second look at an artifact: its `.tflite` files are compared once more with the float model.

An artifact and texts go in; a row for each file comes out, with its figures and with what is
outside its tolerance. The float model is the artifact's own float32 file, or what `quality.against`
makes of a preset. Nothing here needs TensorFlow.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bart_export.artifact.artifact import Artifact
from bart_export.artifact.figures import FileVerification, TextFile
from bart_export.artifact.manifest import TfliteEntry
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError, ConfigurationError, VerificationFailed
from bart_export.progress import Stage
from bart_export.recipes.table import Recipe
from bart_export.runtime.engines import open_engine
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import verify, weights
from bart_export.verify.data import Example
from bart_export.verify.gate import File, answer_texts, inspect
from bart_export.verify.tolerance import bounds, check_measurable
from bart_export.verify.traces import FileTeacher
from bart_export.verify.verify import Reference


@dataclasses.dataclass(frozen=True)
class Row:
    """A file's figures, None where it gave none, and in words what is wrong with it."""

    file: str
    recipe: str
    comparison: FileVerification | None
    failures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it."""
        figures = self.comparison and self.comparison.to_dict()
        if figures:
            del figures["file"]
        return {
            "file": self.file,
            "recipe": self.recipe,
            "passed": not self.failures,
            "failures": list(self.failures),
            "figures": figures,
        }


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts to compare along, and the hash of the file that they are of."""

    examples: Sequence[Example]
    sha256: str

    @property
    def description(self) -> TextFile:
        """What a `FileVerification` says of the texts."""
        return TextFile(self.sha256, len(self.examples))


@dataclasses.dataclass(frozen=True)
class Truth:
    """What files are compared with.

    `bases` are float files by their shapes, from which files of these shapes were made; `read` has
    the matrices; `answers` gives what the float model says to the texts, cut to some shapes.
    """

    bases: Mapping[StaticShapes | None, File]
    read: weights.Read
    answers: Callable[[StaticShapes | None], Reference]


def files_of(artifact: Artifact, tolerance: Mapping[str, float]) -> list[File]:
    """Return the `.tflite` files of an artifact, their bounds replaced by those of `tolerance`.

    Raises:
        ArtifactError: if there is none.
    """
    files = [
        File(
            name,
            artifact.path(name),
            recipe_of(entry, tolerance),
            entry.shapes,
            functools.partial(open_file, artifact, name),
        )
        for name, entry in artifact.manifest.tflite().items()
    ]
    if not files:
        raise ArtifactError(f"{artifact.directory} has no .tflite file to compare.")
    return files


def open_file(artifact: Artifact, name: str) -> contextlib.AbstractContextManager[Any]:
    """Open a file of an artifact."""
    return contextlib.nullcontext(open_engine(artifact, name))


def recipe_of(entry: TfliteEntry, tolerance: Mapping[str, float]) -> Recipe:
    """Return the recipe that a file's entry in the manifest describes, with some other bounds."""
    return Recipe(
        entry.recipe,
        purpose="",
        mode=entry.mode,
        layers=entry.layers,
        tolerance=MappingProxyType({**entry.tolerance, **tolerance}),
        runtimes=entry.runtimes,
        refusals=entry.refusals,
    )


def own_truth(info: ModelInfo, files: Sequence[File], texts: Texts, stage: Stage) -> Truth:
    """Return an artifact's own float32 file as what the others are compared with.

    Raises:
        ConfigurationError: if there is none, or nothing else.
    """
    bases = {file.shapes: file for file in files if file.recipe.mode == "float"}
    if not bases:
        raise ConfigurationError(
            "--data compares with the artifact's float32 file, and it has none. Give what it was "
            "made of with --against PRESET, or export it with --recipe float32."
        )
    if len(bases) == len(files):
        raise ConfigurationError(
            f"{files[0].name} is what others would be compared with, and there is no other. "
            "Compare it with what it was made of: --against PRESET."
        )
    base = bases.get(None) or next(iter(bases.values()))

    @functools.cache
    def answers(shapes: StaticShapes | None) -> Reference:
        with base.open() as model:
            return answer_texts(
                info,
                shapes or base.shapes,
                texts.examples,
                model,
                FileTeacher(model),
                lambda: stage(f"ask {base.name}"),
            )

    return Truth(bases, weights.matrices_of(base.path), answers)


def recheck(
    info: ModelInfo,
    files: Sequence[File],
    truth: Truth,
    texts: Texts | None,
    stage: Stage,
) -> list[Row]:
    """Compare files with the truth; `texts` are those of the truth's answers, None for golden ones.

    Raises:
        ConfigurationError: for a bound on ROUGE without references.
    """
    references = texts is not None and any(one.reference for one in texts.examples)
    for file in files:
        check_measurable(file.recipe.tolerance, references)
    return [row_of(info, file, truth, texts, stage) for file in files]


def row_of(info: ModelInfo, file: File, truth: Truth, texts: Texts | None, stage: Stage) -> Row:
    """Compare one file with the truth."""
    failures = []
    base = truth.bases.get(file.shapes)
    try:
        stored = inspect(file, info.config, truth.read, None if base is None else base.path)
    except VerificationFailed as error:
        failures.append(str(error))
        stored = {}
    reference = truth.answers(file.shapes)
    try:
        with file.open() as model:
            comparison, _ = verify.compare(
                file.name,
                file.recipe,
                model,
                info.tokenizer,
                reference,
                lambda: stage(f"compare {file.name}"),
            )
    except (ArtifactError, VerificationFailed) as error:  # the former for a graph of another form
        return Row(file.name, file.recipe.name, None, (*failures, str(error)))
    described = None if texts is None else texts.description
    comparison = dataclasses.replace(comparison, **stored, data=described)
    outside = [bound for bound in bounds(file.recipe, comparison) if not bound.kept]
    failures += [f"{file.name}: {bound}" for bound in outside]
    return Row(file.name, file.recipe.name, comparison, tuple(failures))
