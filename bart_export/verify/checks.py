"""The checks of `.tflite` files: when they are exported, and of an artifact later.

`Gate` keeps a wrong file from being committed, `replay` asks an artifact its golden questions
again, and `compare_files` compares its files with their float32 file or with a preset. Nothing here
needs TensorFlow.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from bart_export.artifact.artifact import GOLDEN, Artifact
from bart_export.artifact.figures import Answer, FileVerification, GoldenCase
from bart_export.artifact.manifest import TfliteEntry
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError, ConfigurationError, VerificationFailed
from bart_export.progress import Stage
from bart_export.recipes.table import ROUNDING, Recipe
from bart_export.runtime.engine import FileEngine
from bart_export.runtime.engines import open_engine
from bart_export.runtime.generator import Generator, ModelInfo
from bart_export.verify import data, golden, weights
from bart_export.verify.compare import (
    Baseline,
    Cases,
    Comparison,
    TfliteFile,
    compare,
    compare_model,
)
from bart_export.verify.data import Texts
from bart_export.verify.golden import Question
from bart_export.verify.tolerance import check_measurable, uncommitted


class Gate:
    """Holds the files of one export to the Keras model.

    The float file that they are made of is held to it first, whether or not it is exported: what is
    wrong with a graph shows there, where no rounding hides it.

    Args:
        info: about the model.
        float_file: the float file, with the bounds that it is held to.
        matrices: those of the checkpoint.
        texts: a file of texts to measure on, None for the golden ones.

    Raises:
        InputError: for texts that cannot be read.
    """

    def __init__(
        self,
        info: ModelInfo,
        float_file: TfliteFile,
        matrices: weights.Matrices,
        texts: pathlib.Path | None = None,
    ) -> None:
        self.info, self.float_file, self.matrices = info, float_file, matrices
        self.texts = data.read(texts) if texts else None
        self.float_file_passed = False
        self.asked: Cases | None = None  # the texts

    def check(
        self, file: TfliteFile, asked: Cases
    ) -> tuple[FileVerification, Sequence[Answer | None]]:
        """Compare a file with the Keras model and hold it to the tolerance of its recipe.

        With a file of texts the figures are those of the texts; a file that is to be exact must
        answer the golden questions all the same.

        Args:
            file: what to check; it may be the float file.
            asked: the Keras model's answers to the golden questions.

        Returns:
            The figures, and the answers to the golden questions.

        Raises:
            ConfigurationError: for a bound on ROUGE without references.
            VerificationFailed: for what is outside the tolerance, in this file or its float file.
        """
        check_measurable(file.recipe.tolerance, self.texts)
        own = file.path == self.float_file.path
        files = {self.float_file.shapes: self.float_file}
        baseline = Baseline(self.info, files, self.matrices, asked)
        with uncommitted():
            if not (own or self.float_file_passed):
                compare(self.float_file, baseline, asked).passed()
                self.float_file_passed = True
            comparison = compare(file, baseline, asked)
            if self.texts is not None and not comparison.faults:
                if file.recipe.exact:
                    comparison.passed()
                figures = self.compare_texts(self.texts, baseline, comparison)
                comparison = dataclasses.replace(comparison, figures=figures)
            figures = comparison.passed()
        self.float_file_passed |= own
        return figures, comparison.answers

    def compare_texts(
        self, texts: Texts, baseline: Baseline, comparison: Comparison
    ) -> FileVerification:
        """Return the figures of a file over texts; what does not depend on them stays."""
        file, before = comparison.file, comparison.figures
        assert before is not None
        if self.asked is None:
            self.asked = baseline.ask(texts, self.float_file.shapes)
        with file.open() as model:
            figures, _ = compare_model(
                file.name,
                model,
                self.info.tokenizer,
                self.asked,
                exact=file.recipe.exact,
                float32=before.float32,
            )
        return dataclasses.replace(
            figures, rounding=before.rounding, weights=before.weights, worst_row=before.worst_row
        )


def artifact_files(artifact: Artifact, tolerance: Mapping[str, float]) -> list[TfliteFile]:
    """Return the `.tflite` files of an artifact, some of their bounds replaced by `tolerance`.

    Raises:
        ArtifactError: if there is none.
    """

    def recipe_of(entry: TfliteEntry) -> Recipe:
        return Recipe(
            entry.recipe,
            purpose="",
            mode=entry.mode,
            layers=entry.layers,
            tolerance=MappingProxyType({**entry.tolerance, **tolerance}),
            runtimes=entry.runtimes,
            refusals=entry.refusals,
        )

    def open_file(name: str) -> contextlib.AbstractContextManager[FileEngine]:
        return contextlib.nullcontext(open_engine(artifact, name))

    files = [
        TfliteFile(
            name,
            artifact.path(name),
            recipe_of(entry),
            entry.shapes,
            functools.partial(open_file, name),
        )
        for name, entry in artifact.manifest.tflite().items()
    ]
    if not files:
        raise ArtifactError(f"{artifact.directory} has no .tflite file to compare.")
    return files


def float_baseline(info: ModelInfo, files: Sequence[TfliteFile]) -> Baseline:
    """Return an artifact's own float32 files as what the others are compared with.

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
    return Baseline(info, bases, weights.stored_matrices(base.path))


def compare_files(
    files: Sequence[TfliteFile], baseline: Baseline, texts: Texts | None, stage: Stage
) -> list[Comparison]:
    """Compare files with a baseline, along texts or, without any, the golden ones.

    Raises:
        ConfigurationError: for a bound on ROUGE without references.
    """
    for file in files:
        check_measurable(file.recipe.tolerance, texts)

    @functools.cache
    def cases(shapes: StaticShapes | None) -> Cases:
        if texts is None:
            assert baseline.golden is not None
            return baseline.golden
        return baseline.ask(texts, shapes, lambda: stage("ask the float model"))

    return [
        compare(
            file, baseline, cases(file.shapes), functools.partial(stage, f"compare {file.name}")
        )
        for file in files
    ]


# Rounded weights leave near-ties that another processor may decide otherwise.
ROUNDED_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Replayed:
    """How many of a file's recorded answers it gave again, token for token."""

    file: str
    equal: int
    asked: int


def replay(artifact: Artifact, open_file: Callable[[str], Generator]) -> list[Replayed]:
    """Check every hash of an artifact, then ask its `.tflite` files their golden questions again.

    It needs neither the checkpoint nor TensorFlow: an artifact can be checked on the device that it
    was copied to.

    Args:
        artifact: what to check.
        open_file: opens a file of the artifact by its name.

    Raises:
        ArtifactError: for a file that is missing or altered.
        VerificationFailed: for a file that answers otherwise than it did: where its recipe keeps
            float32 weights in any answer that more than rounding decides, where weights are
            rounded in more than half of its answers.
    """
    for name in artifact.manifest.files:
        artifact.path(name, rehash=True)
    cases = artifact.golden().cases
    return [replay_file(artifact, name, cases, open_file) for name in artifact.manifest.tflite()]


def replay_file(
    artifact: Artifact,
    name: str,
    cases: Sequence[GoldenCase],
    open_file: Callable[[str], Generator],
) -> Replayed:
    """Ask one file its questions again."""
    generator = open_file(name)
    model, tokenizer = generator.engine, generator.tokenizer
    exact = artifact.manifest.tflite()[name].tolerance.get("tokens") == 1.0
    noise = 0.0
    for row in artifact.manifest.verification:
        if exact and isinstance(row, FileVerification) and row.file == name:
            noise = ROUNDING * (row.float32 or 0.0)
    equal = []
    for case in cases:
        if name in case.files:  # not a question for another target
            question = Question(case.text, case.source_token_ids, case.setting, case.generation)
            answer, wanted = golden.ask(model, tokenizer, question), case.files[name].token_ids
            equal.append(golden.repeats(model, tokenizer, question, answer, wanted, noise))
    if not equal:
        raise ArtifactError(
            f"{artifact.directory / GOLDEN} lacks answers of {name}. Export the artifact again."
        )
    if sum(equal) < len(equal) * (1.0 if exact else ROUNDED_SHARE):
        raise VerificationFailed(
            f"{artifact.directory / name} gave {sum(equal)} of its {len(equal)} recorded answers "
            "again; it is damaged, or this machine's runtime computes it wrongly."
        )
    return Replayed(name, sum(equal), len(equal))
