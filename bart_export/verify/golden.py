"""Golden vectors: what a model answers to a few texts, for every reader of an artifact to repeat.

A model, behind the step function of `runtime.search`, and a tokenizer go in; cases come out: text
to source ids to generated ids to text, for several settings. The exporter asks the Keras model and
each exported file the same questions, compares, and writes `golden.json`; `replay` asks a file
again. Nothing here knows what is behind a step function.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bart_export.config import BartConfig, GenerationConfig
from bart_export.runtime.engine import IntArray
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


@dataclasses.dataclass(frozen=True)
class Answer:
    """The best sequence a model gave: its ids, text and score."""

    token_ids: tuple[int, ...]
    text: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as golden.json holds it."""
        return {
            "token_ids": list(self.token_ids),
            "text": self.text,
            "score": round(self.score, 6),
        }


def settings(
    config: BartConfig, own: Mapping[str, GenerationConfig]
) -> dict[str, GenerationConfig]:
    """Return the settings a model is asked with: greedy, beams, and its own ones made short.

    `own` holds, by name, the preset's defaults as "defaults" and whatever else is to be asked.
    """
    longest = min(LONGEST, config.max_sequence_length)
    ids = {
        name: value
        for name, value in own["defaults"].to_dict().items()
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
        for name, one in own.items()
    }
    return {
        "greedy": GenerationConfig(max_length=longest, **ids),
        "beams": GenerationConfig(
            max_length=longest, num_beams=4, no_repeat_ngram_size=3, early_stopping=True, **ids
        ),
        **short,
    }


def questions(
    tokenizer: BartTokenizer,
    config: BartConfig,
    own: Mapping[str, GenerationConfig],
    encoder_sequence_length: int,
) -> list[Question]:
    """Return every text with every setting; `own` is that of `settings`."""
    asked = settings(config, own)
    return [
        Question(
            text,
            tuple(tokenizer.encode(text, encoder_sequence_length, truncate=True)),
            setting,
            asked[setting],
        )
        for text in TEXTS
        for setting in asked
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


def to_dict(
    asked: Sequence[Question],
    reference: Sequence[Answer],
    files: Mapping[str, Sequence[Answer | None]],
) -> dict[str, Any]:
    """Return the content of golden.json.

    `reference` are the Keras model's answers, `files` those of each exported file by its name, in
    the order of the questions; None where a file was not asked.
    """
    return {
        "cases": [
            {
                "text": question.text,
                "source_token_ids": list(question.source_token_ids),
                "setting": question.setting,
                "generation": question.generation.to_dict(),
                "reference": reference[number].to_dict(),
                "files": {
                    name: answer.to_dict()
                    for name, answers in files.items()
                    if (answer := answers[number]) is not None
                },
            }
            for number, question in enumerate(asked)
        ]
    }


def add_earlier(content: dict[str, Any], earlier: Mapping[str, Any], kept: Sequence[str]) -> None:
    """Add to a golden.json what files that are kept, by their names, answered in an earlier one.

    A question that was asked only then becomes a case again.
    """
    cases: dict[str, list[dict[str, Any]]] = {}
    for case in content["cases"]:
        cases.setdefault(identity(case), []).append(case)
    for case in earlier["cases"]:
        answers = {name: answer for name, answer in case["files"].items() if name in kept}
        if not answers:
            continue
        # Settings of two names may be the same question.
        for known in cases.get(identity(case), ()):
            known["files"] = {**answers, **known["files"]}
        if identity(case) not in cases:
            content["cases"].append({**case, "files": answers})


def identity(case: Mapping[str, Any]) -> str:
    """Return what makes two cases the same question."""
    return json.dumps([case["source_token_ids"], case["generation"]])
