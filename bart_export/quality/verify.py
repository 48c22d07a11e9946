"""Verification: an exported file and the model it was made of are asked the same and compared.

Logits are compared along the float model's own greedy traces, through every signature of the file;
answers token for token, and where references are given by ROUGE. What comes out is a row of figures
for the manifest. Models are step functions here; what runs them is not known.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bart_export.errors import EngineError, InputError, VerificationFailed
from bart_export.quality import rouge
from bart_export.quality.evaluation import ArrayFigures, StepFigures, worst
from bart_export.quality.figures import Comparison
from bart_export.quality.golden import Answer, Question, ask
from bart_export.quality.rouge import Loss
from bart_export.quality.tolerance import judge, uncommitted
from bart_export.quality.traces import Model, Seen, Teacher, Trace, follow, taken, ways
from bart_export.recipes import Recipe
from bart_export.text.tokenizer import BartTokenizer

FEW = 8  # traces through every bucket of a static build; a long one's encoder may take seconds
Tick = Callable[[], None]  # called for every trace and every question


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the float model answered, and its greedy traces; `model` computes along them.

    `wanted` are the texts that people gave for the questions, None where there is none.
    """

    questions: Sequence[Question]
    answers: Sequence[Answer]
    traces: Sequence[Trace]
    model: Teacher
    wanted: Sequence[str | None] = ()


def consult(model: Any, tokenizer: BartTokenizer, questions: list[Question]) -> Reference:
    """Ask the reference, a model and a teacher, everything that files will be compared with."""
    answers = [ask(model.start, model.step, tokenizer, question) for question in questions]
    traces = [
        Trace(question.source_token_ids, answer.token_ids[:-1])
        for question, answer in zip(questions, answers, strict=True)
        if question.setting == "greedy"
    ]
    return Reference(questions, answers, traces, model)


def check(
    name: str, recipe: Recipe, model: Model, tokenizer: BartTokenizer, reference: Reference
) -> tuple[Comparison, list[Answer | None]]:
    """Compare a file, by its name, with the reference and hold it to the tolerance of its recipe.

    Raises:
        VerificationFailed: for a file outside the tolerance, or one that gives no numbers at all.
    """
    with uncommitted():
        comparison, answers = compare(name, model, tokenizer, reference)
        judge(name, recipe, comparison)
    return comparison, answers


def compare(
    name: str,
    model: Model,
    tokenizer: BartTokenizer,
    reference: Reference,
    tick: Tick = lambda: None,
) -> tuple[Comparison, list[Answer | None]]:
    """Ask a file what the reference was asked; return the differences and the file's answers.

    A question that does not fit a static build has no answer.

    Raises:
        VerificationFailed: for a file that gives no numbers at all; `name` is what it calls it.
    """
    try:
        signatures = compare_steps(model, reference, tick)
        answers = [answer_of(model, tokenizer, one, tick) for one in reference.questions]
    except EngineError as error:
        raise VerificationFailed(f"{name} cannot answer: {error}") from error
    steps = [figures for figures in signatures.values() if "top1" in figures]
    same = [
        answer.token_ids == wanted.token_ids
        for answer, wanted in zip(answers, reference.answers, strict=True)
        if answer is not None
    ]
    losses = compare_texts(reference, answers)
    comparison = Comparison(
        logits=worst(one["logits"] for one in steps),
        spread=worst(one["spread"] for one in steps),
        relative=worst(one["relative"] for one in steps),
        kl=worst(one["kl"] for one in steps),
        top1=min(one["top1"] for one in steps),
        tokens=sum(same) / len(same) if same else None,
        steps=int(max(one["steps"] for one in steps)),
        questions=len(same),
        signatures=signatures,
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
    for number, trace in enumerate(reference.traces):
        known: dict[Trace, Seen] = {}  # of this trace, cut to the room of each way
        for way in through if number < FEW else taken(through, trace):
            fitted = way.fitted(trace)
            if fitted not in known:
                known[fitted] = reference.model.along(fitted)
            expected, received = known[fitted], follow(way.model, fitted, way.rows)
            decoders.setdefault(way.decode, StepFigures()).add(expected.logits, received.logits)
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


def compare_texts(reference: Reference, answers: Sequence[Answer | None]) -> dict[str, Loss]:
    """Return what a file's answers lose in ROUGE where somebody said what was wanted."""
    rows = [
        (wanted, expected.text.strip(), answer.text.strip())
        for wanted, expected, answer in zip(
            reference.wanted, reference.answers, answers, strict=False
        )
        if wanted is not None and answer is not None
    ]
    return rouge.compare(*map(list, zip(*rows, strict=True))) if rows else {}
