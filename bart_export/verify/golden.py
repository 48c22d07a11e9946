"""Golden vectors: what a model answers to a few texts, for every reader of an artifact to repeat.

A model, behind the step function of `runtime.search`, and a tokenizer go in; cases come out: text
to source ids to generated ids to text, for several settings. The exporter asks the Keras model and
each exported file the same questions, compares, and writes `golden.json`; `replay` asks a file
again. Nothing here knows what is behind a step function.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bart_export.artifact.figures import Answer, Golden, GoldenCase
from bart_export.config import GenerationConfig
from bart_export.runtime.engine import IntArray
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import Hypothesis, Step, run, search
from bart_export.text.tokenizer import BartTokenizer

# Prose of several kinds, and characters of two to four bytes.
TEXTS = (
    "The river rose two metres overnight, and by morning the lower bridge was closed. Farmers "
    "moved their cattle to the hills while the council counted sandbags and waited for rain.",
    "A library for reading and writing compressed archives. It streams, so that files larger than "
    "memory can be handled, checks every entry, and never writes outside the target directory.",
    "Überraschung in Kraków: the café's naïve façade hid a 文字 archive from 1987 — and a 🐈, "
    "who wasn't amused.",
)
LONGEST = 24  # decoder tokens of a case: the Keras model answers without a cache
SHORTEST = 8  # highest min_length of a case
NOTHING: Mapping[str, GenerationConfig] = MappingProxyType({})
TRIES = 8  # of a search whose logits are moved; a near tie is missed once in 256 times

# (state for a source of these ids, rows and max_length) of a model
Start = Callable[[Sequence[int], int, int], Any]


@dataclasses.dataclass(frozen=True)
class Question:
    """A source and the settings to generate with."""

    text: str
    source_token_ids: tuple[int, ...]
    setting: str
    generation: GenerationConfig


def settings(
    info: ModelInfo, others: Mapping[str, GenerationConfig] = NOTHING
) -> dict[str, GenerationConfig]:
    """Return the settings a model is asked with: greedy, beams, and its own ones made short.

    `others` are asked as well, by name.
    """
    longest = min(LONGEST, info.config.max_sequence_length)
    ids = {
        name: value
        for name, value in info.generation.to_dict().items()
        if name.endswith("_token_id")
    }
    short = {
        name: dataclasses.replace(
            one,
            max_length=min(one.max_length, longest),
            min_length=min(one.min_length, SHORTEST),
            do_sample=False,
            num_return_sequences=1,
        )
        for name, one in {"defaults": info.generation, **others}.items()
    }
    return {
        "greedy": GenerationConfig(max_length=longest, **ids),
        "beams": GenerationConfig(
            max_length=longest, num_beams=4, no_repeat_ngram_size=3, early_stopping=True, **ids
        ),
        **short,
    }


def questions(info: ModelInfo, others: Mapping[str, GenerationConfig] = NOTHING) -> list[Question]:
    """Return every text with every setting; `others` are those of `settings`."""
    return [
        Question(text, info.encode(text), setting, asked)
        for text in TEXTS
        for setting, asked in settings(info, others).items()
    ]


def ask(start: Start, step: Step[Any], tokenizer: BartTokenizer, question: Question) -> Answer:
    """Return a model's answer to a question."""
    generation = question.generation
    state = start(question.source_token_ids, generation.num_beams, generation.max_length)
    best: Hypothesis = run(search(generation), step, state)[0]
    return Answer(best.token_ids, tokenizer.detokenize(best.token_ids), best.score)


def ask_again(
    start: Start,
    step: Step[Any],
    tokenizer: BartTokenizer,
    question: Question,
    wanted: Sequence[int],
    noise: float,
) -> bool:
    """Return whether a model gives the wanted tokens once its logits move by up to `noise`.

    Where two hypotheses are nearer than rounding, some of a few searches decide for either.
    """
    steps = (moved(step, noise, seed) for seed in range(TRIES))
    answers = (ask(start, one, tokenizer, question).token_ids for one in steps)
    return any(list(answer) == list(wanted) for answer in answers)


def moved(step: Step[Any], noise: float, seed: int) -> Step[Any]:
    """Return a step whose logits are moved by up to `noise`, by chance."""
    random = np.random.default_rng(seed)

    def moved_step(state: Any, token_ids: IntArray, beam_index: IntArray) -> Any:
        logits, state = step(state, token_ids, beam_index)
        return logits + random.uniform(-noise, noise, logits.shape).astype(np.float32), state

    return moved_step


def recorded(
    asked: Sequence[Question],
    reference: Sequence[Answer],
    files: Mapping[str, Sequence[Answer | None]],
    earlier: Golden,
    kept: Collection[str],
) -> Golden:
    """Return the content of golden.json.

    A question that was asked only earlier becomes a case again.

    Args:
        asked: the questions.
        reference: the Keras model's answers to them.
        files: those of each exported file by its name; None where a file was not asked.
        earlier: a golden.json, of which answers go on,
        kept: of these files.
    """
    cases = [
        GoldenCase(
            question.text,
            question.source_token_ids,
            question.setting,
            question.generation,
            rounded(reference[number]),
            {
                name: rounded(answer)
                for name, answers in files.items()
                if (answer := answers[number]) is not None
            },
        )
        for number, question in enumerate(asked)
    ]
    new = len(cases)
    for case in earlier.cases:
        answers = {name: answer for name, answer in case.files.items() if name in kept}
        if not answers:
            continue
        # Settings of two names may be the same question.
        same = [number for number in range(new) if is_same(cases[number], case)]
        for number in same:
            known = cases[number]
            cases[number] = dataclasses.replace(known, files={**answers, **known.files})
        if not same:
            cases.append(dataclasses.replace(case, files=answers))
    return Golden(tuple(cases))


def rounded(answer: Answer) -> Answer:
    """Return an answer as golden.json holds it."""
    return dataclasses.replace(answer, score=round(answer.score, 6))


def is_same(case: GoldenCase, other: GoldenCase) -> bool:
    """Return whether two cases are the same question."""
    return (case.source_token_ids, case.generation) == (other.source_token_ids, other.generation)
