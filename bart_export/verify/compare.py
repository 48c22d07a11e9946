"""A `.tflite` file is compared with the float model that it was made of.

`compare` is under the gate of an export and `bart-export verify`; its part that runs a file,
`compare_model`, is also under the search for a recipe. Logits are compared along the float model's
own greedy traces, through every signature of the file; answers token for token, and where there are
references by ROUGE; matrices row by row, and the graph operator by operator.
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
from bart_export.config import BartConfig, GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError, EngineError, InputError, VerificationFailed
from bart_export.recipes.table import ROUNDING, Recipe
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import Engine, FileEngine
from bart_export.runtime.generator import ModelInfo
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import data, golden, structure, weights
from bart_export.verify.data import Floats, Texts
from bart_export.verify.golden import Question
from bart_export.verify.tolerance import bounds_of, require
from bart_export.verify.traces import (
    ArrayFigures,
    SignaturePair,
    StepFigures,
    Teacher,
    Trace,
    TraceOutput,
    fitting_pairs,
    signature_pairs,
    teacher_force,
    worst,
)

FEW = 8  # traces through every bucket of a static build; a long one's encoder may take seconds
Tick = Callable[[], None]  # called for every trace and every question


@dataclasses.dataclass(frozen=True)
class TfliteFile:
    """A `.tflite` file: its name in errors, its path, recipe and shapes, and how to open it.

    `shapes` are None for a dynamic build.
    """

    name: str
    path: pathlib.Path
    recipe: Recipe
    shapes: StaticShapes | None
    open: Callable[[], AbstractContextManager[Engine]]

    @classmethod
    def of_draft(
        cls,
        name: str,
        path: pathlib.Path,
        recipe: Recipe,
        config: BartConfig,
        shapes: StaticShapes | None,
    ) -> "TfliteFile":
        """Return a file that is in no artifact yet, to be run on LiteRT."""
        return cls(name, path, recipe, shapes, functools.partial(open_draft, path, config, shapes))


@contextlib.contextmanager
def open_draft(
    path: pathlib.Path, config: BartConfig, shapes: StaticShapes | None
) -> Iterator[FileEngine]:
    """Open a file on LiteRT; a weight cache lies beside it while it is open."""
    if shapes is None:
        yield open_compiled_model(path, config)
        return
    buckets = contract.static_buckets(config, **dataclasses.asdict(shapes))
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # Signatures share their weights in the cache.
        yield open_compiled_model(path, config, buckets, weight_cache=f"{scratch}/weights")


@dataclasses.dataclass(frozen=True)
class Cases:
    """What files are asked, and what the float model answered.

    `teacher` computes what the model gives along its greedy `traces`, `float64` the same in
    float64, None where that is not known. `references` are the texts that people wanted for the
    questions, None for none. `file` is the one that the texts are of, None for the golden ones.
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
    ) -> "Cases":
        """Ask the float model all questions; the greedy answers are the traces."""
        answers = [golden.ask(model, tokenizer, question) for question in questions]
        traces = [
            Trace(question.source_token_ids, answer.token_ids[:-1])
            for question, answer in zip(questions, answers, strict=True)
            if question.setting == "greedy"
        ]
        return cls(questions, answers, traces, teacher, float64)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What the files of a model are compared with.

    `float_files` are float32 files by their shapes, from which files of these shapes were made;
    `matrices` reads what is stored. `golden` is what the Keras model answers to the golden
    questions, None where it is not asked: then a float file is the teacher.
    """

    info: ModelInfo
    float_files: Mapping[StaticShapes | None, TfliteFile]
    matrices: weights.Matrices
    golden: Cases | None = None

    def ask(
        self, texts: Texts, shapes: StaticShapes | None = None, tick: Tick = lambda: None
    ) -> Cases:
        """Ask a float file about texts, with the model's own settings and greedily.

        Texts and settings are cut to what a static build of some shapes has room for.
        """
        info, files = self.info, self.float_files
        file = files.get(None) or files.get(shapes) or next(iter(files.values()))
        shapes = shapes or file.shapes
        longest = info.encoder_sequence_length
        if shapes is not None:
            longest = min(longest, max(shapes.source_lengths))
        settings = fitting_settings(info.generation, shapes)
        greedy = golden.greedy(info, settings.max_length)
        questions, answers, traces = [], [], []
        with file.open() as model:
            for example in texts.examples:
                ids = tuple(info.tokenizer.encode(example.text, longest, truncate=True))
                questions.append(Question(example.text, ids, "defaults", settings))
                answers.append(golden.ask(model, info.tokenizer, questions[-1]))
                question = Question(example.text, ids, "greedy", greedy)
                fed = golden.ask(model, info.tokenizer, question).token_ids[:-1]
                traces.append(Trace(ids, fed))
                tick()
        teacher = (
            functools.partial(teacher_force, model) if self.golden is None else self.golden.teacher
        )
        references = [example.reference for example in texts.examples]
        return Cases(questions, answers, traces, teacher, references=references, file=texts.file)


def fitting_settings(generation: GenerationConfig, shapes: StaticShapes | None) -> GenerationConfig:
    """Return settings that a static build has room for, without sampling."""
    settings = generation.replace(do_sample=False, num_return_sequences=1)
    if shapes is None:
        return settings
    longest = min(settings.max_length, shapes.target_length)
    return settings.replace(
        max_length=longest,
        min_length=min(settings.min_length, longest),
        num_beams=min(settings.num_beams, max(shapes.num_beams)),
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a file compares with its baseline.

    `figures` are None for a file that cannot answer; `answers` are those to the questions, None to
    one that a static build has no room for. `faults` say in words what no tolerance accepts.
    """

    file: TfliteFile
    figures: FileVerification | None
    answers: Sequence[Answer | None]
    faults: Sequence[str]

    @property
    def failures(self) -> list[str]:
        """What is wrong with the file, figures outside its tolerance included."""
        bounds = [] if self.figures is None else bounds_of(self.file.recipe, self.figures)
        outside = [f"{self.file.name}: {bound}" for bound in bounds if not bound.kept]
        return [*self.faults, *outside]

    def passed(self) -> FileVerification:
        """Return the figures.

        Raises:
            VerificationFailed: for the first fault, or the first figure outside the tolerance.
        """
        if self.figures is None or self.faults:
            raise VerificationFailed(self.faults[0])
        require(self.file.name, bounds_of(self.file.recipe, self.figures))
        return self.figures

    def to_dict(self) -> dict[str, object]:
        """Return the row of `bart-export verify --json`."""
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
) -> Comparison:
    """Compare what a file stores and what it answers with a baseline."""
    info, faults, row = baseline.info, [], None
    float_file = baseline.float_files.get(file.shapes)
    try:
        if float_file is not None and float_file.path != file.path:
            structure.compare_graphs(file.name, file.path, float_file.path)
        row = weights.worst_row(file.path, info.config, file.recipe, baseline.matrices)
    except VerificationFailed as error:
        faults.append(str(error))
    try:
        with file.open() as model:
            figures, answers = compare_model(
                file.name, model, info.tokenizer, cases, exact=file.recipe.exact, tick=tick
            )
    except (ArtifactError, VerificationFailed) as error:  # the former for a graph of another form
        return Comparison(file, None, (), (*faults, str(error)))
    if row is not None:
        place = None if row.error == 0 else f"{row.layer}, row {row.row}"
        figures = dataclasses.replace(figures, weights=row.error, worst_row=place)
    return Comparison(file, figures, answers, faults)


def compare_model(
    name: str,
    model: Engine,
    tokenizer: BartTokenizer,
    cases: Cases,
    *,
    exact: bool = False,
    float32: float | None = None,
    pairs: Sequence[SignaturePair] = (),
    tick: Tick = lambda: None,
) -> tuple[FileVerification, list[Answer | None]]:
    """Ask an open file what the float model was asked.

    Args:
        name: what errors call the file.
        model: the file.
        tokenizer: the model's.
        cases: the questions and traces.
        exact: whether another answer counts as equal where only float32's rounding decides.
        float32: what float32 cost the Keras model's logits elsewhere, where `cases` do not say it.
        pairs: the signatures to run traces through; by default all of the file.
        tick: called for every trace and every question.

    Returns:
        The figures and the answers, None to a question that does not fit a static build.

    Raises:
        VerificationFailed: for a file that cannot be run.
    """
    try:
        signatures = compare_steps(pairs or signature_pairs(model), cases, tick)
        steps = [figures for figures in signatures.values() if "top1" in figures]
        if cases.float64 is not None:
            float32 = worst(figures["float32"] for figures in steps)
        answers: list[Answer | None] = []
        for question in cases.questions:
            tick()
            try:
                answers.append(golden.ask(model, tokenizer, question))
            except InputError:  # a static build has no room for it
                answers.append(None)
        noise = ROUNDING * (float32 or 0.0) if exact else 0.0
        same = [
            golden.repeats(model, tokenizer, question, answer, wanted.token_ids, noise)
            for question, answer, wanted in zip(
                cases.questions, answers, cases.answers, strict=True
            )
            if answer is not None
        ]
    except EngineError as error:
        raise VerificationFailed(f"{name} cannot answer: {error}") from error
    rows = [
        (reference, wanted.text.strip(), answer.text.strip())
        for reference, wanted, answer in zip(cases.references, cases.answers, answers, strict=False)
        if reference is not None and answer is not None
    ]
    rouge = data.rouge_losses(*map(list, zip(*rows, strict=True))) if rows else {}

    def largest(figure: str) -> float:
        return worst(figures[figure] for figures in steps)

    verification = FileVerification(
        name,
        logits=largest("logits"),
        spread=largest("spread"),
        relative=largest("relative"),
        kl=largest("kl"),
        top1=min(figures["top1"] for figures in steps),
        tokens=sum(same) / len(same) if same else None,
        steps=int(largest("steps")),
        questions=len(same),
        signatures=signatures,
        rounding=largest("rounding") if cases.float64 else None,
        float32=float32,
        rouge=rouge or None,
        data=cases.file,
    )
    losses: dict[str, Any] = {kind: row.loss for kind, row in rouge.items()}
    return dataclasses.replace(verification, **losses), answers


def compare_steps(
    pairs: Sequence[SignaturePair], cases: Cases, tick: Tick
) -> dict[str, Mapping[str, float]]:
    """Return the figures of every signature along the traces.

    Traces beyond the first `FEW` run only through the signatures that a runtime would choose.
    """
    encoders: dict[str, ArrayFigures] = {}
    decoders: dict[str, StepFigures] = {}
    for number, trace in enumerate(cases.traces):
        # Of the trace cut to a pair's sizes: what is right, and what float32 makes of it.
        known: dict[Trace, tuple[TraceOutput, Floats | None]] = {}
        for pair in pairs if number < FEW else fitting_pairs(pairs, trace):
            cut = pair.cut(trace)
            if cut not in known:
                rounded = cases.teacher(cut)
                exact = cases.float64 and cases.float64(cut)
                known[cut] = (exact, rounded.logits) if exact else (rounded, None)
            (expected, logits), received = known[cut], teacher_force(pair.model, cut, pair.rows)
            decoder = decoders.setdefault(pair.decode, StepFigures())
            decoder.add(expected.logits, received.logits, logits)
            encoder = encoders.setdefault(pair.encode, ArrayFigures())
            for tensor, array in received.cross.items():
                if tensor in expected.cross:
                    encoder.add(expected.cross[tensor], array)
        tick()
    encoded = {
        name: {"error": sums.largest, "spread": sums.spread, "relative": sums.relative}
        for name, sums in encoders.items()
        if sums.values
    }
    return {**encoded, **{name: sums.figures() for name, sums in decoders.items()}}
