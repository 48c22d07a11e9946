"""Directories that take each other's place: what an artifact's drafts need of a file system.

Paths go in; locks, flushes, swaps and removals happen. What lies in a directory is not known here,
but for the manifest, which goes first where an artifact goes.
"""

import contextlib
import ctypes
import errno
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from bart_export.errors import ArtifactError

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows: two exports to one place are not refused there
    import fcntl

MANIFEST = "manifest.json"


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Hold the draft for this process; the lock ends with the process, however it ends."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ArtifactError(
            f"Another export is writing {directory}. Wait for it, or name another --output."
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def empty(directory: pathlib.Path) -> None:
    """Remove everything inside a directory."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def synchronize(path: pathlib.Path) -> None:
    """Have the system write a file or directory to the disk before what follows."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: pathlib.Path, old: pathlib.Path) -> None:
    """Swap two directories at once where the system can, else with two renames."""
    call = EXCHANGES.get(sys.platform)
    library = ctypes.CDLL(None, use_errno=True) if call else None
    if call and library and hasattr(library, call[0]):
        name, here, flag = call
        paths = os.fsencode(new), os.fsencode(old)
        if getattr(library, name)(here, paths[0], here, paths[1], flag) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = previous(old)
    discard(aside)
    old.rename(aside)
    new.rename(old)
    discard(aside)


def discard(directory: pathlib.Path) -> None:
    """Remove an artifact, its manifest first, so that half of it is never taken for a whole one."""
    with contextlib.suppress(OSError):
        (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def previous(target: pathlib.Path) -> pathlib.Path:
    """Return where an artifact lies between two renames; an export killed there is undone later."""
    return target.with_name(f".{target.name}.previous")


# System call that swaps two paths, the "current directory" argument, and the flag that asks for it.
EXCHANGES = {
    "linux": ("renameat2", -100, 2),  # AT_FDCWD, RENAME_EXCHANGE
    "darwin": ("renameatx_np", -2, 2),  # AT_FDCWD, RENAME_SWAP
}
