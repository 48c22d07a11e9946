"""Engines: they run the `encode` and `decode` signatures of a `.tflite` file.

`start` encodes a source and returns a `Decoding`, a value that stands for the caches; `step` takes
it and returns logits and the next one. A `Decoding` is good for one step: its buffers are the next
one's outputs.

In a dynamic build (`Dynamic`) all lengths are the real ones, and the caches start small and double.
A static build (`Buckets`) has a signature for each bucket: a request takes the smallest with room,
its source is padded and the padding masked, and spare beams decode along in places of their own.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig, check_threads
from bart_export.contract import Bucket, Signature
from bart_export.errors import EngineError, InputError, shown

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
State = Any  # what a step hands to the next; only its engine, or its backend, knows what it is

FIRST_CAPACITY = 16  # decoder positions; doubling costs milliseconds, room costs on every step
# What a request calls the size of an axis.
LIMITED = {
    contract.SOURCE: "A source's number of tokens",
    contract.BEAMS: "num_beams, or num_return_sequences,",
    contract.CAPACITY: "max_length",
}


class Engine(Protocol):
    """What generation needs of a runtime."""

    config: BartConfig

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> State:
        """Encode a source and return empty caches for decoding `max_length` tokens at most."""

    def step(
        self, state: State, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, State]:
        """Decode one token of every beam.

        Beam k continues the caches of beam `beam_index[k]` and reads `token_ids[k]`, both int32
        (beams,). Returns logits, float32 (beams, vocabulary), and the state after the step.
        """


CLOSED = "The Generator was closed. Open the artifact again."


@dataclasses.dataclass
class ClosedEngine:
    """The engine of a closed Generator: every call is refused."""

    config: BartConfig

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> State:
        """Refuse to begin."""
        raise EngineError(CLOSED)

    def step(
        self, state: State, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, State]:
        """Refuse to go on."""
        raise EngineError(CLOSED)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A source in the signatures that encode and decode it: ids and mask, int32 (one, source)."""

    encode: Bucket
    decode: Bucket
    token_ids: IntArray
    padding_mask: IntArray


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """The sizing of a dynamic build.

    `signatures` encode and decode, with several beams and with one, as those of
    `contract.tflite_signatures` do.
    """

    config: BartConfig
    signatures: Sequence[Signature]

    def fit(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Fitted:
        """Return a source with room for its first tokens, or raise InputError."""
        ids = check_source(self.config, token_ids)
        check_length(self.config, max_length)
        encode, decode_beams, decode_single = self.signatures
        decode = decode_beams if num_beams > 1 else decode_single
        source = {contract.SOURCE: ids.shape[1]}
        capacity = min(FIRST_CAPACITY, max_length)
        sizes = {**source, contract.BEAMS: num_beams, contract.CAPACITY: capacity}
        return Fitted(
            Bucket(encode.name, encode, source),
            Bucket(decode.name, decode, sizes),
            ids,
            np.ones_like(ids),
        )

    def grown(self, fitted: Fitted) -> Fitted:
        """Return a source with room for twice as many decoder positions."""
        doubled = 2 * fitted.decode.sizes[contract.CAPACITY]
        capacity = min(doubled, self.config.max_sequence_length)
        sizes = {**fitted.decode.sizes, contract.CAPACITY: capacity}
        decode = dataclasses.replace(fitted.decode, sizes=sizes)
        return dataclasses.replace(fitted, decode=decode)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The sizing of a static build, with an `encode` for the source length of every `decode`."""

    config: BartConfig
    buckets: Sequence[Bucket]

    def only(self, source_length: int, num_beams: int) -> "Buckets":
        """Return the sizing by a single bucket."""
        wanted = {contract.SOURCE: source_length, contract.BEAMS: num_beams}
        buckets = [
            bucket
            for bucket in self.buckets
            if all(wanted.get(axis, size) == size for axis, size in bucket.sizes.items())
        ]
        return Buckets(self.config, buckets)

    def fit(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Fitted:
        """Return a source in the smallest buckets with room for all of it, or raise InputError."""
        ids = check_source(self.config, token_ids)
        needed = {
            contract.SOURCE: ids.shape[1],
            contract.BEAMS: num_beams,
            contract.CAPACITY: max_length,
        }
        sizes = {axis: self.smallest(axis, size) for axis, size in needed.items()}
        source = {contract.SOURCE: sizes[contract.SOURCE]}
        padding = ((0, 0), (0, sizes[contract.SOURCE] - ids.shape[1]))
        return Fitted(
            encode=next(bucket for bucket in self.buckets if bucket.sizes == source),
            decode=next(bucket for bucket in self.buckets if bucket.sizes == sizes),
            token_ids=np.pad(ids, padding),
            padding_mask=np.pad(np.ones_like(ids), padding),
        )

    def grown(self, fitted: Fitted) -> Fitted:
        """Refuse: a bucket is chosen with room for all tokens."""
        raise InputError("A static build has no room beyond the max_length it was started with.")

    def smallest(self, axis: str, needed: int) -> int:
        """Return the smallest size of an axis that has room, or raise InputError."""
        sizes = sorted({bucket.sizes[axis] for bucket in self.buckets if axis in bucket.sizes})
        for size in sizes:
            if size >= needed:
                return size
        raise InputError(
            f"{LIMITED[axis]} must be at most {sizes[-1]} in this static build, which was made for "
            f"{', '.join(map(str, sizes))}, received {needed}. A dynamic build takes more."
        )


def sizing(config: BartConfig, buckets: Sequence[Bucket] | None) -> Dynamic | Buckets:
    """Return the sizing of a static build with these buckets, or of a dynamic one without."""
    if buckets is None:
        return Dynamic(config, contract.tflite_signatures(config))
    return Buckets(config, buckets)


def check_source(config: BartConfig, token_ids: Sequence[int]) -> IntArray:
    """Return token ids as int32 (one, source), or raise InputError for what no model takes."""
    try:
        ids = np.asarray(token_ids if len(token_ids) else np.empty(0, np.int64))
    except (TypeError, ValueError):  # without a length, or of lists of several
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"A source must be a list of token ids, received {shown(token_ids)}.")
    if not 0 < ids.size <= config.max_sequence_length:
        raise InputError(
            f"A source must have 1 to {config.max_sequence_length} tokens, received {ids.size}."
        )
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


def fill_rows(beams: int, token_ids: IntArray, beam_index: IntArray) -> tuple[IntArray, IntArray]:
    """Return token ids and beam indices for all beams of a signature; spare ones stay in place."""
    rows = len(token_ids)
    if rows == beams:
        return token_ids, beam_index
    spare = np.arange(rows, beams, dtype=np.int32)
    return np.pad(token_ids, (0, beams - rows)), np.concatenate([beam_index, spare])


class Backend(Protocol):
    """An open file, and the memory of its signatures. `caches` are opaque to the engine."""

    def begin(self, fitted: Fitted) -> State:
        """Encode a source for the signature that decodes it, and return its caches, emptied."""

    def decode(
        self,
        bucket: Bucket,
        caches: State,
        position: int,
        token_ids: IntArray,
        beam_index: IntArray,
    ) -> tuple[FloatArray, State]:
        """Decode one token of every beam: logits (beams, vocabulary), and the caches after it."""

    def grow(self, fitted: Fitted, caches: State) -> State:
        """Return the caches with the larger room of `fitted.decode`."""

    def cross(self, bucket: Bucket) -> Mapping[str, FloatArray]:
        """Return what a signature reads of the source, by the names of `contract.cross_tensors`."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The state of a generation, by its serial number, between two steps."""

    serial: int
    position: int
    fitted: Fitted
    caches: State


@dataclasses.dataclass(eq=False)
class FileEngine:
    """An engine over an open file, for one generation at a time.

    `sizing` chooses the signatures that a request runs in, and their sizes; `notice` says where the
    file runs; `serial` is the number of the generation that was begun last.
    """

    config: BartConfig
    backend: Backend
    sizing: Dynamic | Buckets
    notice: str = ""
    serial: int = 0

    def only(self, source_length: int, num_beams: int) -> "FileEngine":
        """Return an engine over the same static build that knows one bucket, to try each."""
        assert isinstance(self.sizing, Buckets)
        return FileEngine(self.config, self.backend, self.sizing.only(source_length, num_beams))

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source, or raise InputError where there is no room; see `Engine.start`."""
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
        source = int(state.fitted.padding_mask.sum())
        cross = self.backend.cross(state.fitted.decode)
        return {name: tensor[:, :, :source] for name, tensor in cross.items()}


# A step of a smaller model ends before a second thread has helped: measured with int8 weights at 8
# and 20 million parameters, two threads made no step quicker and took 1.3 to 1.7 times the CPU's
# time. At 49 and 139 million they paid.
FEW_PARAMETERS = 32_000_000


def default_threads(parameter_count: int) -> int:
    """Return how many threads run a model of so many parameters by default."""
    return 1 if parameter_count < FEW_PARAMETERS else available_cores()


def thread_count(given: int | None) -> int:
    """Return a valid number of threads, by default all cores, or raise ConfigurationError."""
    check_threads("num_threads", given)
    return given or available_cores()


def available_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
