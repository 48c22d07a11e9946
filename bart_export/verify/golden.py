"""Golden answers: what a model generates for a few texts, for every reader to repeat.

An export asks the Keras model and each of its files the same questions, compares the answers, and
writes `golden.json`: text to source ids to generated ids to text, for several settings.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bart_export.artifact.figures import Answer, Golden, GoldenCase
from bart_export.config import GenerationConfig
from bart_export.runtime.engine import Engine, FloatArray, IntArray
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import Hypothesis, run, search
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
NO_SETTINGS: Mapping[str, GenerationConfig] = MappingProxyType({})
TRIES = 8  # searches with perturbed logits; a near tie is missed once in 256 times


@dataclasses.dataclass(frozen=True)
class Question:
    """A source and the settings to generate with."""

    text: str
    source_token_ids: tuple[int, ...]
    setting: str
    generation: GenerationConfig


def greedy(info: ModelInfo, max_length: int) -> GenerationConfig:
    """Return the settings of a greedy search with the special tokens of a model."""
    ids = {
        name: value
        for name, value in info.generation.to_dict().items()
        if name.endswith("_token_id")
    }
    return GenerationConfig(max_length=max_length, **ids)


def settings(
    info: ModelInfo, others: Mapping[str, GenerationConfig] = NO_SETTINGS
) -> dict[str, GenerationConfig]:
    """Return the settings to ask with, by name: greedy, beams, the model's own and `others`.

    All are shortened, because the Keras model answers slowly.
    """
    short_greedy = greedy(info, min(LONGEST, info.config.max_sequence_length))
    short = {
        name: dataclasses.replace(
            given,
            max_length=min(given.max_length, short_greedy.max_length),
            min_length=min(given.min_length, SHORTEST),
            do_sample=False,
            num_return_sequences=1,
        )
        for name, given in {"defaults": info.generation, **others}.items()
    }
    beams = short_greedy.replace(num_beams=4, no_repeat_ngram_size=3, early_stopping=True)
    return {"greedy": short_greedy, "beams": beams, **short}


def questions(
    info: ModelInfo, others: Mapping[str, GenerationConfig] = NO_SETTINGS
) -> list[Question]:
    """Return every text with every setting; `others` are those of `settings`."""
    return [
        Question(text, info.encode(text), setting, asked)
        for text in TEXTS
        for setting, asked in settings(info, others).items()
    ]


def ask(model: Engine, tokenizer: BartTokenizer, question: Question) -> Answer:
    """Return a model's answer to a question."""
    generation = question.generation
    state = model.start(question.source_token_ids, generation.num_beams, generation.max_length)
    best: Hypothesis = run(search(generation), model.step, state)[0]
    return Answer(best.token_ids, tokenizer.detokenize(best.token_ids), best.score)


def repeats(
    model: Engine,
    tokenizer: BartTokenizer,
    question: Question,
    answer: Answer,
    wanted: Sequence[int],
    noise: float,
) -> bool:
    """Return whether a model's answer has the wanted tokens, or has them with perturbed logits.

    Where two hypotheses are nearer than rounding, one of a few searches with logits perturbed by up
    to `noise` decides for the other.
    """
    if list(answer.token_ids) == list(wanted):
        return True
    perturbed = (PerturbedModel(model, noise, seed) for seed in range(TRIES if noise else 0))
    answers = (ask(other, tokenizer, question).token_ids for other in perturbed)
    return any(list(token_ids) == list(wanted) for token_ids in answers)


class PerturbedModel:
    """A model whose logits get uniform noise of up to `noise`."""

    def __init__(self, model: Engine, noise: float, seed: int) -> None:
        self.model, self.noise = model, noise
        self.config, self.start = model.config, model.start
        self.random = np.random.default_rng(seed)

    def step(self, state: Any, token_ids: IntArray, beam_index: IntArray) -> tuple[FloatArray, Any]:
        """Decode one token of every beam; see `Engine.step`."""
        logits, state = self.model.step(state, token_ids, beam_index)
        noise = self.random.uniform(-self.noise, self.noise, logits.shape)
        return logits + noise.astype(np.float32), state


def recorded(
    asked: Sequence[Question],
    reference: Sequence[Answer],
    files: Mapping[str, Sequence[Answer | None]],
    earlier: Golden,
    kept: Collection[str],
) -> Golden:
    """Return the content of golden.json.

    A question that was only asked by an earlier export becomes a case again.

    Args:
        asked: the questions.
        reference: the Keras model's answers to them.
        files: those of each exported file by its name; None where a file was not asked.
        earlier: the golden.json of the artifact that is added to.
        kept: the files of that artifact whose answers are carried over.
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
