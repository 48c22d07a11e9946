"""Verification: an exported file and the model it was made of are asked the same and compared.

Logits are compared along the float model's own greedy traces, through every signature of the file;
answers token for token, and where references are given by ROUGE. What comes out is a row of figures
for the manifest. Models are step functions here; what runs them is not known.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bart_export.artifact.figures import Answer, FileVerification, RougeLoss
from bart_export.errors import EngineError, InputError, VerificationFailed
from bart_export.recipes.table import ROUNDING, Recipe
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import rouge
from bart_export.verify.evaluation import ArrayFigures, FloatArray, StepFigures, worst
from bart_export.verify.golden import Question, ask, ask_again
from bart_export.verify.tolerance import judge, uncommitted
from bart_export.verify.traces import Model, Seen, Teacher, Trace, follow, taken, ways

FEW = 8  # traces through every bucket of a static build; a long one's encoder may take seconds
Tick = Callable[[], None]  # called for every trace and every question


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the float model answered, and its greedy traces; `model` computes along them.

    `wanted` are the texts that people gave for the questions, None where there is none. `truth`
    is the model in float64, None where it is not asked.
    """

    questions: Sequence[Question]
    answers: Sequence[Answer]
    traces: Sequence[Trace]
    model: Teacher
    wanted: Sequence[str | None] = ()
    truth: Teacher | None = None


def consult(
    model: Any,
    tokenizer: BartTokenizer,
    questions: list[Question],
    truth: Teacher | None = None,
) -> Reference:
    """Ask the reference, a model and a teacher, everything that files will be compared with.

    `truth` is the same model in float64.
    """
    answers = [ask(model.start, model.step, tokenizer, question) for question in questions]
    traces = [
        Trace(question.source_token_ids, answer.token_ids[:-1])
        for question, answer in zip(questions, answers, strict=True)
        if question.setting == "greedy"
    ]
    return Reference(questions, answers, traces, model, truth=truth)


def check(
    name: str, recipe: Recipe, model: Model, tokenizer: BartTokenizer, reference: Reference
) -> tuple[FileVerification, list[Answer | None]]:
    """Compare a file, by its name, with the reference and hold it to the tolerance of its recipe.

    Raises:
        VerificationFailed: for a file outside the tolerance, or one that gives no numbers at all.
    """
    with uncommitted():
        comparison, answers = compare(name, recipe, model, tokenizer, reference)
        judge(name, recipe, comparison)
    return comparison, answers


def compare(
    name: str,
    recipe: Recipe,
    model: Model,
    tokenizer: BartTokenizer,
    reference: Reference,
    tick: Tick = lambda: None,
    float32: float | None = None,
) -> tuple[FileVerification, list[Answer | None]]:
    """Ask a file what the reference was asked; return the differences and the file's answers.

    A question that does not fit a static build has no answer.

    Args:
        name: what errors call the file.
        recipe: how it is stored.
        model: the file, to be run.
        tokenizer: the model's.
        reference: what was asked, and what the float model said.
        tick: called for every trace and every question.
        float32: what float32 cost the Keras model's logits elsewhere, where `reference` has no
            `truth` to find it out.

    Raises:
        VerificationFailed: for a file that gives no numbers at all.
    """
    try:
        signatures = compare_steps(model, reference, tick)
        steps = [figures for figures in signatures.values() if "top1" in figures]
        if reference.truth is not None:
            float32 = worst(one["float32"] for one in steps)
        answers = [answer_of(model, tokenizer, one, tick) for one in reference.questions]
        noise = ROUNDING * (float32 or 0) if recipe.exact else 0.0
        same = [
            answer.token_ids == wanted.token_ids
            or bool(noise)
            and ask_again(model.start, model.step, tokenizer, question, wanted.token_ids, noise)
            for question, answer, wanted in zip(
                reference.questions, answers, reference.answers, strict=True
            )
            if answer is not None
        ]
    except EngineError as error:
        raise VerificationFailed(f"{name} cannot answer: {error}") from error
    losses = compare_texts(reference, answers)
    comparison = FileVerification(
        name,
        logits=worst(one["logits"] for one in steps),
        spread=worst(one["spread"] for one in steps),
        relative=worst(one["relative"] for one in steps),
        kl=worst(one["kl"] for one in steps),
        top1=min(one["top1"] for one in steps),
        tokens=sum(same) / len(same) if same else None,
        steps=int(max(one["steps"] for one in steps)),
        questions=len(same),
        signatures=signatures,
        rounding=worst(one["rounding"] for one in steps) if reference.truth else None,
        float32=float32,
    )
    if losses:
        comparison = dataclasses.replace(
            comparison,
            rouge=losses,
            rouge_1=losses["rouge_1"].loss,
            rouge_2=losses["rouge_2"].loss,
            rouge_l=losses["rouge_l"].loss,
        )
    return comparison, answers


def compare_steps(model: Model, reference: Reference, tick: Tick) -> dict[str, Mapping[str, float]]:
    """Return the figures of every signature along the reference's traces, trace by trace.

    What a runtime would not take a trace through is taken through by the first `FEW` alone.
    """
    encoders: dict[str, ArrayFigures] = {}
    decoders: dict[str, StepFigures] = {}
    through = list(ways(model))
    truth = reference.truth or reference.model
    for number, trace in enumerate(reference.traces):
        # Of this trace, cut to the room of each way: the truth, and what float32 makes of it.
        known: dict[Trace, tuple[Seen, FloatArray | None]] = {}
        for way in through if number < FEW else taken(through, trace):
            fitted = way.fitted(trace)
            if fitted not in known:
                rounded = reference.model.along(fitted).logits if reference.truth else None
                known[fitted] = truth.along(fitted), rounded
            (expected, rounded), received = known[fitted], follow(way.model, fitted, way.rows)
            figures = decoders.setdefault(way.decode, StepFigures())
            figures.add(expected.logits, received.logits, rounded)
            encoder = encoders.setdefault(way.encode, ArrayFigures())
            for tensor, array in received.cross.items():
                encoder.add(expected.cross[tensor], array)
        tick()
    encoded = {
        name: {"error": one.largest, "spread": one.spread, "relative": one.relative}
        for name, one in encoders.items()
        if one.values
    }
    return {**encoded, **{name: one.figures() for name, one in decoders.items()}}


def answer_of(
    model: Model, tokenizer: BartTokenizer, question: Question, tick: Tick
) -> Answer | None:
    """Return a file's answer to a question, None for one that a static build has no room for."""
    tick()
    try:
        return ask(model.start, model.step, tokenizer, question)
    except InputError:
        return None


def compare_texts(reference: Reference, answers: Sequence[Answer | None]) -> dict[str, RougeLoss]:
    """Return what a file's answers lose in ROUGE where somebody said what was wanted."""
    rows = [
        (wanted, expected.text.strip(), answer.text.strip())
        for wanted, expected, answer in zip(
            reference.wanted, reference.answers, answers, strict=False
        )
        if wanted is not None and answer is not None
    ]
    return rouge.compare(*map(list, zip(*rows, strict=True))) if rows else {}
