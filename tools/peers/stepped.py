"""A peer without a search, driven by this package's search.

An engine has `start` and `step` as in `bart_export.runtime.engine.Engine`. This package's engine is
driven in the same way, so that the search costs the same for all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export.config import GenerationConfig
from bart_export.runtime.search import run, search
from bart_export.runtime.sizing import FloatArray


class Stepped:
    """Generates with an engine and the host's search. See `peers.Model`."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(self, source: Sequence[int], num_beams: int, new_tokens: int) -> list[int]:
        """Return the best sequence of exactly `new_tokens` tokens."""
        length = new_tokens + 1
        forced = GenerationConfig(max_length=length, min_length=length, num_beams=num_beams)
        state = self.engine.start(source, num_beams, length)
        return list(run(search(forced), self.engine.step, state)[0].token_ids[1:])

    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each decoder token, (target, vocabulary).

        Two beams with the same tokens swap places at every step, so that caches are reordered.
        """
        state = self.engine.start(source, 2, len(target))
        rows = []
        for token in target:
            logits, state = self.engine.step(
                state, np.array([token, token], np.int32), np.array([1, 0], np.int32)
            )
            rows.append(logits[1].copy())
        return np.stack(rows)
