"""Searches, drafts and samples without an exported model, for `android_fixtures.py`."""

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bart_export.config import GenerationConfig
from bart_export.errors import BartExportError
from bart_export.runtime.drafts import PromptLookup
from bart_export.runtime.logits import sampled_choice
from bart_export.runtime.search import Finished, Settled, drive, search

# Searches with a model that both languages compute exactly.

SEARCHES = 180
# Adding a constant to all logits must not change a beam search. Rows that do change depend on the
# last bits of an exponential, which languages compute differently.
MOVED = (97.0, -61.0, 211.0)


def logits_after(sequence: tuple[int, ...], vocabulary_size: int) -> np.ndarray:
    """Return the logits after a sequence, (vocabulary,): integers divided by 101."""
    h = 17
    for token in sequence:
        h = (h * 31 + token + 1) % 2**31
    v = np.arange(vocabulary_size, dtype=np.int64)
    return (((h * (v + 3) + v * v * 7) % 1009) / 101.0).astype(np.float32)


def search_row(
    vocabulary_size: int, generation: GenerationConfig, moved: float = 0.0
) -> dict[str, Any]:
    """Return the settings of a search and its results; the decoder state is the sequences."""

    def step(
        state: list[tuple[int, ...]], token_ids: np.ndarray, beam_index: np.ndarray
    ) -> tuple[np.ndarray, list[tuple[int, ...]]]:
        pairs = zip(beam_index.tolist(), token_ids.tolist(), strict=True)
        grown = [(*state[beam], token) for beam, token in pairs]
        logits = [logits_after(sequence, vocabulary_size) for sequence in grown]
        return np.stack(logits) + np.float32(moved), grown

    rows = max(generation.num_beams, generation.num_return_sequences)
    first: list[tuple[int, ...]] = [()] * rows
    *settled, finished = drive(search(generation), step, first)
    assert isinstance(finished, Finished)
    return {
        "vocabulary_size": vocabulary_size,
        "generation": generation.to_dict(),
        "hypotheses": [
            {"token_ids": one.token_ids, "score": one.score} for one in finished.hypotheses
        ],
        "settled": [event.token_ids for event in settled if isinstance(event, Settled)],
    }


def search_settings() -> Iterator[tuple[int, GenerationConfig]]:
    """Yield vocabulary sizes and settings endlessly, in all combinations."""
    chance = random.Random(0)
    for number in itertools.count():
        vocabulary_size = (23, 7, 700, 7, 2, 23)[number % 6]
        kind = ("beams", "beams", "greedy", "beams", "sampling")[number // 6 % 5]
        max_length = chance.choice((2, 5, 12, 20, 30))
        small = vocabulary_size == 2
        common: dict[str, Any] = {
            "max_length": max_length,
            "min_length": chance.choice((0, 0, 4, max_length)) % (max_length + 1),
            "no_repeat_ngram_size": 0 if small else chance.choice((0, 0, 1, 2, 3)),
            "repetition_penalty": chance.choice((1.0, 1.0, 1.3, 0.8)),
            "forced_bos_token_id": chance.choice((None, None, 0)),
            "forced_eos_token_id": chance.choice((None, 1 if small else 2)),
            "eos_token_id": 1 if small else chance.choice((2, 2, (2, 5))),
            "decoder_start_token_id": 1 if small else 2,
        }
        if kind == "beams":
            num_beams = chance.randrange(2, 6)
            own: dict[str, Any] = {
                "num_beams": num_beams,
                "num_return_sequences": chance.randrange(1, num_beams + 1),
                "length_penalty": chance.choice((1.0, 0.0, 2.0, -1.0, 0.6)),
                "early_stopping": chance.choice((True, False, "never")),
            }
        elif kind == "sampling":
            own = {
                "do_sample": True,
                "seed": chance.choice((0, 1, 7, 42, 2**32, 2**63 - 1)),
                "num_return_sequences": chance.choice((1, 1, 3)),
                "temperature": chance.choice((1.0, 0.7, 1.8)),
                "top_k": chance.choice((0, 50, 4)),
                "top_p": chance.choice((1.0, 0.9, 0.3)),
            }
        else:
            own = {}
        yield vocabulary_size, GenerationConfig(**common, **own)


def search_rows() -> Iterator[dict[str, Any]]:
    """Yield the rows of search.jsonl, which do not depend on rounding."""
    rows = filter(None, map(stable_row, search_settings()))
    yield from itertools.islice(rows, SEARCHES)


def stable_row(setting: tuple[int, GenerationConfig]) -> dict[str, Any] | None:
    """Return the row of a setting, or None if it depends on rounding or no token is left."""
    try:
        row = search_row(*setting)
        moves = MOVED if setting[1].num_beams > 1 else ()
        others = [search_row(*setting, moved) for moved in moves]
    except BartExportError:
        return None
    same = all(tokens_of(other) == tokens_of(row) for other in others)
    return row if same else None


def tokens_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the parts of a row that must not depend on rounding."""
    return [one["token_ids"] for one in row["hypotheses"]], row["settled"]


# Drafts.

TEXTS_WITH_DRAFTS = 60


def draft_rows() -> Iterator[dict[str, Any]]:
    """Yield texts that copy their sources, and the draft and the average after each token."""
    chance = random.Random(0)
    for number in range(TEXTS_WITH_DRAFTS):
        vocabulary_size = (5, 30, 300)[number % 3]
        source = [chance.randrange(vocabulary_size) for _ in range(chance.randrange(1, 60))]
        tokens: list[int] = []
        while len(tokens) < 60:
            begin = chance.randrange(len(source))
            tokens += source[begin : begin + chance.randrange(12)]
            tokens += [chance.randrange(vocabulary_size) for _ in range(chance.randrange(3))]
        lookup = PromptLookup(source, chance.choice((1, 4, 10)))
        drafts, averages = [], []
        for token in tokens:
            lookup.add(token)
            drafts.append(lookup.draft())
            averages.append(lookup.expected)
        yield {
            "source": source,
            "max_tokens": lookup.max_tokens,
            "tokens": tokens,
            "drafts": drafts,
            "averages": averages,
        }


# Random numbers.

SEEDS = (0, 1, 42, 2**32, 2**63 - 1)
DRAWS = 40


def uniforms() -> list[dict[str, Any]]:
    """Return the first random numbers of NumPy's generator for each seed."""
    return [
        {"seed": seed, "uniforms": np.random.Generator(np.random.PCG64(seed)).random(5).tolist()}
        for seed in SEEDS
    ]


def choices() -> Iterator[dict[str, Any]]:
    """Yield settings, rows of logits, and the tokens drawn from them with one seed."""
    stream = np.random.default_rng(0)
    table = itertools.product((1.0, 0.6, 1.7), (0, 1, 5, 50), (1.0, 0.9, 0.4))
    for number, (temperature, top_k, top_p) in enumerate(table):
        rows = (stream.normal(size=(DRAWS, 30)) * 3).astype(np.float32)
        rows[1::5] = rows[1::5].round()  # equal logits
        rows[2::5, ::3] = rows[2::5].max()
        sampling: dict[str, Any] = {
            "seed": SEEDS[number % len(SEEDS)],
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        choose = sampled_choice(GenerationConfig(do_sample=True, **sampling))
        tokens = [choose(row) for row in rows]
        yield {**sampling, "rows": rows.tolist(), "tokens": tokens}
