"""Examination: a model's greedy traces over many texts, and files that are run along them.

A float file and texts go in; of every other file come out its size, its hash and its figures. The
float file's logits wait on disk, so that any number of texts over any vocabulary can be asked of
one file after the other. What a figure should be is not known here.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from bart_export.artifact.artifact import sha256
from bart_export.artifact.figures import Answer
from bart_export.config import GenerationConfig
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import FileEngine
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import rouge
from bart_export.verify.data import Example
from bart_export.verify.evaluation import StepFigures
from bart_export.verify.golden import Question, ask
from bart_export.verify.traces import Trace, follow


@dataclasses.dataclass(frozen=True)
class Measured:
    """A file's size in bytes, its hash, and its figures by the names of `metrics.METRICS`."""

    size: int
    sha256: str
    steps: int
    figures: Mapping[str, float]


class Examination:
    """The texts, the float file's answers to them, and its logits along the traces.

    Args:
        float_file: the file that others are compared with; arrays are kept beside it.
        info: what the files are made of; answers are greedy.
        examples: the texts.
        generate: whether files are to answer as well, for `tokens` and ROUGE: that takes as long
            again.
    """

    def __init__(
        self,
        float_file: pathlib.Path,
        info: ModelInfo,
        examples: Sequence[Example],
        *,
        generate: bool,
    ) -> None:
        self.config, self.tokenizer = info.config, info.tokenizer
        self.examples, self.generate = examples, generate
        self.directory = float_file.parent
        settings = greedy(info)
        self.questions = [
            Question(example.text, info.encode(example.text), "greedy", settings)
            for example in examples
        ]
        engine = open_compiled_model(float_file, info.config)
        self.answers: list[Answer] = []
        self.traces: list[Trace] = []
        for number, question in enumerate(self.questions):
            answer = ask(engine.start, engine.step, self.tokenizer, question)
            trace = Trace(question.source_token_ids, answer.token_ids[:-1])
            np.save(self.logits_file(number), follow(engine, trace).logits)
            self.answers.append(answer)
            self.traces.append(trace)

    def logits_file(self, number: int) -> pathlib.Path:
        """Return where the float file's logits of a text are, float32 (steps, vocabulary)."""
        return self.directory / f"logits_{number}.npy"

    def measure(self, path: pathlib.Path) -> Measured:
        """Run a file along the traces, and let it answer where that was asked for."""
        engine = open_compiled_model(path, self.config)
        steps = StepFigures()
        for number, trace in enumerate(self.traces):
            steps.add(np.load(self.logits_file(number)), follow(engine, trace).logits)
        figures = {name: float(value) for name, value in steps.figures().items()}
        del figures["spread"]
        count = int(figures.pop("steps"))
        if self.generate:
            figures |= self.compare_answers(engine)
        return Measured(path.stat().st_size, sha256(path), count, figures)

    def compare_answers(self, engine: FileEngine) -> dict[str, float]:
        """Return the share of equal answers, and where references are given the loss in ROUGE."""
        answers = [
            ask(engine.start, engine.step, self.tokenizer, question) for question in self.questions
        ]
        same = [
            answer.token_ids == wanted.token_ids
            for answer, wanted in zip(answers, self.answers, strict=True)
        ]
        rows = [
            (example.reference, wanted.text, answer.text)
            for example, wanted, answer in zip(self.examples, self.answers, answers, strict=True)
            if example.reference is not None
        ]
        losses = rouge.compare(*map(list, zip(*rows, strict=True))) if rows else {}
        return {
            "tokens": sum(same) / len(same),
            **{kind: loss.loss for kind, loss in losses.items()},
        }


def greedy(info: ModelInfo) -> GenerationConfig:
    """Return a greedy search with the special tokens and the length of a model's settings."""
    ids = {
        name: value
        for name, value in info.generation.to_dict().items()
        if name.endswith("_token_id")
    }
    return GenerationConfig(
        max_length=min(info.generation.max_length, info.config.max_sequence_length), **ids
    )
