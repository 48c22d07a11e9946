"""Engines run the `encode` and `decode` signatures of a `.tflite` file.

`start` encodes a source and returns a `Decoding`, which represents the caches; `step` takes one and
returns logits and the next. A `Decoding` is valid for one step, because the next one reuses its
buffers.

In a dynamic build (`Dynamic`) tensors have the request's sizes, and the caches start small and
double. A static build (`Buckets`) has a signature per bucket: a request uses the smallest that
fits, with its source padded and masked, and with spare beams.
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
State = Any  # the caches between two steps, opaque to all but the engine or backend

# A signature's name in the file -> the contract's signature, and the sizes of its axes.
Expected = Mapping[str, tuple[Signature, Mapping[str, int]]]
FIRST_CAPACITY = 16  # decoder positions; doubling costs milliseconds once, capacity every step
# The sizes of axes, as requests name them.
LIMITED = {
    contract.SOURCE: "A source's number of tokens",
    contract.BEAMS: "num_beams, or num_return_sequences,",
    contract.CAPACITY: "max_length",
}


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


CLOSED = "The Generator was closed. Open the artifact again."


@dataclasses.dataclass
class ClosedEngine:
    """The engine of a closed Generator; every call raises EngineError."""

    config: BartConfig

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> State:
        """Raise EngineError."""
        raise EngineError(CLOSED)

    def step(
        self, state: State, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, State]:
        """Raise EngineError."""
        raise EngineError(CLOSED)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A source and the buckets that encode and decode it; ids and mask are int32 (one, source)."""

    encode: Bucket
    decode: Bucket
    token_ids: IntArray
    padding_mask: IntArray


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """The sizing of a dynamic build; `signatures` comes from `contract.tflite_signatures`."""

    config: BartConfig
    signatures: Sequence[Signature]

    def fit(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Fitted:
        """Return a source with capacity for the first decoded tokens, or raise InputError."""
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
        """Return the source with twice the capacity."""
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
        """Return a sizing that uses only the bucket with these sizes."""
        sizes = {contract.SOURCE: source_length, contract.BEAMS: num_beams}
        buckets = [
            bucket
            for bucket in self.buckets
            if all(sizes.get(axis, size) == size for axis, size in bucket.sizes.items())
        ]
        return Buckets(self.config, buckets)

    def fit(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Fitted:
        """Return a source in the smallest buckets that fit, or raise InputError."""
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
        """Raise InputError, because buckets already have capacity for `max_length` tokens."""
        raise InputError("A static build cannot decode beyond the max_length that it started with.")

    def smallest(self, axis: str, needed: int) -> int:
        """Return the smallest size of an axis that is at least `needed`, or raise InputError."""
        sizes = sorted({bucket.sizes[axis] for bucket in self.buckets if axis in bucket.sizes})
        for size in sizes:
            if size >= needed:
                return size
        raise InputError(
            f"{LIMITED[axis]} must be at most {sizes[-1]} in this static build, which supports "
            f"{', '.join(map(str, sizes))}; received {needed}. A dynamic build accepts more."
        )


def sizing(config: BartConfig, buckets: Sequence[Bucket] | None) -> Dynamic | Buckets:
    """Return the sizing of a static build with `buckets`, or of a dynamic build if None."""
    if buckets is None:
        return Dynamic(config, contract.tflite_signatures(config))
    return Buckets(config, buckets)


def expected_signatures(config: BartConfig, buckets: Sequence[Bucket] | None) -> Expected:
    """Return the signatures of a static build with `buckets`, or of a dynamic build if None."""
    sizes = contract.sizes(config)
    if buckets is None:
        signatures = contract.tflite_signatures(config)
        return {signature.name: (signature, sizes) for signature in signatures}
    return {bucket.name: (bucket.signature, {**sizes, **bucket.sizes}) for bucket in buckets}


def check_source(config: BartConfig, token_ids: Sequence[int]) -> IntArray:
    """Return token ids as int32 (one, source), or raise InputError if they are invalid."""
    try:
        ids = np.asarray(token_ids if len(token_ids) else np.empty(0, np.int64))
    except (TypeError, ValueError):  # not a sequence, or nested lists of different lengths
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
            f"Token ids must be from 0 to {config.vocabulary_size - 1}, received {int(outside[0])}."
        )
    return ids.astype(np.int32)[None, :]


def check_length(config: BartConfig, max_length: int) -> None:
    """Raise InputError if `max_length` exceeds the model's positions."""
    if max_length > config.max_sequence_length:
        raise InputError(
            f"max_length must be at most the model's {config.max_sequence_length} positions, "
            f"received {max_length}."
        )


def fill_rows(beams: int, token_ids: IntArray, beam_index: IntArray) -> tuple[IntArray, IntArray]:
    """Pad token ids and beam indices to a signature's number of beams."""
    rows = len(token_ids)
    if rows == beams:
        return token_ids, beam_index
    spare = np.arange(rows, beams, dtype=np.int32)
    return np.pad(token_ids, (0, beams - rows)), np.concatenate([beam_index, spare])


class Backend(Protocol):
    """An open file and its signatures' buffers; `caches` are opaque to the engine."""

    def begin(self, fitted: Fitted) -> State:
        """Encode a source and return empty caches."""

    def decode(
        self,
        bucket: Bucket,
        caches: State,
        position: int,
        token_ids: IntArray,
        beam_index: IntArray,
    ) -> tuple[FloatArray, State]:
        """Decode one token per beam; return logits (beams, vocabulary) and the next caches."""

    def grow(self, fitted: Fitted, caches: State) -> State:
        """Return the caches with the capacity of `fitted.decode`."""

    def cross(self, bucket: Bucket) -> Mapping[str, FloatArray]:
        """Return a signature's `contract.cross_tensors` by name."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The state of a generation between two steps; `serial` is the generation's number."""

    serial: int
    position: int
    fitted: Fitted
    caches: State


@dataclasses.dataclass(eq=False)
class FileEngine:
    """An engine for an open file, which runs one generation at a time.

    `sizing` chooses a request's signatures and sizes; `notice` is a message about where the file
    runs; `serial` is the number of the latest generation.
    """

    config: BartConfig
    backend: Backend
    sizing: Dynamic | Buckets
    notice: str = ""
    serial: int = 0

    def only(self, source_length: int, num_beams: int) -> "FileEngine":
        """Return an engine for one bucket of the same static build."""
        assert isinstance(self.sizing, Buckets)
        return FileEngine(self.config, self.backend, self.sizing.only(source_length, num_beams))

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source, or raise InputError if it does not fit; see `Engine.start`."""
        fitted = self.sizing.fit(token_ids, num_beams, max_length)
        self.serial += 1
        return Decoding(self.serial, 0, fitted, self.backend.begin(fitted))

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token per beam; see `Engine.step`."""
        if state.serial != self.serial:
            raise EngineError(
                "An engine runs one generation at a time, and another one has started. "
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
        """Return `contract.cross_tensors` without padding, (one, heads, source, head_size)."""
        source = int(state.fitted.padding_mask.sum())
        cross = self.backend.cross(state.fitted.decode)
        return {name: tensor[:, :, :source] for name, tensor in cross.items()}


# A second thread does not help smaller models: with int8 weights and 8 or 20 million parameters,
# steps took as long as with one, and 1.3 to 1.7 times the CPU time. It helped with 49 and 139
# million parameters.
FEW_PARAMETERS = 32_000_000


def default_threads(parameter_count: int) -> int:
    """Return the default number of threads for a model of this size."""
    return 1 if parameter_count < FEW_PARAMETERS else available_cores()


def thread_count(given: int | None) -> int:
    """Return the given number of threads or, if None, all cores; or raise ConfigurationError."""
    check_threads("num_threads", given)
    return given or available_cores()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
