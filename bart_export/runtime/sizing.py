"""The sizes of a file's tensors: a request's in a dynamic build, a bucket's in a static one.

A dynamic build's caches start small and grow by half. A static build has a signature per bucket:
sources use the smallest that fits, padded and masked, with spare beams.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import (
    BEAMS,
    CAPACITY,
    DRAFT,
    ROWS,
    SOURCE,
    SOURCES,
    Bucket,
    Signature,
    Tensor,
)
from bart_export.errors import InputError, shown

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

MAX_SOURCES = 1024  # in a dynamic build
DRAFT_STEP = 4  # draft sizes are multiples, so that the decoder is rarely resized
LENGTH_STEP = 16  # lengths are multiples, so that a slightly longer source does not resize a batch
FIRST_CAPACITY = 16  # decoder positions; growing costs milliseconds once, capacity every step
# The sizes of axes, as requests name them.
LIMITED = {
    SOURCES: "The number of sources decoded together",
    SOURCE: "A source's number of tokens",
    BEAMS: "num_beams, or num_return_sequences,",
    CAPACITY: "max_length",
}


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """The sizing of a dynamic build; `signatures` are those of `contract.tflite_signatures`."""

    config: BartConfig
    signatures: Sequence[Signature]
    resizes = True

    @property
    def max_sources(self) -> int:
        """The number of sources that can be decoded together."""
        decode = self.signatures[1]
        return MAX_SOURCES if any(SOURCES in tensor.axes for tensor in decode.inputs) else 1

    @property
    def cross_tensors(self) -> Sequence[Tensor]:
        """The cross tensors as `encode` returns them."""
        return self.signatures[0].outputs

    def encode(self, source_length: int) -> Bucket:
        """Return the encoder for a source."""
        signature = self.signatures[0]
        return Bucket(signature.name, signature, {SOURCE: source_length})

    def decode(self, sources: int, source_length: int, beams: int, capacity: int) -> Bucket:
        """Return a decoder with at least these sizes, or raise InputError."""
        if sources > self.max_sources:
            raise InputError(
                f"{LIMITED[SOURCES]} must be at most {self.max_sources} with this file, received "
                f"{sources}."
            )
        decode_beams, decode_single = self.signatures[1:3]
        signature = decode_beams if beams > 1 else decode_single
        if sources > 1:
            source_length += -source_length % LENGTH_STEP
        room = FIRST_CAPACITY
        while room < capacity:
            room += max(FIRST_CAPACITY, room // 2)
        sizes = {
            SOURCES: sources,
            SOURCE: source_length,
            BEAMS: beams,
            ROWS: sources * beams,
            CAPACITY: min(room, self.config.max_sequence_length),
        }
        return Bucket(signature.name, signature, sizes)

    @property
    def max_draft(self) -> int:
        """The number of drafted tokens that can be decoded with the one before them."""
        drafts = any(DRAFT in signature.axes for signature in self.signatures)
        return self.config.max_sequence_length if drafts else 0

    def decode_draft(self, decode: Bucket, tokens: int) -> Bucket:
        """Return a decoder for at least `tokens` tokens, with the other sizes of `decode`."""
        signature = self.signatures[-1]
        tokens += -tokens % DRAFT_STEP
        sizes = {SOURCE: decode.sizes[SOURCE], CAPACITY: decode.sizes[CAPACITY], DRAFT: tokens}
        return Bucket(signature.name, signature, sizes)

    def first_capacity(self, max_length: int) -> int:
        """Return the capacity that a generation starts with, or raise InputError."""
        check_length(self.config, max_length)
        return 1


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The sizing of a static build, with an `encode` for the source length of every `decode`."""

    config: BartConfig
    buckets: Sequence[Bucket]
    resizes = False

    @property
    def max_sources(self) -> int:
        """The number of sources that can be decoded together."""
        return max(bucket.sizes.get(SOURCES, 1) for bucket in self.buckets)

    @property
    def cross_tensors(self) -> Sequence[Tensor]:
        """The cross tensors as `encode` returns them."""
        return next(b for b in self.buckets if CAPACITY not in b.sizes).signature.outputs

    @property
    def max_draft(self) -> int:
        """The number of drafted tokens that can be decoded with the one before them."""
        return max(bucket.sizes.get(DRAFT, 1) for bucket in self.buckets) - 1

    def only(self, source_length: int, num_beams: int, sources: int) -> "Buckets":
        """Return the sizing that uses only the bucket of these sizes."""
        sizes = {SOURCE: source_length, BEAMS: num_beams, SOURCES: sources}
        buckets = [
            bucket
            for bucket in self.buckets
            if all(sizes.get(axis, size) == size for axis, size in bucket.sizes.items())
            and (DRAFT not in bucket.sizes or num_beams == sources == 1)
        ]
        return Buckets(self.config, buckets)

    def encode(self, source_length: int) -> Bucket:
        """Return the smallest encoder for a source, or raise InputError."""
        return self.find({SOURCE: self.smallest(SOURCE, source_length)})

    def decode(self, sources: int, source_length: int, beams: int, capacity: int) -> Bucket:
        """Return the smallest decoder with at least these sizes, or raise InputError."""
        needed = {SOURCES: sources, SOURCE: source_length, BEAMS: beams, CAPACITY: capacity}
        return self.find({axis: self.smallest(axis, size) for axis, size in needed.items()})

    def decode_draft(self, decode: Bucket, tokens: int) -> Bucket:
        """Return the decoder for a draft, with the other sizes of `decode`."""
        sizes = {axis: decode.sizes[axis] for axis in (SOURCE, CAPACITY)}
        return self.find({**sizes, DRAFT: 1 + self.max_draft})

    def first_capacity(self, max_length: int) -> int:
        """Return the capacity that a generation starts with: all of it."""
        return max_length

    def find(self, sizes: Mapping[str, int]) -> Bucket:
        """Return the bucket with these sizes."""
        return next(
            bucket
            for bucket in self.buckets
            if all((axis in bucket.sizes) == (axis in sizes) for axis in (CAPACITY, DRAFT))
            and all(bucket.sizes.get(axis, 1) == size for axis, size in sizes.items())
        )

    def smallest(self, axis: str, needed: int) -> int:
        """Return the smallest size of an axis that is at least `needed`, or raise InputError."""
        sizes = sorted(
            {
                bucket.sizes.get(axis, 1)
                for bucket in self.buckets
                if axis == SOURCE or CAPACITY in bucket.sizes
            }
        )
        for size in sizes:
            if size >= needed:
                return size
        raise InputError(
            f"{LIMITED[axis]} must be at most {sizes[-1]} in this static build, which supports "
            f"{', '.join(map(str, sizes))}; received {needed}. A dynamic build accepts more."
        )


def sizing_of(config: BartConfig, buckets: Sequence[Bucket] | None) -> Dynamic | Buckets:
    """Return the sizing of a file with these buckets; None means a new dynamic build's."""
    buckets = contract.tflite_buckets(config) if buckets is None else buckets
    if any(bucket.sizes for bucket in buckets):
        return Buckets(config, buckets)
    return Dynamic(config, [bucket.signature for bucket in buckets])


def decoder_bytes(sizing: Dynamic | Buckets, source_length: int, beams: int, capacity: int) -> int:
    """Return the size of the decoder's inputs and outputs for one source."""
    decode = sizing.decode(1, source_length, beams, capacity)
    sizes = {**contract.sizes(sizing.config), **decode.sizes}
    tensors = (*decode.signature.inputs, *decode.signature.outputs)
    return sum(4 * math.prod(sizes[axis] for axis in tensor.axes) for tensor in tensors)


def check_source(config: BartConfig, token_ids: Sequence[int]) -> IntArray:
    """Return token ids as int32 (one, source), or raise InputError if they are invalid."""
    try:
        ids = np.asarray(token_ids if len(token_ids) else np.empty(0, np.int64))
    except (TypeError, ValueError):  # not a sequence, or lists of different lengths
        ids = np.empty(0)
    # NumPy makes integers of bools among integers.
    listed = isinstance(token_ids, (list, tuple))
    bools = listed and any(isinstance(each, (bool, np.bool_)) for each in token_ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or bools:
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
