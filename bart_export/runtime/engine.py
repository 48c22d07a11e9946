"""Engines: they run the `encode` and `decode` signatures of a `.tflite` file, and hold its buffers.

Token ids go in, logits come out; what happens to logits is not known here. An engine is used by
one generation at a time. `start` encodes a source and returns a `Decoding`, a value that stands
for the caches; `step` takes it, one token per beam and the beams they continue, and returns logits
and the next `Decoding`. A `Decoding` is good for one step: its buffers are the next one's outputs.

`CompiledModelEngine` runs a dynamic build on LiteRT 2's `CompiledModel`: all lengths are the real
ones, and the cache starts small and doubles. `bart_export.runtime.static_engine` has the engine for
static builds, `bart_export.runtime.interpreter` the one for older runtimes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import BartConfig
from bart_export.errors import EngineError, InputError
from bart_export.runtime import litert
from bart_export.runtime.buffers import (
    BufferedSignature,
    Buffers,
    Caches,
    decode_rows,
    encode_source,
)
from bart_export.runtime.graph_rules import checked_path, dynamic_signatures
from bart_export.runtime.weight_cache import open_with_cache

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

FIRST_CAPACITY = 16  # decoder positions; doubling costs milliseconds, room costs on every step


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The state of one generation between two steps: which position is next, and its caches.

    `serial` numbers the generations of an engine: the buffers belong to the last one begun.
    """

    serial: int
    position: int
    caches: Any


class Engine(Protocol):
    """What generation needs of a runtime."""

    config: BartConfig

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source and return empty caches for decoding `max_length` tokens at most."""

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam.

        Beam k continues the caches of beam `beam_index[k]` and reads `token_ids[k]`, both int32
        (beams,). Returns logits, float32 (beams, vocabulary), and the state after the step.
        """


CLOSED = "The Generator was closed. Open the artifact again."


class ClosedEngine:
    """What a closed Generator has in the place of its engine: every call is refused."""

    def __init__(self, config: BartConfig) -> None:
        self.config = config

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Refuse to begin."""
        raise EngineError(CLOSED)

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Refuse to go on."""
        raise EngineError(CLOSED)


def check_source(config: BartConfig, token_ids: Sequence[int]) -> IntArray:
    """Return token ids as an array (one, source).

    Raises:
        InputError: for no ids, more than the model has positions, or an id it does not know.
    """
    if not 0 < len(token_ids) <= config.max_sequence_length:
        raise InputError(
            f"A source must have 1 to {config.max_sequence_length} tokens, received "
            f"{len(token_ids)}."
        )
    ids = np.asarray(token_ids, dtype=np.int64)
    outside = ids[(ids < 0) | (ids >= config.vocabulary_size)]
    if outside.size:
        raise InputError(
            f"Token ids must be in 0 to {config.vocabulary_size - 1}, received {int(outside[0])}."
        )
    return ids.astype(np.int32)[None, :]


def check_length(config: BartConfig, max_length: int) -> None:
    """Raise InputError if `max_length` decoder tokens do not fit the model's positions."""
    if max_length > config.max_sequence_length:
        raise InputError(
            f"max_length must be at most the model's {config.max_sequence_length} positions, "
            f"received {max_length}."
        )


def check_serial(serial: int, state: Decoding) -> None:
    """Raise EngineError if another generation has begun on the engine's buffers."""
    if state.serial != serial:
        raise EngineError(
            "An engine runs one generation at a time, and another one has begun. "
            "Finish a stream before the next call, or open a second Generator."
        )


def first_sizes(source: int, num_beams: int, max_length: int) -> dict[str, int]:
    """Return the sizes of the dynamic axes that a generation starts with."""
    return {
        contract.SOURCE: source,
        contract.BEAMS: num_beams,
        contract.CAPACITY: min(FIRST_CAPACITY, max_length),
    }


def larger_sizes(config: BartConfig, current: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of the dynamic axes with room for twice as many decoder positions."""
    doubled = 2 * current[contract.CAPACITY]
    return {**current, contract.CAPACITY: min(doubled, config.max_sequence_length)}


class CompiledModelEngine:
    """An engine over `ai_edge_litert.compiled_model.CompiledModel`.

    Args:
        path: the `.tflite` file.
        config: the model's architecture, as the artifact's manifest gives it.
        num_threads: threads for the CPU kernels; None takes all cores this process may use.
        weight_cache: file for XNNPACK's packed weights, "" for none. It must be whole or absent.

    Raises:
        EngineError: if LiteRT cannot open the file.
    """

    def __init__(
        self,
        path: pathlib.Path,
        config: BartConfig,
        *,
        num_threads: int | None = None,
        weight_cache: str = "",
    ) -> None:
        self.config = config
        self.serial = 0
        model = litert.open_model(path, num_threads or available_cores(), weight_cache)
        self.encode, self.decode, self.decode_single = (
            BufferedSignature(model, config, signature.name, signature)
            for signature in contract.tflite_signatures(config)
        )

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, name: str, *, num_threads: int | None = None
    ) -> "CompiledModelEngine":
        """Open a file of an artifact, with a weight cache of its own."""
        path = checked_path(artifact, name, dynamic_signatures(artifact.config))
        return open_with_cache(
            lambda cache: cls(path, artifact.config, num_threads=num_threads, weight_cache=cache),
            artifact,
            name,
        )

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source; see `Engine.start`."""
        ids = check_source(self.config, token_ids)
        check_length(self.config, max_length)
        self.serial += 1
        sizes = first_sizes(ids.shape[1], num_beams, max_length)
        decode = self.decode if num_beams > 1 else self.decode_single
        self.encode.resize(sizes)
        decode.resize(sizes)
        return Decoding(self.serial, 0, (decode, self.encode_for(decode, ids)))

    def encode_for(self, decode: BufferedSignature, ids: IntArray) -> Caches:
        """Encode a source, (one, source), where `decode` reads; return its caches, emptied."""
        return encode_source(self.encode, decode, ids, np.ones_like(ids))

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam; see `Engine.step`."""
        check_serial(self.serial, state)
        decode, (read, written) = state.caches
        if state.position == decode.sizes[contract.CAPACITY]:
            read, written = self.grow(decode, read)
        logits = decode_rows(decode, read, written, state.position, token_ids, beam_index)
        state = Decoding(state.serial, state.position + 1, (decode, (written, read)))
        return logits, state

    def grow(self, decode: BufferedSignature, read: Buffers) -> Caches:
        """Return the caches in `read` with twice the room, and as much room to write."""
        name = decode.cache_names[0]
        old_shape = decode.shape(name)
        old = {
            name: buffer.read(int(np.prod(old_shape)), np.float32).reshape(old_shape)
            for name, buffer in read.items()
        }
        decode.resize(larger_sizes(self.config, decode.sizes))
        room = ((0, 0), (0, 0), (0, decode.shape(name)[2] - old_shape[2]), (0, 0))
        caches = decode.caches()
        for name, cache in old.items():
            caches[0][name].write(np.pad(cache, room))
        return caches


# Of a smaller model a step is over before a second thread has helped: measured with int8 weights at
# 8 and 20 million parameters, two threads made no step quicker and took 1.3 to 1.7 times the CPU's
# time, and on a busy machine they waited for each other. At 49 and 139 million they paid.
FEW_PARAMETERS = 32_000_000


def default_threads(parameter_count: int) -> int:
    """Return how many threads run a model of so many parameters, where nobody said."""
    return 1 if parameter_count < FEW_PARAMETERS else available_cores()


def available_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
