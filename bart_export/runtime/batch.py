"""Sources that are decoded together: one call of `decode` for all of them.

Each source has a slot of `beams` rows, its own position and its own mask. The batch grows with the
sources, their lengths and their positions, and shrinks when most have ended. A source is encoded
alone, and written into its slot without touching the others.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from bart_export.config import BartConfig
from bart_export.contract import BEAMS, CAPACITY, ROWS, SOURCE, SOURCES, Bucket
from bart_export.runtime.sizing import Buckets, Dynamic, FloatArray, IntArray, check_source

RESERVED = (SOURCES, SOURCE, CAPACITY)
FEWER = 0.6  # resizing copies the caches, which takes about as long as five steps

# Rows of a request: token ids and beam indices within its slot, both int32 (beams,).
Rows = tuple[IntArray, IntArray]


class Backend(Protocol):
    """An open file, with the buffers of one batch.

    `slots` are places in a batch; a decoder's sizes say how many there are.
    """

    def resize(self, decode: Bucket, kept: Sequence[int]) -> None:
        """Give the decoder other sizes; the kept slots, in ascending order, become the first."""

    def admit(self, encode: Bucket, token_ids: IntArray, mask: IntArray, slot: int) -> None:
        """Encode a source, int32 (one, source) with its mask, into a slot with empty caches."""

    def decode(self, token_ids: IntArray, position: IntArray, beam_index: IntArray) -> FloatArray:
        """Decode one token per row, int32 (rows,); return logits, float32 (rows, vocabulary)."""

    def cross(self, slot: int) -> Mapping[str, FloatArray]:
        """Return a slot's `contract.cross_tensors` by name, (1, ...) with padding."""


@dataclasses.dataclass(eq=False)
class Slot:
    """A source in a batch: its index, its number of tokens, and its next decoder position."""

    index: int
    source_length: int
    position: int = 0


class Batch:
    """The sources that run in an engine's `decode`."""

    def __init__(
        self, config: BartConfig, backend: Backend, sizing: Dynamic | Buckets, beams: int
    ) -> None:
        self.config, self.backend, self.sizing, self.beams = config, backend, sizing, beams
        self.bucket: Bucket | None = None
        self.slots: list[Slot] = []

    def admit(self, token_ids: Sequence[int], max_length: int) -> Slot:
        """Encode a source of at most `max_length` decoder tokens into a free slot.

        Raises:
            InputError: if the source is invalid or does not fit.
        """
        ids = check_source(self.config, token_ids)
        length = ids.shape[1]
        self.reserve(len(self.slots) + 1, length, self.sizing.first_capacity(max_length))
        encode = self.sizing.encode(length)
        padding = ((0, 0), (0, encode.sizes[SOURCE] - length))
        used = {slot.index for slot in self.slots}
        index = next(index for index in range(len(used) + 1) if index not in used)
        self.backend.admit(encode, np.pad(ids, padding), np.pad(np.ones_like(ids), padding), index)
        slot = Slot(index, length)
        self.slots.append(slot)
        return slot

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        self.slots.remove(slot)

    def step(self, requests: Mapping[Slot, Rows]) -> dict[Slot, FloatArray]:
        """Decode one token per beam of each source; return its logits, (beams, vocabulary).

        `requests` has all slots.
        """
        self.reserve(len(self.slots), 1, 1)
        rows, beams = self.sizes[ROWS], self.sizes[BEAMS]
        token_ids, position = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        beam_index = np.arange(rows, dtype=np.int32)
        for slot, (tokens, parents) in requests.items():
            first = slot.index * beams
            used = slice(first, first + len(tokens))
            token_ids[used], beam_index[used] = tokens, first + parents
            position[first : first + beams] = slot.position
        logits = self.backend.decode(token_ids, position, beam_index)
        results = {}
        for slot, (tokens, _) in requests.items():
            slot.position += 1
            first = slot.index * beams
            results[slot] = logits[first : first + len(tokens)]
        return results

    def reserve(self, sources: int, source_length: int, capacity: int) -> None:
        """Resize the decoder for a number of sources of up to a length, counting running ones.

        Positions below `capacity` fit. A decoder that is much too large is resized, too.
        """
        longest = max([source_length, *(slot.source_length for slot in self.slots)])
        capacity = max([capacity, *(slot.position + 1 for slot in self.slots)])
        needed = self.sizing.decode(sources, longest, self.beams, capacity)
        fits = all(self.sizes.get(axis, 0) >= needed.sizes[axis] for axis in RESERVED)
        if not fits or area(needed.sizes) < FEWER * area(self.sizes):
            self.resize(needed)

    def resize(self, bucket: Bucket) -> None:
        """Resize the decoder, and move the sources to its first slots."""
        self.slots.sort(key=operator.attrgetter("index"))
        self.backend.resize(bucket, [slot.index for slot in self.slots])
        self.bucket = bucket
        for index, slot in enumerate(self.slots):
            slot.index = index

    @property
    def sizes(self) -> Mapping[str, int]:
        """The decoder's sizes."""
        return {} if self.bucket is None else self.bucket.sizes


def area(sizes: Mapping[str, int]) -> int:
    """Return the number of source positions, including padding."""
    return sizes[SOURCES] * sizes[SOURCE]
