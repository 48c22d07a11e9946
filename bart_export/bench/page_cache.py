"""Files in the system's memory: dropped from it, so that a load is cold, or held by two processes.

Paths go in; whether the system did what was asked comes out. What is in them is not known here.
"""

import contextlib
import ctypes
import mmap
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

PAGE = mmap.PAGESIZE


def drop(paths: Iterable[pathlib.Path]) -> bool:
    """Drop files from the system's memory; return whether all of them are gone.

    posix_fadvise(2): POSIX_FADV_DONTNEED drops pages that are clean and mapped by nobody, and needs
    no privilege. Some file systems keep their pages (tmpfs), and some systems have no such call.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    return all([drop_one(path) for path in paths])


def drop_one(path: pathlib.Path) -> bool:
    """Drop a file from the system's memory; return whether it is gone."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return resident(path) == 0
    except OSError:
        return False


def resident(path: pathlib.Path) -> int:
    """Return how many pages of a file are in the system's memory, by mincore(2).

    Raises:
        OSError: where the system does not say.
    """
    size = path.stat().st_size
    if not size:
        return 0
    pages = (ctypes.c_ubyte * -(-size // PAGE))()
    # ctypes takes the address of writable memory only; a private copy is, and nothing is written.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        library: Any = ctypes.CDLL(None, use_errno=True)
        failed = not hasattr(library, "mincore") or library.mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages
        )
        del start  # a mapping that something points into cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed", str(path))
    return sum(page & 1 for page in pages)


@contextlib.contextmanager
def held(paths: Iterable[pathlib.Path]) -> Iterator[None]:
    """Map files, whole, for the length of a block, as another process that has them open would.

    What a process of the block maps of them then counts as shared, not as its own.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            if not path.stat().st_size:
                continue
            file = stack.enter_context(path.open("rb"))
            mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            mapped[::PAGE]  # reads a byte of every page
        yield
