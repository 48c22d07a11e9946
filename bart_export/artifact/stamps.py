"""Stamps: which sha256 a file had when this user hashed it, so that it is hashed once a boot.

A stamp is good for one file in one state: device, inode, size, owner, mode, times of change and
boot. Stamps lie in the user's cache directory, where no artifact can bring one along, and are
believed only if nobody else may write there.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import stat
import sys
import threading

MOST = 2048  # stamps that are kept, of some 250 bytes; an artifact has one or two for a file


@dataclasses.dataclass(frozen=True)
class Stamp:
    """The state that a file was in, and the sha256 that it had."""

    state: str
    sha256: str


def stamp(status: os.stat_result, sha256: str) -> Stamp:
    """Return the stamp of a file whose status was taken before it was hashed."""
    state = (
        *(status.st_dev, status.st_ino, status.st_size, status.st_uid, status.st_mode),
        *(status.st_mtime_ns, status.st_ctime_ns, boot()),
    )
    return Stamp(" ".join(map(str, state)), sha256)


def read(path: pathlib.Path, what: str = "") -> Stamp | None:
    """Return the stamp that a file got last, None where there is none to believe.

    `what` tells stamps of one file apart: "" is that of its content's hash.
    """
    place = stamp_path(path, what)
    try:
        return None if place is None else Stamp(**json.loads(place.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write(path: pathlib.Path, stamp: Stamp, what: str = "") -> None:
    """Keep the stamp of a file; where that cannot be, it is hashed again next time."""
    place = stamp_path(path, what)
    if place is not None:
        with contextlib.suppress(OSError):
            place.parent.mkdir(mode=0o700, exist_ok=True)
            temporary = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}")
            temporary.write_text(json.dumps(dataclasses.asdict(stamp)), encoding="utf-8")
            temporary.replace(place)
            drop_oldest(place.parent)


def drop_oldest(directory: pathlib.Path) -> None:
    """Take the oldest stamps away where there are more than `MOST`.

    Other processes may do the same, or miss one then: what it stood for is hashed once more.
    """
    ages = [(entry.stat().st_mtime_ns, entry.path) for entry in os.scandir(directory)]
    if len(ages) > MOST:
        for _, path in sorted(ages)[: -MOST * 3 // 4]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def stamp_path(path: pathlib.Path, what: str = "") -> pathlib.Path | None:
    """Return where the stamp of a file lies, None where no stamp is believed.

    A link has a stamp of its own: a benchmark of first openings reads files through new ones.
    """
    directory = user_directory()
    key = os.fsencode(os.path.abspath(path)) + what.encode()
    name = hashlib.sha256(key).hexdigest()[:32]
    return None if directory is None else directory / "stamps" / f"{name}.json"


def user_directory() -> pathlib.Path | None:
    """Return this package's part of the user's cache directory, None where it cannot be trusted."""
    try:
        directory = user_cache() / "bart-export"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter where nobody knows the user's home
        return None
    directory = directory.resolve()
    return directory if is_ours(directory) else None


def user_cache() -> pathlib.Path:
    """Return the directory where the user's programs keep what can be made again."""
    if sys.platform == "darwin":
        return pathlib.Path.home() / "Library" / "Caches"
    if os.name == "nt" and "LOCALAPPDATA" in os.environ:
        return pathlib.Path(os.environ["LOCALAPPDATA"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")


def is_ours(directory: pathlib.Path) -> bool:
    """Return whether a directory, not a link to one, is this user's and nobody else may write it.

    On Windows, where modes say nothing of it, every directory is.
    """
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    ours = os.name == "nt" or (status.st_uid == os.geteuid() and not status.st_mode & others)
    return stat.S_ISDIR(status.st_mode) and ours


@functools.cache
def boot() -> str:
    """Return what tells this boot of the system from others, "" where it does not say."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""
