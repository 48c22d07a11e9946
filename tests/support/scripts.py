"""Decoding with scripted tokens and beam indices, alone and in a batch."""

import dataclasses

import numpy as np

from bart_export.runtime.search import Decode


@dataclasses.dataclass(frozen=True)
class Script:
    """A source, and the tokens and parents of its beams at every step, (steps, beams)."""

    source: list[int]
    tokens: np.ndarray
    parents: np.ndarray

    @classmethod
    def random(cls, seed, length, beams, steps):
        random = np.random.default_rng(seed)
        parents = random.integers(0, beams, (steps, beams), dtype=np.int32)
        parents[1::3] = np.arange(beams)  # sometimes no beam changes
        return cls(
            random.integers(3, 40, length).tolist(),
            random.integers(0, 40, (steps, beams), dtype=np.int32),
            parents,
        )

    def __len__(self):
        return len(self.tokens)

    def request(self, step):
        return Decode(self.tokens[step], self.parents[step], step)


def alone(engine, script):
    """Return the logits of every step, (steps, beams, vocabulary), of a source by itself."""
    state = engine.start(script.source, script.tokens.shape[1], len(script))
    logits = []
    for tokens, parents in zip(script.tokens, script.parents, strict=True):
        row, state = engine.step(state, tokens, parents)
        logits.append(row)
    return np.stack(logits)


class Running:
    """The scripts that run in a batch, with their logits so far."""

    def __init__(self, batch):
        self.batch = batch
        self.slots, self.logits = {}, {}

    def admit(self, name, script):
        slot = self.batch.admit(script.source, len(script))
        self.slots[name], self.logits[name] = (slot, script), []
        return slot

    def step(self, count=1):
        for _ in range(count):
            requests = {
                slot: script.request(len(self.logits[name]))
                for name, (slot, script) in self.slots.items()
            }
            results = self.batch.step(requests)
            for name, (slot, _) in self.slots.items():
                self.logits[name].append(results[slot].copy())

    def ended(self):
        """Return the names of the scripts without another step."""
        return [
            name
            for name, (_, script) in self.slots.items()
            if len(self.logits[name]) == len(script)
        ]

    def release(self, name):
        slot, _ = self.slots.pop(name)
        self.batch.release(slot)


def assert_as_alone(engine, running, scripts):
    assert running.logits.keys() == scripts.keys()
    for name, script in scripts.items():
        logits = np.stack(running.logits[name])
        expected = alone(engine, script)[: len(logits)]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4, err_msg=str(name))
