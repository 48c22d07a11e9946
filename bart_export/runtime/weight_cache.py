"""XNNPACK's packed weights on disk: a `.tflite` file's second opening takes milliseconds.

A cache is built under a temporary name and put in place whole. It is believed only if it has the
hash that this user stamped it with (`stamps`), and is built again otherwise. Caches lie in the
artifact's `.cache`, or in the user's cache directory where the artifact cannot be written, its disk
is full, or others may write its `.cache`; where neither has a place, the file is opened without.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from bart_export.artifact import stamps
from bart_export.artifact.artifact import CACHE, Artifact, sha256
from bart_export.artifact.directories import synchronize
from bart_export.errors import EngineError
from bart_export.runtime.compiled_model import litert_version

Opened = TypeVar("Opened")

# Bytes from which on a cache is not hashed at every opening but once a boot: this many take 10 ms.
LARGE = 16 << 20
# The library ends the process when the disk is full, so a cache is begun only where this many
# times the model's size is free.
ROOM = 2
ABANDONED = 600  # seconds after which an unfinished cache belongs to nobody


def open_with_cache(open_model: Callable[[str], Opened], artifact: Artifact, name: str) -> Opened:
    """Open a file of an artifact with its weight cache, building that first where it is not whole.

    `open_model` opens the model with a cache file, which it creates if it is missing; with "" it
    opens the model without one.
    """
    for cache in places(artifact, name):
        if is_whole(cache):
            return open_model(str(cache))
        if shutil.disk_usage(cache.parent).free < ROOM * artifact.manifest.files[name].bytes:
            continue
        try:
            return build(open_model, cache)
        except (OSError, EngineError):
            continue
    return open_model("")


def discard_damaged(artifact: Artifact, name: str) -> bool:
    """Hash the weight cache of a file; remove one that is not whole, and return whether it was.

    One that came along with a copied artifact has no stamp: it is unknown rather than damaged, and
    the next opening builds another in its place.
    """
    caches = [cache for cache in places(artifact, name) if os.path.lexists(cache)]
    damaged = [
        cache
        for cache in caches
        if stamps.read(cache) is not None and not is_whole(cache, rehash=True)
    ]
    for cache in damaged:
        with contextlib.suppress(OSError):
            cache.unlink()
    return bool(damaged)


def places(artifact: Artifact, name: str) -> Iterator[pathlib.Path]:
    """Yield where the weight cache of a file can be, in directories that are ours, best first."""
    user_directory = stamps.user_directory()
    if user_directory is None:
        return  # where nothing can be stamped, no cache would be believed
    key = artifact.manifest.files[name].sha256[:16]
    for directory in (artifact.directory / CACHE, user_directory):
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)
            if stamps.is_ours(directory) and os.access(directory, os.W_OK):
                yield directory / f"{key}-{fingerprint(litert_version())}.xnnpack"


def fingerprint(library: str) -> str:
    """Return a short hash of what decides how weights are packed: library and processor."""
    processor = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        processor += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{library}\n{processor}".encode()).hexdigest()[:8]


def build(open_model: Callable[[str], Opened], cache: pathlib.Path) -> Opened:
    """Open a model with a new cache and put the cache in place when it is complete."""
    for path in cache.parent.glob(f"{cache.name}.*.building"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
    writer = f"{os.getpid()}-{threading.get_ident()}"
    unfinished = cache.with_name(f"{cache.name}.{writer}.building")
    unfinished.unlink(missing_ok=True)
    opened = open_model(str(unfinished))
    # The library has mapped the file; its name may change under it.
    with contextlib.suppress(OSError):
        synchronize(unfinished)
        digest = sha256(unfinished)
        unfinished.replace(cache)
        stamps.write(cache, stamps.stamp(os.lstat(cache), digest))
    return opened


def is_whole(cache: pathlib.Path, *, rehash: bool = False) -> bool:
    """Return whether a cache is a file with the hash that it was stamped with.

    A large one that was hashed since the system started, and that nobody has touched since, is not
    read again, unless `rehash`.
    """
    stamped = stamps.read(cache)
    if stamped is None:
        return False
    try:
        status = os.lstat(cache)
        current = stamps.stamp(status, stamped.sha256)
        if not rehash and status.st_size >= LARGE and current == stamped:
            return True
        if not stat.S_ISREG(status.st_mode) or sha256(cache) != stamped.sha256:
            return False
    except OSError:
        return False
    if current != stamped:
        stamps.write(cache, current)
    return True
