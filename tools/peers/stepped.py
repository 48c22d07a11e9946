"""A peer without a search, driven by this package's search.

An engine has `start` and `step` as in `bart_export.runtime.engine.Engine`, but for several sources:
`start` takes all of them, and a step's rows are the beams of each source in turn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export.config import GenerationConfig
from bart_export.runtime.search import Decode, Finished, search
from bart_export.runtime.sizing import FloatArray


def forced(num_beams: int, new_tokens: int) -> dict[str, Any]:
    """Return settings that generate exactly `new_tokens` tokens."""
    return {
        "max_length": new_tokens + 1,
        "min_length": new_tokens + 1,
        "num_beams": num_beams,
    }


class Stepped:
    """Generates with an engine and the host's search. See `peers.Model`."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(
        self, sources: Sequence[Sequence[int]], num_beams: int, new_tokens: int
    ) -> list[list[int]]:
        """Return each source's best sequence of exactly `new_tokens` tokens.

        Searches of a fixed length all request logits at the same time.
        """
        generation = GenerationConfig(**forced(num_beams, new_tokens))
        state = self.engine.start(sources, num_beams, generation.max_length)
        first_rows = num_beams * np.arange(len(sources), dtype=np.int32)[:, np.newaxis]
        answers = []
        for events in zip(*(search(generation) for _ in sources), strict=True):
            if isinstance(events[0], Decode):
                token_ids = np.concatenate([event.token_ids for event in events])
                beam_index = np.stack([event.beam_index for event in events]) + first_rows
                logits, state = self.engine.step(state, token_ids, beam_index.ravel())
                for event, rows in zip(events, np.split(logits, len(events)), strict=True):
                    event.logits = rows
            elif isinstance(events[0], Finished):
                answers = [list(event.hypotheses[0].token_ids[1:]) for event in events]
        return answers

    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each decoder token, (target, vocabulary)."""
        return teacher_force(self.engine, self.engine.start([source], 2, len(target)), target)


def teacher_force(engine: Any, state: Any, target: Sequence[int]) -> FloatArray:
    """Return the logits after each token of a decoder sequence, (target, vocabulary).

    Two beams with the same tokens swap places at every step, so that caches are reordered.
    """
    rows = []
    for token in target:
        logits, state = engine.step(
            state, np.array([token, token], np.int32), np.array([1, 0], np.int32)
        )
        rows.append(logits[1].copy())
    return np.stack(rows)
