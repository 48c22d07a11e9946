"""Engines: they run the `encode` and `decode` signatures of a `.tflite` file.

An engine is used by one generation at a time. `start` encodes a source and returns a `Decoding`, a
value that stands for the caches; `step` takes it, one token per beam and the beams they continue,
and returns logits and the next `Decoding`. A `Decoding` is good for one step: its buffers are the
next one's outputs.

`FileEngine` is the engine over any backend (LiteRT's `CompiledModel`, an `Interpreter`, the Edge
TPU) and either sizing (`sizing`). `engines` has the table of those that a user can name.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig, check_threads
from bart_export.contract import Bucket
from bart_export.errors import EngineError
from bart_export.runtime.sizing import Buckets, Dynamic, Fitted, fill_rows

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The state of one generation between two steps: which position is next, and its caches.

    `serial` numbers the generations of an engine: the buffers belong to the last one begun.
    `fitted` has the signatures that the generation runs in, and their sizes.
    """

    serial: int
    position: int
    fitted: Fitted
    caches: Any


class Engine(Protocol):
    """What generation needs of a runtime."""

    config: BartConfig

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Any:
        """Encode a source and return empty caches for decoding `max_length` tokens at most."""

    def step(self, state: Any, token_ids: IntArray, beam_index: IntArray) -> tuple[FloatArray, Any]:
        """Decode one token of every beam.

        Beam k continues the caches of beam `beam_index[k]` and reads `token_ids[k]`, both int32
        (beams,). Returns logits, float32 (beams, vocabulary), and the state after the step.
        """


CLOSED = "The Generator was closed. Open the artifact again."


class ClosedEngine:
    """What a closed Generator has in the place of its engine: every call is refused."""

    def __init__(self, config: BartConfig) -> None:
        self.config = config

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Any:
        """Refuse to begin."""
        raise EngineError(CLOSED)

    def step(self, state: Any, token_ids: IntArray, beam_index: IntArray) -> tuple[FloatArray, Any]:
        """Refuse to go on."""
        raise EngineError(CLOSED)


class Backend(Protocol):
    """An open file, and the memory of its signatures. `caches` are its own business."""

    def begin(self, fitted: Fitted) -> Any:
        """Encode a source for the signature that decodes it, and return its caches, emptied."""

    def decode(
        self,
        bucket: Bucket,
        caches: Any,
        position: int,
        token_ids: IntArray,
        beam_index: IntArray,
    ) -> tuple[FloatArray, Any]:
        """Decode one token of every beam: logits (beams, vocabulary), and the caches after it."""

    def grow(self, fitted: Fitted, caches: Any) -> Any:
        """Return the caches with the larger room of `fitted.decode`."""

    def cross(self, bucket: Bucket) -> Mapping[str, FloatArray]:
        """Return what a signature reads of the source, by the names of `contract.cross_tensors`."""


class FileEngine:
    """An engine over an open file.

    Args:
        config: the model's architecture, as the artifact's manifest gives it.
        backend: the open file.
        sizing: which signatures a request runs in, and with which sizes.
        notice: a line about where the file runs, for who asks.
    """

    def __init__(
        self, config: BartConfig, backend: Backend, sizing: Dynamic | Buckets, notice: str = ""
    ) -> None:
        self.config = config
        self.backend = backend
        self.sizing = sizing
        self.notice = notice
        self.serial = 0

    def only(self, source_length: int, num_beams: int) -> "FileEngine":
        """Return an engine over the same static build that knows one bucket, to try each."""
        assert isinstance(self.sizing, Buckets)
        return FileEngine(self.config, self.backend, self.sizing.only(source_length, num_beams))

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source; see `Engine.start`.

        Raises:
            InputError: for a source or a length that the model or the file has no room for.
        """
        fitted = self.sizing.fit(token_ids, num_beams, max_length)
        self.serial += 1
        return Decoding(self.serial, 0, fitted, self.backend.begin(fitted))

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam; see `Engine.step`."""
        if state.serial != self.serial:
            raise EngineError(
                "An engine runs one generation at a time, and another one has begun. "
                "Finish a stream before the next call, or open a second Generator."
            )
        fitted, caches = state.fitted, state.caches
        if state.position == fitted.decode.sizes[contract.CAPACITY]:
            fitted = self.sizing.grown(fitted)
            caches = self.backend.grow(fitted, caches)
        filled = fill_rows(fitted.decode.sizes[contract.BEAMS], token_ids, beam_index)
        logits, caches = self.backend.decode(fitted.decode, caches, state.position, *filled)
        state = Decoding(self.serial, state.position + 1, fitted, caches)
        return logits[: len(token_ids)], state

    def cross(self, state: Decoding) -> dict[str, FloatArray]:
        """Return the keys and values of a generation's source, without padding.

        They are float32 (one, heads, source, head_size), by the names of `contract.cross_tensors`.
        """
        decode, source = state.fitted.decode, int(state.fitted.padding_mask.sum())
        cross = self.backend.cross(decode)
        return {name: tensor[:, :, :source] for name, tensor in cross.items()}


# Of a smaller model a step is over before a second thread has helped: measured with int8 weights at
# 8 and 20 million parameters, two threads made no step quicker and took 1.3 to 1.7 times the CPU's
# time, and on a busy machine they waited for each other. At 49 and 139 million they paid.
FEW_PARAMETERS = 32_000_000


def default_threads(parameter_count: int) -> int:
    """Return how many threads run a model of so many parameters, where nobody said."""
    return 1 if parameter_count < FEW_PARAMETERS else available_cores()


def threads_of(given: int | None) -> int:
    """Return how many threads an engine is to use: all cores, where nobody said.

    Raises:
        ConfigurationError: for a number that no engine can have.
    """
    check_threads("num_threads", given)
    return given or available_cores()


def available_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
