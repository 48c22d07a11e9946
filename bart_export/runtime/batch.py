"""Sources that are decoded together: one call of `decode` for all of them.

Each source has a slot of `beams` rows, its own position and its own mask. The batch grows with the
sources, their lengths and their positions, and shrinks when most have ended. A source is encoded
alone, and written into its slot without touching the others.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from bart_export.config import BartConfig
from bart_export.contract import BEAMS, CAPACITY, DRAFT, ROWS, SOURCE, SOURCES, Bucket
from bart_export.runtime.caches import RowCopy
from bart_export.runtime.search import Decode
from bart_export.runtime.sizing import Buckets, Dynamic, FloatArray, IntArray, check_source

SIZED_AXES = (SOURCES, SOURCE, CAPACITY)
SHRINK_BELOW = 0.6  # of the size; resizing takes up to about a step


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a call of `decode`.

    Attributes:
        inputs: the signature's inputs that are not about the source or the caches.
        position: each row's, int32 (rows,).
        used: the rows with a beam.
        copied: what rows first copy from the caches of another one.
    """

    inputs: Mapping[str, IntArray]
    position: IntArray
    used: Sequence[int]
    copied: Sequence[RowCopy]


class Backend(Protocol):
    """An open file, with the buffers of one batch.

    A slot is a place in the batch; the decoder's sizes determine how many there are.
    """

    def resize(self, decode: Bucket, kept: Sequence[int]) -> None:
        """Resize the decoder, and move the slots in `kept`, in ascending order, to the front."""

    def admit(self, encode: Bucket, token_ids: IntArray, mask: IntArray, slot: int) -> None:
        """Encode a source and its mask, both int32 (one, source), and clear the slot's caches."""

    def decode(self, rows: Rows) -> FloatArray:
        """Decode one token per row, and write its entries into the caches.

        Returns the logits, float32 (rows, vocabulary), valid until the next call of any method.
        """

    def decode_draft(self, bucket: Bucket, token_ids: IntArray, position: int) -> FloatArray:
        """Decode a single row's tokens, int32 (draft,); return logits (draft, vocabulary)."""

    def cross(self, slot: int) -> Mapping[str, FloatArray]:
        """Return a slot's `contract.cross_tensors` by name, (1, ...) with padding."""


@dataclasses.dataclass(eq=False)
class Slot:
    """A source in a batch.

    `rows` are the rows of its beams, counted from its first; `position` is the latest decoder
    token's; `written` is the number of cached positions. `common[a][b]` is the number of leading
    positions that rows a and b have in common, because one was copied from the other or both from
    a third.
    """

    index: int
    source_length: int
    rows: list[int]
    position: int = 0
    written: int = 0
    common: list[list[int]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.common = [[0] * len(self.rows) for _ in self.rows]

    def reorder(self, beam_index: Sequence[int]) -> list[RowCopy]:
        """Give each beam a row that continues beam `beam_index[k]`.

        The first beam that continues another one takes its row. Returns the copies for the others.
        """
        parents = [self.rows[beam] for beam in beam_index]
        kept = set(parents)
        free = [row for row in self.rows if row not in kept]
        rows: list[int] = []
        copied: list[RowCopy] = []
        for parent in parents:
            if parent in kept:
                kept.remove(parent)
                rows.append(parent)
            else:
                row = free.pop()
                copied.append(RowCopy(row, parent, self.common[row][parent], self.position))
                self.share(row, parent)
                rows.append(row)
        self.rows = rows + free
        return copied

    def share(self, row: int, parent: int) -> None:
        """Update `common` for a row that becomes a copy of another one."""
        self.common[row] = self.common[parent].copy()
        for other, positions in enumerate(self.common):
            positions[row] = self.common[row][other]
        self.common[row][parent] = self.common[parent][row] = self.position


@dataclasses.dataclass(frozen=True)
class StepLogits:
    """The logits of a step by slot, valid until the batch's next call; see `Decode`.

    `logits` is (rows, vocabulary), and `rows` are the rows of a slot's beams.
    """

    logits: FloatArray
    rows: Mapping[Slot, Sequence[int]]

    def __getitem__(self, slot: Slot) -> FloatArray:
        rows = self.rows[slot]
        first, end = rows[0], rows[0] + len(rows)
        return self.logits[first:end] if [*rows] == [*range(first, end)] else self.logits[rows]


class Batch:
    """The sources that an engine decodes together."""

    def __init__(
        self, config: BartConfig, backend: Backend, sizing: Dynamic | Buckets, beams: int
    ) -> None:
        self.config, self.backend, self.sizing, self.beams = config, backend, sizing, beams
        self.bucket: Bucket | None = None
        self.slots: list[Slot] = []
        self.draft_size = 0

    def admit(self, token_ids: Sequence[int], max_length: int) -> Slot:
        """Encode a source into a free slot, to generate at most `max_length` tokens.

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
        slot = Slot(index, length, list(range(self.sizes[BEAMS])))
        self.slots.append(slot)
        return slot

    def release(self, slot: Slot) -> None:
        """Free a slot."""
        self.slots.remove(slot)

    def step(self, requests: Mapping[Slot, Decode]) -> StepLogits:
        """Decode the requests of all slots."""
        for slot, request in requests.items():
            slot.position = request.position
        draft = request.draft[: self.sizing.max_draft] if len(requests) == 1 else ()
        # A bucket is never resized; drafted tokens beyond its capacity are not cached.
        drafted = len(draft) if self.sizing.resizes else 0
        latest = max(slot.position for slot in requests)
        self.reserve(len(self.slots), 1, latest + 1 + drafted, shrink=True)
        if draft:
            ((slot, request),) = requests.items()
            assert self.bucket is not None
            bucket = self.sizing.decode_draft(self.bucket, max(1 + len(draft), self.draft_size))
            self.draft_size = bucket.sizes[DRAFT]
            # The model has no embeddings for later positions, not even for padding.
            if slot.position + self.draft_size <= self.config.max_sequence_length:
                logits = self.step_draft(bucket, slot, [*request.token_ids, *draft])
                return StepLogits(logits, {slot: range(len(logits))})
        rows, beams = self.sizes[ROWS], self.sizes[BEAMS]
        token_ids, position = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        used: dict[Slot, list[int]] = {}
        copied: list[RowCopy] = []
        for slot, request in requests.items():
            slot.written = slot.position + 1
            first = slot.index * beams
            copied += [each.moved(first) for each in slot.reorder(request.beam_index.tolist())]
            used[slot] = [first + row for row in slot.rows[: len(request.token_ids)]]
            token_ids[used[slot]] = request.token_ids
            position[first : first + beams] = slot.position
        inputs = self.shaped(token_ids, position)
        every = list(itertools.chain.from_iterable(used.values()))
        logits = self.backend.decode(Rows(inputs, position, every, copied))
        return StepLogits(logits, used)

    def shaped(self, token_ids: IntArray, position: IntArray) -> dict[str, IntArray]:
        """Return the inputs of the decoder's signature for all rows, int32 (rows,)."""
        assert self.bucket is not None
        # In version 1 of the contract, all rows share one position.
        beam_index = np.arange(len(token_ids), dtype=np.int32)
        arrays = {"decoder_token_ids": token_ids, "position": position, "beam_index": beam_index}
        inputs = {}
        for tensor in self.bucket.signature.inputs:
            if tensor.name in arrays:
                shape = [self.sizes.get(axis, 1) for axis in tensor.axes]
                inputs[tensor.name] = arrays[tensor.name][: math.prod(shape)].reshape(shape)
        return inputs

    def step_draft(self, bucket: Bucket, slot: Slot, token_ids: Sequence[int]) -> FloatArray:
        """Decode a single row's token and its draft; return logits (tokens, vocabulary)."""
        size = bucket.sizes[DRAFT]
        padded = np.pad(np.array(token_ids, np.int32), (0, size - len(token_ids)))
        logits = self.backend.decode_draft(bucket, padded, slot.position)
        slot.written = min(slot.position + size, self.sizes[CAPACITY])
        return logits[: len(token_ids)]

    def reserve(
        self, sources: int, source_length: int, capacity: int, *, shrink: bool = False
    ) -> None:
        """Resize the decoder if it is too small, or with `shrink` if it is much too large.

        It must hold `sources` sources, including running ones, of up to `source_length` tokens,
        and positions below `capacity`.
        """
        longest = max([source_length, *(slot.source_length for slot in self.slots)])
        cached = [max(slot.position + 1, slot.written) for slot in self.slots]
        capacity = max([capacity, *cached])
        needed = self.sizing.decode(sources, longest, self.beams, capacity)
        fits = all(self.sizes.get(axis, 0) >= needed.sizes[axis] for axis in SIZED_AXES)
        if not fits or (shrink and area(needed.sizes) < SHRINK_BELOW * area(self.sizes)):
            self.resize(needed)

    def resize(self, bucket: Bucket) -> None:
        """Resize the decoder, and move the sources to the front."""
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
