"""Comparison of a `.tflite` file with its float model.

Logits are compared along the float model's greedy traces, through every signature of the file, and
with several sources at a time; answers token by token, and by ROUGE if there are references;
matrices row by row; the graph operator by operator.
"""

import contextlib
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from bart_export import contract
from bart_export.artifact.figures import Answer, FileVerification, TextFile
from bart_export.config import BartConfig
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError, EngineError, InputError, VerificationFailed
from bart_export.recipes.table import ROUNDING, Recipe
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import Engine, FileEngine
from bart_export.runtime.generator import ModelInfo
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import data, golden, structure, traces, weights
from bart_export.verify.data import Floats, Texts
from bart_export.verify.golden import Question
from bart_export.verify.tolerance import bounds_of, require_bounds
from bart_export.verify.traces import (
    ArrayFigures,
    SignaturePair,
    StepFigures,
    Teacher,
    Trace,
    TraceOutput,
    worst,
)

FEW = 8  # traces run in every bucket of a static build; a long encoder may take seconds
Tick = Callable[[], None]  # called for every trace and every question


@dataclasses.dataclass(frozen=True)
class TfliteFile:
    """A `.tflite` file and the function that opens it; `shapes` is None for a dynamic build."""

    name: str
    path: pathlib.Path
    recipe: Recipe
    shapes: StaticShapes | None
    open: Callable[[], AbstractContextManager[FileEngine]]
    contract_version: int = contract.CONTRACT_VERSION

    @classmethod
    def of_draft(
        cls,
        name: str,
        path: pathlib.Path,
        recipe: Recipe,
        config: BartConfig,
        shapes: StaticShapes | None,
    ) -> "TfliteFile":
        """Return a file that is not in an artifact yet; it runs on LiteRT."""
        return cls(name, path, recipe, shapes, functools.partial(open_draft, path, config, shapes))


@contextlib.contextmanager
def open_draft(
    path: pathlib.Path, config: BartConfig, shapes: StaticShapes | None
) -> Iterator[FileEngine]:
    """Open a file on LiteRT, with a temporary weight cache for a static build."""
    buckets = contract.tflite_buckets(config, shapes)
    if shapes is None:
        yield open_compiled_model(path, config, buckets)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # The cache lets signatures share their weights.
        yield open_compiled_model(path, config, buckets, weight_cache=f"{scratch}/weights")


@dataclasses.dataclass(frozen=True)
class Cases:
    """Questions and traces for files, with the float model's answers.

    `teacher` computes the model's output along its greedy `traces`; `float64` does so in float64,
    if available. `references` has each question's reference, or None. `file` describes the file of
    texts, or is None for the golden texts.
    """

    questions: Sequence[Question]
    answers: Sequence[Answer]
    traces: Sequence[Trace]
    teacher: Teacher
    float64: Teacher | None = None
    references: Sequence[str | None] = ()
    file: TextFile | None = None

    @classmethod
    def ask(
        cls,
        model: Engine,
        tokenizer: BartTokenizer,
        questions: Sequence[Question],
        teacher: Teacher,
        float64: Teacher | None = None,
        tick: Tick = lambda: None,
    ) -> "Cases":
        """Ask the float model all questions; its greedy answers become the traces."""
        answers = []
        for question in questions:
            answers.append(golden.ask(model, tokenizer, question))
            tick()
        fed = [
            Trace(question.source_token_ids, answer.token_ids[:-1])
            for question, answer in zip(questions, answers, strict=True)
            if question.setting == "greedy"
        ]
        return cls(questions, answers, fed, teacher, float64)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The float model of a comparison.

    `float_files` maps shapes to the float32 file with these shapes; `matrices` returns the
    expected matrix of a layer. `golden` has the Keras model's golden answers, or is None if a float
    file is the teacher.
    """

    info: ModelInfo
    float_files: Mapping[StaticShapes | None, TfliteFile]
    matrices: weights.Matrices
    golden: Cases | None = None

    def ask(
        self, texts: Texts, shapes: StaticShapes | None = None, tick: Tick = lambda: None
    ) -> Cases:
        """Ask a float file to generate from texts, both with the model's defaults and greedily.

        With `shapes`, texts and settings are limited to the sizes of this static build.
        """
        info, files = self.info, self.float_files
        file = files.get(None) or files.get(shapes) or next(iter(files.values()))
        shapes = shapes or file.shapes
        longest, settings = info.encoder_sequence_length, info.generation
        if shapes is not None:
            longest = min(longest, max(shapes.source_lengths))
            max_length = min(settings.max_length, shapes.target_length)
            settings = settings.replace(
                max_length=max_length,
                min_length=min(settings.min_length, max_length),
                num_beams=min(settings.num_beams, max(shapes.num_beams)),
            )
        settings = settings.replace(do_sample=False, num_return_sequences=1)
        generations = {"defaults": settings, "greedy": golden.greedy(info, settings.max_length)}
        questions = []
        for example in texts.examples:
            ids = tuple(info.tokenizer.encode(example.text, longest, truncate=True))
            questions += [Question(example.text, ids, *named) for named in generations.items()]
        with file.open() as model:
            own = functools.partial(traces.teacher_force, model)
            teacher = own if self.golden is None else self.golden.teacher
            cases = Cases.ask(model, info.tokenizer, questions, teacher, tick=tick)
        return dataclasses.replace(
            cases,
            questions=questions[::2],  # the greedy ones are traces
            answers=cases.answers[::2],
            references=[example.reference for example in texts.examples],
            file=texts.file,
        )


@dataclasses.dataclass(frozen=True)
class FileComparison:
    """The result of comparing a file with its baseline.

    `figures` is None if the file cannot be run. `answers` has None for a question that is too long
    for a static build. `faults` are messages about errors that no tolerance accepts.
    """

    file: TfliteFile
    figures: FileVerification | None
    answers: Sequence[Answer | None]
    faults: Sequence[str]

    @property
    def failures(self) -> list[str]:
        """The faults, and messages about figures outside the tolerance."""
        bounds = [] if self.figures is None else bounds_of(self.file.recipe, self.figures)
        outside = [f"{self.file.name}: {bound}" for bound in bounds if not bound.holds]
        return [*self.faults, *outside]

    def require_passed(self) -> FileVerification:
        """Return the figures, or raise VerificationFailed for the first failure."""
        if self.figures is None or self.faults:
            raise VerificationFailed(self.faults[0])
        require_bounds(self.file.name, bounds_of(self.file.recipe, self.figures))
        return self.figures

    def to_dict(self) -> dict[str, object]:
        """Return the file's entry in the output of `bart-export verify --json`."""
        figures = self.figures and self.figures.to_dict()
        if figures:
            del figures["file"]
        failures = self.failures
        return {
            "file": self.file.name,
            "recipe": self.file.recipe.name,
            "passed": not failures,
            "failures": failures,
            "figures": figures,
        }


def compare(
    file: TfliteFile, baseline: Baseline, cases: Cases, tick: Tick = lambda: None
) -> FileComparison:
    """Compare a file's graph, matrices and answers with a baseline."""
    info, faults, row = baseline.info, [], None
    float_file = baseline.float_files.get(file.shapes)
    try:
        if (
            float_file is not None
            and float_file.path != file.path
            and float_file.contract_version == file.contract_version
        ):
            structure.compare_graphs(file.name, file.path, float_file.path)
        row = weights.worst_row(file.path, info.config, file.recipe, baseline.matrices)
    except VerificationFailed as error:
        faults.append(str(error))
    try:
        with file.open() as model:
            figures, answers = compare_model(
                file.name, model, info.tokenizer, cases, exact=file.recipe.exact, tick=tick
            )
    except (ArtifactError, VerificationFailed) as error:  # ArtifactError: unexpected signatures
        return FileComparison(file, None, (), (*faults, str(error)))
    if row is not None:
        place = None if row.error == 0 else f"{row.layer}, row {row.row}"
        figures = dataclasses.replace(figures, weights=row.error, worst_row=place)
    return FileComparison(file, figures, answers, faults)


def compare_model(
    name: str,
    model: FileEngine,
    tokenizer: BartTokenizer,
    cases: Cases,
    *,
    exact: bool = False,
    float32: float | None = None,
    pairs: Sequence[SignaturePair] | None = None,
    tick: Tick = lambda: None,
) -> tuple[FileVerification, Sequence[Answer | None]]:
    """Compare an open file's logits and answers with the float model's.

    `exact` accepts an answer that differs only by a near-tie in float32; `float32` is the Keras
    model's largest float32 error, if `cases` have no float64 teacher. Traces run through `pairs` of
    signatures, by default all of the file's. Returns the figures, and the answers as in
    `FileComparison`.

    Raises:
        VerificationFailed: if the file cannot be run.
    """
    answers: list[Answer | None] = []
    same, scored = [], []
    try:
        signatures = compare_steps(pairs or traces.signature_pairs(model), cases, tick)
        steps = [figures for figures in signatures.values() if "top1" in figures]
        if cases.float64 is not None:
            float32 = worst(figures["float32"] for figures in steps)
        noise = ROUNDING * (float32 or 0.0) if exact else 0.0
        for number, (question, expected) in enumerate(
            zip(cases.questions, cases.answers, strict=True)
        ):
            tick()
            try:
                answer = golden.ask(model, tokenizer, question)
            except InputError:  # too long for a static build
                answers.append(None)
                continue
            answers.append(answer)
            same.append(
                golden.matches(model, tokenizer, question, answer, expected.token_ids, noise)
            )
            reference = cases.references[number] if cases.references else None
            if reference is not None:
                scored.append((reference, expected.text.strip(), answer.text.strip()))
    except EngineError as error:
        raise VerificationFailed(f"{name} cannot answer: {error}") from error
    rouge = data.rouge_losses(*map(list, zip(*scored, strict=True))) if scored else {}
    names = ("logits", "spread", "relative", "kl", *(("rounding",) if cases.float64 else ()))
    largest: dict[str, Any] = {figure: worst(row[figure] for row in steps) for figure in names}
    losses: dict[str, Any] = {kind: row.loss for kind, row in rouge.items()}
    return FileVerification(
        name,
        **largest,
        **losses,
        top1=min(row["top1"] for row in steps),
        tokens=sum(same) / len(same) if same else None,
        steps=max(int(row["steps"]) for row in steps),
        questions=len(same),
        signatures=signatures,
        float32=float32,
        rouge=rouge or None,
        data=cases.file,
    ), answers


def compare_steps(
    pairs: Sequence[SignaturePair], cases: Cases, tick: Tick
) -> dict[str, Mapping[str, float]]:
    """Return the figures of every signature along the traces.

    Traces after the first `FEW` run only through the signatures that a runtime would choose.
    """
    encoders: dict[str, ArrayFigures] = {}
    decoders: dict[str, StepFigures] = {}
    numbered = list(enumerate(cases.traces))
    for first in range(0, len(numbered), traces.SOURCES):
        group = numbered[first : first + traces.SOURCES]
        # Cut trace -> expected output, and the float32 logits if the expected ones are float64.
        known: dict[Trace, tuple[TraceOutput, Floats | None]] = {}
        for pair in pairs:
            cuts = [
                pair.cut(trace)
                for number, trace in group
                if number < FEW or pair in traces.fitting_pairs(pairs, trace)
            ]
            for cut, received in zip(cuts, pair.force(cuts), strict=True):
                if cut not in known:
                    rounded = cases.teacher(cut)
                    exact = cases.float64 and cases.float64(cut)
                    known[cut] = (exact, rounded.logits) if exact else (rounded, None)
                expected, logits = known[cut]
                decoder = decoders.setdefault(pair.name, StepFigures())
                decoder.add(expected.logits, received.logits, logits)
                for tensor, array in received.cross.items():
                    if tensor in expected.cross:
                        encoder = encoders.setdefault(pair.encode, ArrayFigures())
                        encoder.add(expected.cross[tensor], array)
        for _ in group:
            tick()
    encoded = {
        name: {"error": sums.largest, "spread": sums.spread, "relative": sums.relative}
        for name, sums in encoders.items()
    }
    return {**encoded, **{name: sums.figures() for name, sums in decoders.items()}}
