"""XNNPACK's packed weights on disk, which let a `.tflite` file open in milliseconds.

A cache is built under a temporary name, then renamed, and is used only while it has the hash in
this user's stamp (`stamps`). Caches are in the artifact's `.cache`, or in the user's cache
directory if the artifact is read-only, its disk is full, or other users can write its `.cache`. If
neither is possible, files are opened without a cache.
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

from bart_export import documents
from bart_export.artifact import stamps
from bart_export.artifact.artifact import CACHE, Artifact, sha256
from bart_export.errors import EngineError
from bart_export.runtime.compiled_model import litert_version
from bart_export.runtime.engine import processor_features

Opened = TypeVar("Opened")

# Caches from this size (bytes; 10 ms to hash) are hashed once per boot, not at each opening.
LARGE = 16 << 20
# XNNPACK kills the process if the disk is full, so this multiple of the model's size must be free.
ROOM = 2
ABANDONED = 600  # seconds after which an unfinished cache is removed


def open_with_cache(open_model: Callable[[str], Opened], artifact: Artifact, name: str) -> Opened:
    """Open a file of an artifact with its weight cache, which is built if it is not valid.

    `open_model` opens the model with the cache file that it is given, creating it if it does not
    exist, or without a cache for "".
    """
    for cache in places(artifact, name):
        if is_valid(cache):
            return open_model(str(cache))
        if shutil.disk_usage(cache.parent).free < ROOM * artifact.manifest.files[name].bytes:
            continue
        try:
            return build(open_model, cache)
        except (OSError, EngineError):
            continue
    return open_model("")


def discard_damaged(artifact: Artifact, name: str) -> bool:
    """Hash a file's weight caches; remove damaged ones, and return whether there were any.

    The next opening replaces a cache without a stamp, such as one in a copied artifact.
    """
    caches = [cache for cache in places(artifact, name) if os.path.lexists(cache)]
    damaged = [
        cache
        for cache in caches
        if stamps.read(cache) is not None and not is_valid(cache, rehash=True)
    ]
    for cache in damaged:
        with contextlib.suppress(OSError):
            cache.unlink()
    return bool(damaged)


def places(artifact: Artifact, name: str) -> Iterator[pathlib.Path]:
    """Yield the possible paths of a file's weight cache, in this user's directories, best first."""
    user_directory = stamps.user_directory()
    if user_directory is None:
        return  # without stamps, no cache is valid
    key = artifact.manifest.files[name].sha256[:16]
    for directory in (artifact.directory / CACHE, user_directory):
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)
            if stamps.is_ours(directory) and os.access(directory, os.W_OK):
                yield directory / f"{key}-{fingerprint(litert_version())}.xnnpack"


def fingerprint(library: str) -> str:
    """Return a short hash of the library and processor, which determine how weights are packed."""
    processor = platform.machine() + processor_features()
    return hashlib.sha256(f"{library}\n{processor}".encode()).hexdigest()[:8]


def build(open_model: Callable[[str], Opened], cache: pathlib.Path) -> Opened:
    """Open a model with a new cache, then rename the cache and stamp it."""
    for path in cache.parent.glob(f"{cache.name}.*.building"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
    writer = f"{os.getpid()}-{threading.get_ident()}"
    unfinished = cache.with_name(f"{cache.name}.{writer}.building")
    unfinished.unlink(missing_ok=True)
    opened = open_model(str(unfinished))
    # XNNPACK has mapped the file, which can still be renamed.
    with contextlib.suppress(OSError):
        documents.synchronize(unfinished)
        digest = sha256(unfinished)
        unfinished.replace(cache)
        stamps.write(cache, stamps.stamp(os.lstat(cache), digest))
    return opened


def is_valid(cache: pathlib.Path, *, rehash: bool = False) -> bool:
    """Return whether a cache is a regular file that still has the hash in its stamp.

    Unless `rehash`, a large cache is not hashed again if it was hashed since boot and is unchanged.
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
