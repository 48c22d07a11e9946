"""The gate: what a `.tflite` file must pass before it is committed.

A file, the float file that it was made of, the checkpoint's matrices and what the float model
answered go in; a row of figures comes out, or the error that keeps the file from being committed.
The float file is held to the Keras model first, whether or not anyone asked for it: what is wrong
with a graph shows there, where no rounding hides it. What makes files is not known here.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact.figures import Answer, FileVerification, TextFile
from bart_export.config import BartConfig, GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.recipes.table import Recipe
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import FileEngine
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import data, golden, structure, verify, weights
from bart_export.verify.data import Example
from bart_export.verify.golden import Question
from bart_export.verify.tolerance import check_measurable, judge, uncommitted
from bart_export.verify.traces import Model, Teacher, Trace
from bart_export.verify.verify import Reference, Tick

# How far a file is from the float model, and its answers to the questions.
Verified = tuple[FileVerification, Sequence[Answer | None]]


@dataclasses.dataclass(frozen=True)
class File:
    """A `.tflite` file: what errors call it, where it is, its recipe and shapes, how to run it.

    `shapes` are None for a dynamic build.
    """

    name: str
    path: pathlib.Path
    recipe: Recipe
    shapes: StaticShapes | None
    open: Callable[[], AbstractContextManager[Model]]

    @classmethod
    def of_draft(
        cls,
        name: str,
        path: pathlib.Path,
        recipe: Recipe,
        config: BartConfig,
        shapes: StaticShapes | None,
    ) -> "File":
        """Return a file that is in no artifact yet, to be run on LiteRT."""
        return cls(name, path, recipe, shapes, lambda: opened(path, config, shapes))


@contextlib.contextmanager
def opened(
    path: pathlib.Path, config: BartConfig, shapes: StaticShapes | None
) -> Iterator[FileEngine]:
    """Open a file on LiteRT; what is kept on disk meanwhile lies beside it."""
    if shapes is None:
        yield open_compiled_model(path, config)
        return
    buckets = contract.static_buckets(config, **dataclasses.asdict(shapes))
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        # Signatures share their weights in the cache.
        yield open_compiled_model(path, config, buckets, weight_cache=f"{scratch}/weights")


class Gate:
    """Holds the files of one build of a model to it.

    Args:
        info: about the model.
        base: the float file that the others are made of, with the bounds that it is held to.
        read: the checkpoint's matrices, by layer name.
        texts: a file of texts to measure on, None for the golden ones.

    Raises:
        InputError: for texts that cannot be read.
    """

    def __init__(
        self, info: ModelInfo, base: File, read: weights.Read, texts: pathlib.Path | None = None
    ) -> None:
        self.info = info
        self.base = base
        self.read = read
        self.examples = data.read(texts) if texts else []
        self.source = TextFile(data.digest(texts), len(self.examples)) if texts else None
        self.held = False
        self.answered: Reference | None = None

    def check(self, file: File, asked: Reference) -> Verified:
        """Measure a file and hold it to the tolerance of its recipe.

        With a file of texts the figures are those of the texts; a file that is to say exactly what
        the model says must answer the golden questions all the same.

        Args:
            file: what to check; it may be the base.
            asked: the Keras model's answers to the golden questions.

        Returns:
            The figures, and the answers to the golden questions.

        Raises:
            ConfigurationError: for a bound on ROUGE without references.
            VerificationFailed: for what is outside the tolerance, in this file or its base.
        """
        references = any(one.reference is not None for one in self.examples)
        check_measurable(file.recipe.tolerance, references)
        with uncommitted():
            if file.path != self.base.path:
                self.hold_base(asked)
            worst = inspect(file, self.info.config, self.read, self.base.path)
            with file.open() as model:
                comparison, answers = self.compare(file, model, asked)
                if self.examples:
                    if file.recipe.exact:
                        judge(file.name, file.recipe, comparison)
                    texts, cost = self.texts(asked.model), comparison.float32
                    rounding = comparison.rounding
                    comparison, _ = self.compare(file, model, texts, cost)
                    comparison = dataclasses.replace(comparison, rounding=rounding)
            comparison = dataclasses.replace(comparison, **worst, data=self.source)
            judge(file.name, file.recipe, comparison)
        self.held |= file.path == self.base.path
        return comparison, answers

    def compare(
        self, file: File, model: Model, reference: Reference, float32: float | None = None
    ) -> Verified:
        """Compare an open file with some answers; `float32` is that of `verify.compare`."""
        tokenizer = self.info.tokenizer
        return verify.compare(file.name, file.recipe, model, tokenizer, reference, float32=float32)

    def hold_base(self, asked: Reference) -> None:
        """Hold the base to the Keras model, once.

        Raises:
            VerificationFailed: if it does not say exactly what the model says.
        """
        if self.held:
            return
        worst = inspect(self.base, self.info.config, self.read, self.base.path)
        with self.base.open() as model:
            comparison, _ = self.compare(self.base, model, asked)
        judge(self.base.name, self.base.recipe, dataclasses.replace(comparison, **worst))
        self.held = True

    def texts(self, teacher: Teacher) -> Reference:
        """Return what the model says to the texts, computed once."""
        if self.answered is None:
            with self.base.open() as model:
                self.answered = answer_texts(
                    self.info, self.base.shapes, self.examples, model, teacher
                )
        return self.answered


def inspect(
    file: File, config: BartConfig, read: weights.Read, base: pathlib.Path | None
) -> dict[str, Any]:
    """Look at what a file stores; return `weights` and `worst_row` of a `FileVerification`.

    `base` is the float file of the same build, None where there is none to compare with.

    Raises:
        VerificationFailed: for a graph that is not the base's.
    """
    if base is not None and base != file.path:
        structure.check(file.name, file.path, base)
    errors = weights.compare(file.path, config, file.recipe, read)
    layer = max(errors, key=lambda one: np.nan_to_num(errors[one].error, nan=np.inf))
    worst = errors[layer]
    row = None if worst.error == 0 else f"{layer}, row {worst.row}"
    return {"weights": worst.error, "worst_row": row}


def answer_texts(
    info: ModelInfo,
    shapes: StaticShapes | None,
    examples: Sequence[Example],
    model: Model,
    teacher: Teacher,
    tick: Tick = lambda: None,
) -> Reference:
    """Ask a float file about some texts, with the model's own settings and greedily.

    The file has been held to the Keras model, or is the best there is to compare with; `teacher`
    then computes the logits along its greedy traces. Texts and settings are cut to what a static
    build has room for.
    """
    settings = fitted(info.generation, shapes)
    greedy = golden.settings(info)["greedy"]
    greedy = greedy.replace(max_length=settings.max_length)
    longest = info.encoder_sequence_length
    if shapes is not None:
        longest = min(longest, max(shapes.source_lengths))
    questions, answers, traces = [], [], []
    for example in examples:
        ids = tuple(info.tokenizer.encode(example.text, longest, truncate=True))
        question = Question(example.text, ids, "defaults", settings)
        once = dataclasses.replace(question, setting="greedy", generation=greedy)
        questions.append(question)
        answers.append(golden.ask(model.start, model.step, info.tokenizer, question))
        along = golden.ask(model.start, model.step, info.tokenizer, once)
        traces.append(Trace(ids, along.token_ids[:-1]))
        tick()
    wanted = [example.reference for example in examples]
    return Reference(questions, answers, traces, teacher, wanted)


def fitted(generation: GenerationConfig, shapes: StaticShapes | None) -> GenerationConfig:
    """Return settings that a static build has room for, without chance."""
    settings = generation.replace(do_sample=False, num_return_sequences=1)
    if shapes is None:
        return settings
    longest = min(settings.max_length, shapes.target_length)
    return settings.replace(
        max_length=longest,
        min_length=min(settings.min_length, longest),
        num_beams=min(settings.num_beams, max(shapes.num_beams)),
    )
