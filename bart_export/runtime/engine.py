"""Engines run the `encode` and `decode` signatures of a `.tflite` file.

`start` encodes a source and returns a `Decoding`, which represents the caches; `step` takes one and
returns logits and the next. A `Decoding` is valid for one step, because the next one reuses its
buffers. `batch` decodes several sources together.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bart_export import contract
from bart_export.config import BartConfig, check_threads
from bart_export.contract import Bucket, Signature
from bart_export.errors import EngineError
from bart_export.runtime.batch import Backend, Batch, Slot
from bart_export.runtime.search import Decode
from bart_export.runtime.sizing import Buckets, Dynamic, FloatArray, IntArray

State = Any  # the caches between two steps, opaque to all but the engine

# A signature's name in the file -> the contract's signature, and the sizes of its axes.
Expected = Mapping[str, tuple[Signature, Mapping[str, int]]]


class Engine(Protocol):
    """A runtime that generation can use."""

    config: BartConfig

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> State:
        """Encode a source and return empty caches for at most `max_length` tokens."""

    def step(
        self, state: State, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, State]:
        """Decode one token per beam.

        Beam k reads `token_ids[k]` and continues the caches of beam `beam_index[k]`, both int32
        (beams,). Returns logits, float32 (beams, vocabulary), and the next state.
        """


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The state of a generation between two steps; `position` is the next token's."""

    slot: Slot
    position: int


@dataclasses.dataclass(eq=False, repr=False)
class FileEngine:
    """An engine for an open file, which runs one batch at a time.

    `sizing` chooses signatures and sizes; `notice` is a message about where the file runs;
    `running` is the latest batch.
    """

    config: BartConfig
    backend: Backend
    sizing: Dynamic | Buckets
    notice: str = ""
    running: Batch | None = None

    def only(self, source_length: int, num_beams: int, sources: int = 1) -> "FileEngine":
        """Return an engine for one bucket of the same static build."""
        assert isinstance(self.sizing, Buckets)
        only = self.sizing.only(source_length, num_beams, sources)
        return FileEngine(self.config, self.backend, only)

    def close(self) -> None:
        """Release the model; the engine cannot be used afterwards."""
        for name in ("backend", "running"):
            vars(self).pop(name, None)

    def batch(self, num_beams: int) -> Batch:
        """Return an empty batch; the previous one can no longer be used."""
        self.running = Batch(self.config, self.backend, self.sizing, num_beams)
        return self.running

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source, or raise InputError if it does not fit; see `Engine.start`."""
        return Decoding(self.batch(num_beams).admit(token_ids, max_length), 0)

    def step(
        self,
        state: Decoding,
        token_ids: IntArray,
        beam_index: IntArray,
        draft: tuple[int, ...] = (),
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token per beam; see `Engine.step`.

        With one beam, also decode the tokens of a draft, if the file supports it.
        """
        batch, slot = self.running, state.slot
        if batch is None or slot not in batch.slots:
            raise EngineError(
                "An engine runs one generation at a time, and another one has started. "
                "Finish a stream before the next call, or open a second Generator."
            )
        request = Decode(token_ids, beam_index, state.position, draft)
        logits = batch.step({slot: request})[slot].copy()
        return logits, Decoding(slot, state.position + 1 + (len(logits) - 1 if draft else 0))

    def cross(self, state: Decoding) -> dict[str, FloatArray]:
        """Return `contract.cross_tensors` without padding, (one, heads, source, head_size)."""
        axes = {tensor.name: tensor.axes for tensor in self.sizing.cross_tensors}
        cross = {}
        for name, array in self.backend.cross(state.slot.index).items():
            if axes[name][-1] == contract.SOURCE:
                array = array.swapaxes(2, 3)
            cross[name] = array[:, :, : state.slot.source_length]
        return cross


def expected_signatures(config: BartConfig, buckets: Sequence[Bucket]) -> Expected:
    """Return the signatures of a file with these buckets."""
    sizes = contract.sizes(config)
    return {bucket.name: (bucket.signature, {**sizes, **bucket.sizes}) for bucket in buckets}


# A second thread does not help smaller models: with int8 weights and 8 or 20 million parameters,
# steps took as long as with one, and 1.3 to 1.7 times the CPU time. It helped with 49 and 139
# million parameters.
FEW_PARAMETERS = 32_000_000


def default_threads(parameter_count: int) -> int:
    """Return the default number of threads for a model of this size."""
    return 1 if parameter_count < FEW_PARAMETERS else available_cores()


def thread_count(given: int | None) -> int:
    """Return the given number of threads or, if None, all cores; or raise ConfigurationError."""
    return check_threads("num_threads", given) or available_cores()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_features() -> str:
    """Return the line of /proc/cpuinfo with a processor's features, or "" if there is none."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")
    return ""
