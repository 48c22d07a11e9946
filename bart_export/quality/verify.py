"""Verification: an exported file and the model it was made of are asked the same and compared.

Logits are compared along the reference's own greedy traces, tokens over all questions of
`quality.golden`. What comes out is a row of figures for the manifest; a file outside the tolerance
of its recipe is an error that says by how much. Models are step functions here; what runs them is
not known.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bart_export.errors import EngineError, VerificationFailed
from bart_export.metrics import AT_MOST, METRICS
from bart_export.quality.golden import Answer, Question, ask
from bart_export.recipes import Recipe
from bart_export.text.tokenizer import BartTokenizer

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

ROWS = (1, 2)  # one beam and several are stepped by different signatures
TINY = 1e-30  # stands for the spread of logits that are all equal


class Model(Protocol):
    """What can be asked: an engine, or the Keras reference."""

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Any:
        """Encode a source."""

    def step(self, state: Any, token_ids: IntArray, beam_index: IntArray) -> tuple[FloatArray, Any]:
        """Decode one token of every row."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """The tokens a greedy decoder was fed and the logits it gave, float32 (length, vocabulary)."""

    source_token_ids: tuple[int, ...]
    fed_token_ids: tuple[int, ...]
    logits: FloatArray


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the Keras model answered: to every question, and step by step where greedy."""

    questions: list[Question]
    answers: list[Answer]
    traces: list[Trace]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a file is from the reference.

    `logits` is the largest absolute error of a logit; `spread` the root mean square of the
    reference's logits about each step's mean; `relative` that of all errors, over `spread`; `top1`
    the share of steps with the same likeliest token; `tokens` the share of questions answered token
    for token. `steps` and `questions` say over how many. The steps are taken twice, as a single
    beam and as one of two, and the figures are those of the worse.
    """

    logits: float
    spread: float
    relative: float
    top1: float
    tokens: float
    steps: int
    questions: int


def consult(model: Model, tokenizer: BartTokenizer, questions: list[Question]) -> Reference:
    """Ask the reference everything that files will be compared with."""
    answers = [ask(model.start, model.step, tokenizer, question) for question in questions]
    traces = [
        trace(model, question.source_token_ids, answer.token_ids[:-1])
        for question, answer in zip(questions, answers, strict=True)
        if question.setting == "greedy"
    ]
    return Reference(questions, answers, traces)


def trace(model: Model, source: Sequence[int], fed: Sequence[int], rows: int = 1) -> Trace:
    """Feed tokens to a model one by one and keep the logits.

    Of several rows one is fed the tokens and the others the first of them over and over; every
    step moves the row to the place of another, so that caches must follow.
    """
    state = model.start(source, rows, len(fed) + 1)
    beam_index = np.arange(-1, rows - 1, dtype=np.int32) % rows
    kept = []
    for position, token_id in enumerate(fed):
        place = position % rows
        token_ids = np.full(rows, fed[0], np.int32)
        token_ids[place] = token_id
        logits, state = model.step(state, token_ids, beam_index)
        kept.append(logits[place].copy())
    return Trace(tuple(source), tuple(fed), np.stack(kept))


def check(
    name: str, recipe: Recipe, model: Model, tokenizer: BartTokenizer, reference: Reference
) -> tuple[Comparison, list[Answer]]:
    """Compare a file with the reference and hold it to the tolerance of its recipe.

    Raises:
        VerificationFailed: for a file outside the tolerance, or one that gives no numbers at all.
    """
    try:
        comparison, answers = compare(model, tokenizer, reference)
    except EngineError as error:
        raise VerificationFailed(f"{name} cannot answer: {error} Nothing was committed.") from error
    judge(name, recipe, comparison)
    return comparison, answers


def compare(
    model: Model, tokenizer: BartTokenizer, reference: Reference
) -> tuple[Comparison, list[Answer]]:
    """Ask a file what the reference was asked; return the differences and the file's answers."""
    expected = np.concatenate([one.logits for one in reference.traces])
    received = [
        np.concatenate(
            [
                trace(model, one.source_token_ids, one.fed_token_ids, rows).logits
                for one in reference.traces
            ]
        )
        for rows in ROWS
    ]
    errors = [logits - expected for logits in received]
    about_mean = expected - expected.mean(axis=-1, keepdims=True)
    spread = float(np.sqrt(np.square(about_mean).mean()))
    answers = [ask(model.start, model.step, tokenizer, one) for one in reference.questions]
    same = [
        answer.token_ids == wanted.token_ids
        for answer, wanted in zip(answers, reference.answers, strict=True)
    ]
    comparison = Comparison(
        logits=worst(float(np.abs(error).max()) for error in errors),
        spread=spread,
        relative=worst(float(np.sqrt(np.square(error).mean())) for error in errors)
        / max(spread, TINY),
        top1=min(float((logits.argmax(-1) == expected.argmax(-1)).mean()) for logits in received),
        tokens=sum(same) / len(same),
        steps=len(expected),
        questions=len(same),
    )
    return comparison, answers


def worst(errors: Iterable[float]) -> float:
    """Return the largest of some errors, NaN if one of them is."""
    return float(np.max(list(errors)))


def judge(name: str, recipe: Recipe, comparison: Comparison) -> None:
    """Hold a comparison to the recipe's tolerance.

    Raises:
        VerificationFailed: for the first figure outside, with the figure.
    """
    figures = dataclasses.asdict(comparison)
    bounds = dict(recipe.tolerance)
    if "logits" in bounds:
        bounds["logits"] *= max(1.0, comparison.spread)
    hold(
        name,
        [
            (METRICS[metric].description, figures[metric], bound, METRICS[metric].side)
            for metric, bound in bounds.items()
        ],
    )


Bound = tuple[str, float, float | None, int]  # what, its value, the bound or None, which side


def hold(name: str, bounds: Sequence[Bound]) -> None:
    """Hold figures of something exported to their bounds.

    Raises:
        VerificationFailed: for the first figure outside, with the figure.
    """
    for what, value, bound, sign in bounds:
        # Written so that a NaN fails.
        if bound is not None and not sign * value <= sign * bound:
            side = "at most" if sign == AT_MOST else "at least"
            raise VerificationFailed(
                f"{name} does not say what the Keras model says: {what} must be {side} {bound:g}, "
                f"received {value:.6g}. Nothing was committed."
            )
