"""Stamps: cached file hashes, so that a file is hashed once per boot.

A stamp is valid for one state of a file: device, inode, size, owner, mode, modification times and
boot. Stamps are in the user's cache directory, which no artifact can write, and are trusted only if
no other user can write there.
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

MOST = 2048  # stamps to keep, about 250 bytes each; artifacts need one or two per file


@dataclasses.dataclass(frozen=True)
class Stamp:
    """A file's state and its sha256 at that time."""

    state: str
    sha256: str


def stamp(status: os.stat_result, sha256: str) -> Stamp:
    """Return the stamp of a file; its status must have been read before it was hashed."""
    state = (
        *(status.st_dev, status.st_ino, status.st_size, status.st_uid, status.st_mode),
        *(status.st_mtime_ns, status.st_ctime_ns, boot()),
    )
    return Stamp(" ".join(map(str, state)), sha256)


def read(path: pathlib.Path, what: str = "") -> Stamp | None:
    """Return a file's last stamp, or None if there is no trusted one.

    A file has one stamp for each value of `what`; "" is for the hash of its content.
    """
    place = stamp_path(path, what)
    try:
        return None if place is None else Stamp(**json.loads(place.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write(path: pathlib.Path, stamp: Stamp, what: str = "") -> None:
    """Store a file's stamp; if that fails, the file is hashed again next time."""
    place = stamp_path(path, what)
    if place is not None:
        with contextlib.suppress(OSError):
            place.parent.mkdir(mode=0o700, exist_ok=True)
            temporary = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}")
            temporary.write_text(json.dumps(dataclasses.asdict(stamp)), encoding="utf-8")
            temporary.replace(place)
            drop_oldest(place.parent)


def drop_oldest(directory: pathlib.Path) -> None:
    """Remove the oldest stamps if there are more than `MOST`.

    Other processes may be doing the same; one that finds a stamp missing hashes the file again.
    """
    ages = [(entry.stat().st_mtime_ns, entry.path) for entry in os.scandir(directory)]
    if len(ages) > MOST:
        for _, path in sorted(ages)[: -MOST * 3 // 4]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def stamp_path(path: pathlib.Path, what: str = "") -> pathlib.Path | None:
    """Return the path of a file's stamp, or None if stamps cannot be trusted.

    A link gets its own stamp, because the benchmark of first openings reads files through links.
    """
    directory = user_directory()
    key = os.fsencode(os.path.abspath(path)) + what.encode()
    name = hashlib.sha256(key).hexdigest()[:32]
    return None if directory is None else directory / "stamps" / f"{name}.json"


def user_directory() -> pathlib.Path | None:
    """Return this package's directory in the user's cache, or None if it cannot be trusted."""
    try:
        directory = user_cache() / "bart-export"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the home directory is unknown
        return None
    directory = directory.resolve()
    return directory if is_ours(directory) else None


def user_cache() -> pathlib.Path:
    """Return the user's cache directory."""
    if sys.platform == "darwin":
        return pathlib.Path.home() / "Library" / "Caches"
    if os.name == "nt" and "LOCALAPPDATA" in os.environ:
        return pathlib.Path(os.environ["LOCALAPPDATA"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")


def is_ours(directory: pathlib.Path) -> bool:
    """Return whether a path is a directory, not a link, that only this user can write.

    On Windows, where modes do not show this, every directory is accepted.
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
    """Return an identifier of this boot of the system, or "" if it has none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""
