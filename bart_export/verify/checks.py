"""Checks of `.tflite` files during an export and in an artifact, without TensorFlow.

`Gate` keeps a wrong file from being committed, `replay` repeats an artifact's golden questions, and
`compare_files` compares files with their float32 file or with a preset.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType

from bart_export.artifact.artifact import GOLDEN, Artifact
from bart_export.artifact.figures import Answer, FileVerification, GoldenCase
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError, ConfigurationError, VerificationFailed
from bart_export.progress import Stage
from bart_export.recipes.table import ROUNDING, Recipe
from bart_export.runtime.engine import FileEngine
from bart_export.runtime.engine_choice import open_engine
from bart_export.runtime.generator import Generator, ModelInfo
from bart_export.verify import golden, weights
from bart_export.verify.compare import (
    Baseline,
    Cases,
    FileComparison,
    TfliteFile,
    compare,
    compare_model,
)
from bart_export.verify.data import Texts
from bart_export.verify.golden import Question
from bart_export.verify.tolerance import check_measurable


class Gate:
    """Checks the files of an export against the Keras model.

    The float file, from which the others are quantized, is checked first, even if it is not
    exported, because rounding would hide errors in the graph. `matrices` reads the checkpoint's
    matrices; `texts` are texts to measure on, or None for the golden texts.
    """

    def __init__(
        self,
        info: ModelInfo,
        float_file: TfliteFile,
        matrices: weights.Matrices,
        texts: Texts | None = None,
    ) -> None:
        self.info, self.float_file, self.matrices, self.texts = info, float_file, matrices, texts
        self.float_file_passed = False
        self.text_cases: Cases | None = None

    def check(
        self, file: TfliteFile, cases: Cases
    ) -> tuple[FileVerification, Sequence[Answer | None]]:
        """Check a file against its recipe's tolerance; return its figures and golden answers.

        `cases` has the Keras model's golden answers. If a file of texts was given, the figures are
        measured on those texts, but an exact file must still repeat the golden answers.

        Raises:
            VerificationFailed: if this file or its float file is outside its tolerance.
        """
        is_float_file = file.path == self.float_file.path
        files = {self.float_file.shapes: self.float_file}
        baseline = Baseline(self.info, files, self.matrices, cases)
        if not (is_float_file or self.float_file_passed):
            compare(self.float_file, baseline, cases).require_passed()
            self.float_file_passed = True
        comparison = compare(file, baseline, cases)
        if self.texts is not None and not comparison.faults:
            if file.recipe.exact:
                comparison.require_passed()
            figures = self.compare_texts(self.texts, baseline, comparison)
            comparison = dataclasses.replace(comparison, figures=figures)
        figures = comparison.require_passed()
        self.float_file_passed |= is_float_file
        return figures, comparison.answers

    def compare_texts(
        self, texts: Texts, baseline: Baseline, comparison: FileComparison
    ) -> FileVerification:
        """Return the figures on texts; others, which do not depend on texts, are `comparison`'s."""
        file, before = comparison.file, comparison.figures
        assert before is not None
        if self.text_cases is None:
            self.text_cases = baseline.ask(texts, self.float_file.shapes)
        tokenizer, exact, float32 = self.info.tokenizer, file.recipe.exact, before.float32
        with file.open() as model:
            figures, _ = compare_model(
                file.name, model, tokenizer, self.text_cases, exact=exact, float32=float32
            )
        return dataclasses.replace(
            figures, rounding=before.rounding, weights=before.weights, worst_row=before.worst_row
        )


def artifact_files(artifact: Artifact, tolerance: Mapping[str, float]) -> list[TfliteFile]:
    """Return an artifact's `.tflite` files, or raise ArtifactError if there are none.

    `tolerance` overrides some of their bounds.
    """
    files = []
    for name, entry in artifact.manifest.tflite().items():
        recipe = Recipe(
            entry.recipe,
            purpose="",
            mode=entry.mode,
            layers=entry.layers,
            tolerance=MappingProxyType({**entry.tolerance, **tolerance}),
            runtimes=entry.runtimes,
            refusals=entry.refusals,
        )

        def opened(name: str = name) -> AbstractContextManager[FileEngine]:
            return contextlib.nullcontext(open_engine(artifact, name))

        version = entry.contract_version or 1
        files.append(TfliteFile(name, artifact.path(name), recipe, entry.shapes, opened, version))
    if not files:
        raise ArtifactError(f"{artifact.directory} has no .tflite file to compare.")
    return files


def float_baseline(info: ModelInfo, files: Sequence[TfliteFile]) -> Baseline:
    """Return the baseline made from an artifact's float32 files.

    Raises:
        ConfigurationError: if there are no float32 files, or only float32 files.
    """
    bases = {file.shapes: file for file in files if file.recipe.mode == "float"}
    if not bases:
        raise ConfigurationError(
            "--data compares with the artifact's float32 file, but the artifact has none. Compare "
            "with its checkpoint (--against PRESET), or export a float32 file (--recipe float32)."
        )
    if len(bases) == len(files):
        raise ConfigurationError(
            f"{files[0].name} cannot be compared with itself, and the artifact has no quantized "
            "file. Compare it with its checkpoint: --against PRESET."
        )
    base = bases.get(None) or next(iter(bases.values()))
    return Baseline(info, bases, weights.stored_matrices(base.path))


def compare_files(
    files: Sequence[TfliteFile], baseline: Baseline, texts: Texts | None, stage: Stage
) -> list[FileComparison]:
    """Compare files with a baseline, on the given texts or, if None, on the golden texts.

    Raises:
        ConfigurationError: for a bound on ROUGE without references.
    """
    for file in files:
        check_measurable(file.recipe.tolerance, texts)

    @functools.cache
    def cases(shapes: StaticShapes | None) -> Cases:
        if texts is not None:
            return baseline.ask(texts, shapes, lambda: stage("ask the float model"))
        assert baseline.golden is not None
        return baseline.golden

    def compared(file: TfliteFile) -> FileComparison:
        return compare(file, baseline, cases(file.shapes), lambda: stage(f"compare {file.name}"))

    return list(map(compared, files))


ROUNDED_SHARE = 0.5  # with rounded weights, the outcome of near-ties depends on the processor


@dataclasses.dataclass(frozen=True)
class ReplayResult:
    """The result for a file: it repeated `equal` of `asked` golden answers token for token."""

    file: str
    equal: int
    asked: int


def replay(artifact: Artifact) -> list[ReplayResult]:
    """Check every hash of an artifact, then ask its `.tflite` files the golden questions again.

    This needs neither the checkpoint nor TensorFlow, so it works on the device that runs the
    artifact.

    Raises:
        ArtifactError: if a file is missing or altered.
        VerificationFailed: if a file with float32 weights gives an answer that differs by more than
            rounding, or a file with rounded weights gives different answers to more than half.
    """
    for name in artifact.manifest.files:
        artifact.path(name, rehash=True)
    cases, rows = artifact.golden().cases, []
    verified = {row.file: row for row in artifact.manifest.verification}
    for name, entry in artifact.manifest.tflite().items():
        asked = [case for case in cases if name in case.files]
        if not asked:
            raise ArtifactError(
                f"{artifact.directory / GOLDEN} has no answers for {name}. Export the artifact "
                "again."
            )
        exact, row = entry.tolerance.get("tokens") == 1.0, verified.get(name)
        float32 = row.float32 if isinstance(row, FileVerification) and exact else None
        place, recipe = artifact.directory, entry.recipe
        generator = Generator.from_artifact(place, recipe=recipe, shapes=entry.build)
        equal = count_equal(generator, name, asked, ROUNDING * (float32 or 0.0))
        if equal < len(asked) * (1.0 if exact else ROUNDED_SHARE):
            raise VerificationFailed(
                f"{artifact.directory / name} repeated {equal} of its {len(asked)} golden answers; "
                "it is damaged, or this machine's runtime runs it incorrectly."
            )
        rows.append(ReplayResult(name, equal, len(asked)))
    return rows


def count_equal(generator: Generator, name: str, cases: Sequence[GoldenCase], noise: float) -> int:
    """Return the number of cases for which a file repeats its golden answer."""
    model, tokenizer, equal = generator.engine, generator.tokenizer, 0
    for case in cases:
        question = Question(case.text, case.source_token_ids, case.setting, case.generation)
        answer, expected = golden.ask(model, tokenizer, question), case.files[name].token_ids
        equal += golden.matches(model, tokenizer, question, answer, expected, noise)
    return equal
