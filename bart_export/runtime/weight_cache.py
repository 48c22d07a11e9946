"""XNNPACK's packed weights on disk: a `.tflite` file's second opening takes milliseconds.

In goes a file of an artifact and a way to open it with a given cache file; out comes what the
opening returned. A cache is built under a temporary name and put in place whole, with a record of
what it should look like; one that is stale (another model, library or processor), torn or altered
is built again. Caches lie in the artifact's `.cache`, or in the user's cache directory where the
artifact cannot be written or its disk is full; where neither has a place, the file is opened
without one. How LiteRT opens a file is not known here.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from bart_export.artifact import CACHE, Artifact, replace_file
from bart_export.directories import synchronize
from bart_export.errors import EngineError
from bart_export.runtime import litert

Opened = TypeVar("Opened")

SAMPLES = 64  # pages of a cache that its record describes: hashing all would cost what it saves
PAGE = 4096
# The library ends the process when the disk is full, so a cache is begun only where this many
# times the model's size is free.
ROOM = 2
ABANDONED = 600  # seconds after which an unfinished cache belongs to nobody


def open_with_cache(open_model: Callable[[str], Opened], artifact: Artifact, name: str) -> Opened:
    """Open a file of an artifact with its weight cache, building that first where it is not whole.

    Args:
        open_model: opens the model with a cache file, which it creates if it is missing; with ""
            it opens it without one.
        artifact: where the file is; its cache is about as large as the file.
        name: the file's, in the manifest.
    """
    entry = artifact.manifest["files"][name]
    key = f"{entry['sha256'][:16]}-{fingerprint(litert.library())}"
    for directory in directories(artifact.directory):
        cache = directory / f"{key}.xnnpack"
        if is_whole(cache):
            return open_model(str(cache))
        if shutil.disk_usage(directory).free < ROOM * entry["bytes"]:
            continue
        try:
            return build(open_model, cache)
        except (OSError, EngineError):
            continue
    return open_model("")


def directories(artifact_directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the places for a cache that can be made, best first."""
    for directory in (artifact_directory / CACHE, user_cache() / "bart-export"):
        with contextlib.suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            if os.access(directory, os.W_OK):
                yield directory


def user_cache() -> pathlib.Path:
    """Return the directory where the user's programs keep what can be made again."""
    if sys.platform == "darwin":
        return pathlib.Path.home() / "Library" / "Caches"
    if os.name == "nt" and "LOCALAPPDATA" in os.environ:
        return pathlib.Path(os.environ["LOCALAPPDATA"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")


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
        replace_file(record_path(cache), json.dumps(describe(unfinished)).encode())
        unfinished.replace(cache)
    return opened


def is_whole(cache: pathlib.Path) -> bool:
    """Return whether a cache is what its record says."""
    try:
        record = json.loads(record_path(cache).read_bytes())
        return bool(record == describe(cache))
    except (OSError, ValueError):
        return False


def record_path(cache: pathlib.Path) -> pathlib.Path:
    """Return where the record of a cache lies."""
    return cache.with_name(f"{cache.name}.json")


def describe(cache: pathlib.Path) -> dict[str, object]:
    """Return the size of a cache and a hash over pages spread evenly over it."""
    digest = hashlib.sha256()
    with cache.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for sample in range(SAMPLES):
            file.seek(max(0, size - PAGE) * sample // (SAMPLES - 1))
            digest.update(file.read(PAGE))
    return {"bytes": size, "sampled_sha256": digest.hexdigest()}
