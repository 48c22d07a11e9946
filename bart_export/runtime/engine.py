"""Engines: they run the `encode` and `decode` signatures of a `.tflite` file, and hold its buffers.

Token ids go in, logits come out; what happens to logits is not known here. An engine is used by
one generation at a time. `start` encodes a source and returns a `Decoding`, a value that stands
for the caches; `step` takes it, one token per beam and the beams they continue, and returns logits
and the next `Decoding`. A `Decoding` is good for one step: its buffers are the next one's outputs.

`CompiledModelEngine` runs on LiteRT 2's `CompiledModel`. `encode` writes where `decode` reads, two
sets of cache buffers alternate, and all lengths are the real ones: the cache starts small and
doubles. `bart_export.runtime.interpreter` has the engine for older runtimes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.artifact import Artifact
from bart_export.config import BartConfig
from bart_export.errors import EngineError, InputError
from bart_export.runtime import litert
from bart_export.runtime.weight_cache import open_with_cache

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

FIRST_CAPACITY = 64  # decoder positions; doubling costs milliseconds, room costs on every step


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


def larger_sizes(config: BartConfig, current: dict[str, int]) -> dict[str, int]:
    """Return the sizes of the dynamic axes with room for twice as many decoder positions."""
    doubled = 2 * current[contract.CAPACITY]
    return {**current, contract.CAPACITY: min(doubled, config.max_sequence_length)}


def resized(
    config: BartConfig,
    signature: contract.Signature,
    current: dict[str, int],
    wanted: dict[str, int],
) -> dict[str, tuple[int, ...]]:
    """Return the new shapes of a signature's inputs that depend on an axis whose size changes."""
    changed = {axis for axis, size in wanted.items() if current.get(axis) != size}
    sizes = contract.sizes(config) | wanted
    return {
        tensor.name: tuple(sizes[axis] for axis in tensor.axes)
        for tensor in signature.inputs
        if changed & set(tensor.axes)
    }


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
        self.sizes = contract.sizes(config)
        encode, decode = contract.tflite_signatures(config)
        self.encode, self.decode = encode, decode
        self.cache_names = tuple(tensor.name for tensor in contract.cache_tensors(config))
        self.cross_names = tuple(tensor.name for tensor in contract.cross_tensors(config))
        self.serial = 0
        self.current: dict[str, int] = {}  # dynamic axis -> size the buffers have now
        self.inputs: dict[str, dict[str, Any]] = {encode.name: {}, decode.name: {}}
        self.outputs: dict[str, dict[str, Any]] = {encode.name: {}, decode.name: {}}
        self.model = litert.open_model(path, num_threads or available_cores(), weight_cache)

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, name: str, *, num_threads: int | None = None
    ) -> "CompiledModelEngine":
        """Open a file of an artifact, with a weight cache of its own."""
        path = artifact.path(name)
        entry = artifact.manifest["files"][name]
        return open_with_cache(
            lambda cache: cls(path, artifact.config, num_threads=num_threads, weight_cache=cache),
            artifact.directory,
            entry["bytes"],
            entry["sha256"],
            litert.library(),
        )

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source; see `Engine.start`."""
        ids = check_source(self.config, token_ids)
        check_length(self.config, max_length)
        self.serial += 1
        self.resize(first_sizes(ids.shape[1], num_beams, max_length))
        mask = np.ones_like(ids)
        self.inputs["encode"]["encoder_token_ids"].write(ids)
        self.inputs["encode"]["encoder_padding_mask"].write(mask)
        self.inputs["decode"]["encoder_padding_mask"].write(mask)
        self.run("encode", self.inputs["encode"], self.outputs["encode"])
        empty = np.zeros(self.cache_shape(), np.float32)
        caches = (
            {name: self.inputs["decode"][name] for name in self.cache_names},
            {name: self.outputs["decode"][name] for name in self.cache_names},
        )
        for buffer in caches[0].values():
            buffer.write(empty)
        return Decoding(self.serial, 0, caches)

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam; see `Engine.step`."""
        check_serial(self.serial, state)
        if state.position == self.current[contract.CAPACITY]:
            state = self.grow(state)
        read, written = state.caches
        inputs = self.inputs["decode"] | read
        inputs["decoder_token_ids"].write(token_ids[:, None])
        inputs["position"].write(np.array([state.position], np.int32))
        inputs["beam_index"].write(beam_index)
        self.run("decode", inputs, self.outputs["decode"] | written)
        shape = self.current[contract.BEAMS], self.config.vocabulary_size
        logits = self.outputs["decode"]["logits"].read(shape[0] * shape[1], np.float32)
        return logits.reshape(shape), Decoding(state.serial, state.position + 1, (written, read))

    def grow(self, state: Decoding) -> Decoding:
        """Return the same caches with twice the room."""
        old_shape = self.cache_shape()
        old = {
            name: buffer.read(int(np.prod(old_shape)), np.float32).reshape(old_shape)
            for name, buffer in state.caches[0].items()
        }
        self.resize(larger_sizes(self.config, self.current))
        room = ((0, 0), (0, 0), (0, self.cache_shape()[2] - old_shape[2]), (0, 0))
        for name, cache in old.items():
            self.inputs["decode"][name].write(np.pad(cache, room))
        caches = (
            {name: self.inputs["decode"][name] for name in self.cache_names},
            {name: self.outputs["decode"][name] for name in self.cache_names},
        )
        return Decoding(state.serial, state.position, caches)

    def cache_shape(self) -> tuple[int, ...]:
        """Return the shape of a cache tensor now: (beams, heads, capacity, head_size)."""
        sizes = self.sizes | self.current
        return tuple(sizes[axis] for axis in contract.cache_tensors(self.config)[0].axes)

    def resize(self, wanted: dict[str, int]) -> None:
        """Resize what depends on an axis that changes, and make new buffers for it."""
        changed = {axis for axis, size in wanted.items() if self.current.get(axis) != size}
        if not changed:
            return
        for signature in (self.encode, self.decode):
            shapes = resized(self.config, signature, self.current, wanted)
            for name, shape in shapes.items():
                self.model.resize_input_tensor_by_name(
                    signature.name, name, list(shape), strict=False
                )
            for tensor in signature.inputs:
                if tensor.name in shapes or tensor.name not in self.inputs[signature.name]:
                    self.inputs[signature.name][tensor.name] = (
                        self.model.create_input_buffer_by_name(signature.name, tensor.name)
                    )
        for tensor in self.decode.outputs:
            if changed & set(tensor.axes):
                self.outputs["decode"][tensor.name] = self.model.create_output_buffer_by_name(
                    "decode", tensor.name
                )
        self.current = wanted
        # The encoder writes where the decoder reads.
        self.outputs["encode"] = {name: self.inputs["decode"][name] for name in self.cross_names}

    def run(self, signature: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Run one signature."""
        try:
            self.model.run_by_name(signature, inputs, outputs)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]  # the other lines are a trace
            raise EngineError(f"LiteRT failed to run {signature}: {reason}.") from error


def available_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
