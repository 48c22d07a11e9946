"""How self-attention caches change; both backends keep them in the inputs of `decode`.

Caches are float32 (rows, heads, capacity, head_size).
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bart_export.runtime.sizing import FloatArray, IntArray


class RowCopy(NamedTuple):
    """A row that is to become a copy of another one, from position `begin` to `end`."""

    row: int
    parent: int
    begin: int
    end: int

    def moved(self, rows: int) -> "RowCopy":
        """Return the copy for rows that are this much further on."""
        return self._replace(row=self.row + rows, parent=self.parent + rows)


def copy_rows(caches: Iterable[FloatArray], copied: Sequence[RowCopy]) -> None:
    """Copy rows of all caches."""
    if copied:
        for cache in caches:
            for row, parent, begin, end in copied:
                cache[row, :, begin:end] = cache[parent, :, begin:end]


def write_entries(
    caches: Sequence[tuple[FloatArray, FloatArray]], rows: Sequence[int], position: IntArray
) -> None:
    """Write outputs of `decode` into these rows of the caches, pairs of a cache and its output.

    In version 1 of the contract, an output is a whole cache.
    """
    whole = caches[0][0].shape == caches[0][1].shape
    # One assignment for all rows takes longer, even for 32.
    for row in rows:
        place = int(position[row])
        source = place if whole else 0
        for cache, output in caches:
            cache[row, :, place] = output[row, :, source]


def write_draft(cache: FloatArray, entries: FloatArray, position: int) -> None:
    """Write an output of `decode_draft` into the only row, as far as its capacity reaches."""
    room = cache[0, :, position : position + entries.shape[2]]
    room[:] = entries[0, :, : room.shape[1]]


def move_slots(old: FloatArray, new: FloatArray, kept: Sequence[int], rows: int) -> None:
    """Copy the slots in `kept`, of `rows` rows each, to the front of `new`.

    If `old` and `new` are the same array, `kept` must be in ascending order.
    """
    inner = tuple(slice(min(sizes)) for sizes in zip(old.shape[1:], new.shape[1:], strict=True))
    for index, slot in enumerate(kept):
        target = (slice(index * rows, (index + 1) * rows), *inner)
        new[target] = old[(slice(slot * rows, (slot + 1) * rows), *inner)]


def return_freed_memory() -> None:
    """Return freed memory to the system, where the C library has a function for that.

    glibc keeps freed blocks of up to 32 MiB, and the gaps between them: a process grew to twice the
    size of its caches.
    """
    malloc_trim()(0)


@functools.cache
def malloc_trim() -> Callable[[int], int]:
    """Return glibc's `malloc_trim`, or a function that does nothing."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim: Callable[[int], int] = getattr(library, "malloc_trim", int)
    return trim
