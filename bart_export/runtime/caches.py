"""How self-attention caches change; both backends keep them in the inputs of `decode`.

Caches are float32 (rows, heads, capacity, head_size).
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Mapping, Sequence

from bart_export.runtime.sizing import FloatArray, IntArray


def copy_rows(cache: FloatArray, copied: Mapping[int, int], position: IntArray) -> None:
    """Overwrite the keys of `copied` with their values; both are rows."""
    for row, parent in copied.items():
        length = position[row]
        cache[row, :, :length] = cache[parent, :, :length]


def write_entries(
    cache: FloatArray, outputs: FloatArray, rows: IntArray, position: IntArray
) -> None:
    """Write an output of `decode` into these rows of a cache.

    In version 1 of the contract, the output is a whole cache.
    """
    whole = outputs.shape[2] == cache.shape[2]
    # One assignment for all rows takes longer, even for 32.
    for row, place in zip(rows.tolist(), position[rows].tolist(), strict=True):
        cache[row, :, place] = outputs[row, :, place if whole else 0]


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
