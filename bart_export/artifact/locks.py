"""Locks that processes hold on files and directories, on systems that have them."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

fcntl: Any = None
with contextlib.suppress(ImportError):  # of Windows
    import fcntl

AVAILABLE = fcntl is not None


def lock(descriptor: int) -> bool:
    """Lock an open file without waiting; return False if another process holds the lock.

    Without locks on this system, nothing is locked and the result is True.
    """
    if AVAILABLE:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.contextmanager
def locked_directory(directory: pathlib.Path, patience: float) -> Iterator[bool]:
    """Lock a directory while a block runs, and yield whether the system could.

    Without the lock, two exports may start at the same time; the later one then wins. `patience` is
    the time in seconds to wait for the lock.
    """
    locked = False
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            ending = time.monotonic() + patience
            while AVAILABLE and not (locked := lock(descriptor)):
                if time.monotonic() > ending:
                    break
                time.sleep(0.02)
        yield locked
