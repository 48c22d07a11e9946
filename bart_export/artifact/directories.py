"""Directories that replace each other, for an artifact's drafts.

Whoever replaces a directory works in a *place* beside it: a directory with an unpredictable name
and a `MARKER` inside that says whose it is. The marker is locked while its process lives, so that
what a killed one left is told from live work. Links are never followed, and what is not marked is
never touched.
"""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bart_export.errors import ArtifactError

fcntl: Any = None
with contextlib.suppress(ImportError):
    # Windows: two exports to one place are not refused, and a killed one's place is not cleared.
    import fcntl

MANIFEST = "manifest.json"
MARKER = "bart-export.draft"
SUFFIX = ".draft"
# What lies in a place under these names is an artifact: the new one, then the one it replaced; and
# that one between two renames.
ARTIFACT, PREVIOUS = "artifact", "previous"
PATIENCE = 5.0  # seconds to wait until another process has found its own place


@contextlib.contextmanager
def place_beside(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Make a place beside `target` for a block; clear those of the dead, or raise ArtifactError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with alone_in(target.parent):
            for left in places(target):
                clear(left, target)
            place = pathlib.Path(
                tempfile.mkdtemp(prefix=prefix(target), suffix=SUFFIX, dir=target.parent)
            )
            stack.callback(remove, place)
            descriptor = os.open(place / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            stack.callback(os.close, descriptor)
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, json.dumps({"target": target.name, "pid": os.getpid()}).encode())
        yield place


@contextlib.contextmanager
def alone_in(directory: pathlib.Path) -> Iterator[None]:
    """Lock a directory for a block, where that can be.

    Otherwise two exports may begin at one moment; the later then replaces the earlier.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            ending = time.monotonic() + PATIENCE
            while fcntl is not None and not locked(descriptor) and time.monotonic() < ending:
                time.sleep(0.02)
        yield


def locked(descriptor: int) -> bool:
    """Lock an open file for this process; return whether it could be, as no other has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def prefix(target: pathlib.Path) -> str:
    """Return how the names of places for a target begin; a long name would leave no room."""
    return f".{target.name[:50]}."


def places(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the directories of ours beside a target that are named as its places are."""
    pattern = re.compile(re.escape(prefix(target)) + r"[a-z0-9_]{8}" + re.escape(SUFFIX))
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    for path in sorted(target.parent.iterdir()):
        if pattern.fullmatch(path.name):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode) and status.st_uid == user:
                    yield path


def clear(place: pathlib.Path, target: pathlib.Path) -> None:
    """Remove what a dead process left, or raise ArtifactError if it lives.

    An artifact that it was just replacing is put back.
    """
    try:
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(place / MARKER, flags)
    except FileNotFoundError:
        with contextlib.suppress(OSError):  # killed before its mark; only what is empty goes
            place.rmdir()
        return
    except OSError:
        return
    try:
        if fcntl is None or not is_mark(descriptor, target):
            return
        if not locked(descriptor):
            raise ArtifactError(
                f"Another export is writing {target}, in {place}. Wait for it, or name another "
                "--output."
            )
        if (place / PREVIOUS).is_dir() and not os.path.lexists(target):
            (place / PREVIOUS).rename(target)
        remove(place)
    finally:
        os.close(descriptor)


def is_mark(descriptor: int, target: pathlib.Path) -> bool:
    """Return whether an open file marks a place for a target; an empty one was not yet written."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    content = os.read(descriptor, 4096)
    try:
        mark = json.loads(content or b"{}")
    except ValueError:
        return False
    return isinstance(mark, dict) and mark.get("target", target.name) == target.name


def remove(place: pathlib.Path) -> None:
    """Remove a place, its marker last, so that the rest can be told whose it was."""
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.name != MARKER:
                discard(path)
        (place / MARKER).unlink(missing_ok=True)
        place.rmdir()


def discard(path: pathlib.Path) -> None:
    """Remove a file or a directory, of an artifact the manifest first: half of it is none."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


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
    """Swap two directories at once where the system can, else with renames.

    A process killed between those leaves the old directory as `PREVIOUS`.
    """
    call = EXCHANGES.get(sys.platform)
    library = ctypes.CDLL(None, use_errno=True) if call else None
    if call and library and hasattr(library, call[0]):
        name, current, flag = call
        paths = os.fsencode(new), os.fsencode(old)
        if getattr(library, name)(current, paths[0], current, paths[1], flag) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = new.with_name(PREVIOUS)
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


# System call that swaps two paths, the "current directory" argument, and the flag that asks for it.
EXCHANGES = {
    "linux": ("renameat2", -100, 2),  # AT_FDCWD, RENAME_EXCHANGE
    "darwin": ("renameatx_np", -2, 2),  # AT_FDCWD, RENAME_SWAP
}
