"""The time and memory of opening an exported file, each time in a process of its own.

Measured are the engine alone, the whole `Generator` and the first text: for the first time (the
file is hashed and its weights are packed), cold (the system reads the files from the disk) and
warm. The artifact is opened through a copy made of links that has no weight cache yet, so that
nothing of the artifact is touched. As a program this module is the process that opens and reports.
"""

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import mmap
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bart_export.artifact.artifact import CACHE, Artifact, link
from bart_export.artifact.directories import MANIFEST
from bart_export.artifact.manifest import TfliteEntry
from bart_export.artifact.manifest_file import path_of
from bart_export.bench.measurements import random_source
from bart_export.bench.rows import MemoryRow, OpeningRow
from bart_export.errors import EngineError, last_words
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime.engines import installed_versions, open_engine
from bart_export.runtime.generator import Generator
from bart_export.text.tokenizer import BartTokenizer

SMAPS = pathlib.Path("/proc/self/smaps_rollup")
PAGE = mmap.PAGESIZE
AGAIN = 3  # cold openings, and warm ones, that the medians are of
STAGES = ("engine", "generator", "text")
# What an engine imports when it first opens a file; that is not part of opening one.
LIBRARIES = {
    LITERT: "ai_edge_litert.compiled_model",
    TFLITE_RUNTIME: "tflite_runtime.interpreter",
}


@dataclasses.dataclass(frozen=True)
class OpeningRun:
    """A file to open, and what to generate with it then."""

    file: str
    num_threads: int
    source: int
    num_beams: int
    new_tokens: int


class Figures(NamedTuple):
    """What it takes to reach a stage of an opening.

    `seconds` counts from the path on, libraries imported before. `private_bytes` and `shared_bytes`
    are by how much the process' memory grew meanwhile, `process_private_bytes` is what it came to;
    None where the system does not say.
    """

    seconds: float
    private_bytes: int | None
    shared_bytes: int | None
    process_private_bytes: int | None
    built_weight_cache: bool


def measure(directory: pathlib.Path, entry: TfliteEntry, run: OpeningRun) -> Iterator[OpeningRow]:
    """Open a file of a `linked_copy`: for the first time, and then cold and warm in turns.

    Cold and warm figures are medians over several processes; cold ones are unknown where the system
    keeps the files in its memory.

    Raises:
        EngineError: if a process fails, with what it said.
    """
    first, cold, warm = in_a_process(directory, run), [], []
    for _ in range(AGAIN):
        if drop(files_read(directory, run.file)):
            cold.append(in_a_process(directory, run))
        warm.append(in_a_process(directory, run))
    ways = {"first": [first], "cold": cold if len(cold) == AGAIN else [], "warm": warm}
    for way, found in ways.items():
        for stage in STAGES:
            about = entry.recipe, entry.build, run.num_threads, way, stage
            figures = zip(*(figures[stage] for figures in found), strict=True)
            yield OpeningRow(*about, *map(median, figures))


def median(values: tuple[Any, ...]) -> Any:
    """Return the median of a figure that may be unknown; of truths, whether one is true."""
    if None in values:
        return None
    return any(values) if isinstance(values[0], bool) else statistics.median_low(values)


def memory(directory: pathlib.Path, entry: TfliteEntry, run: OpeningRun) -> MemoryRow:
    """Measure the memory of a process beside another one that has the same file open.

    Raises:
        EngineError: if a process fails, with what it said.
    """
    with mapped(files_read(directory, run.file)):
        text = in_a_process(directory, run)["text"]
    work = run.num_threads, run.source, run.num_beams, run.new_tokens
    return MemoryRow(entry.recipe, entry.build, *work, text.private_bytes, text.shared_bytes)


@contextlib.contextmanager
def linked_copy(artifact: Artifact) -> Iterator[pathlib.Path]:
    """Make, for the length of a block, a copy of an artifact without its caches, of hard links."""
    place = artifact.directory.resolve().parent
    writable = os.access(place, os.W_OK)
    with tempfile.TemporaryDirectory(
        dir=place if writable else None, prefix=".bench.", ignore_cleanup_errors=True
    ) as temporary:
        directory = pathlib.Path(temporary)
        for name in (MANIFEST, *artifact.manifest.files):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            link(path_of(artifact.directory, name), directory / name)
        yield directory


def files_read(directory: pathlib.Path, file: str) -> list[pathlib.Path]:
    """Return the files that opening a file reads: itself, its tokenizer's and its weight cache."""
    stored = Artifact.open(directory).manifest.tokenizer
    caches = sorted((directory / CACHE).glob("*.xnnpack"))
    return [directory / file, directory / stored.vocabulary, directory / stored.merges, *caches]


def in_a_process(directory: pathlib.Path, run: OpeningRun) -> dict[str, Figures]:
    """Open in a new process and return the figures of each stage."""
    before = weight_caches(directory)
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name, json.dumps([str(directory), vars(run)])],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        message = last_words(process.stderr, process.returncode)
        raise EngineError(f"Opening {run.file} in a process of its own failed: {message}")
    built = weight_caches(directory) != before
    figures = json.loads(process.stdout)
    return {stage: Figures(*[*row, built]) for stage, row in zip(STAGES, figures, strict=True)}


def weight_caches(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return the weight caches of an artifact: name -> inode and time of change."""
    caches = ((path.name, path.stat()) for path in (directory / CACHE).glob("*.xnnpack"))
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in caches}


class Meter:
    """Counts seconds and memory of this process from the time it is made, reading not included."""

    def __init__(self) -> None:
        gc.collect()
        self.memory = process_memory()
        self.began = time.perf_counter()

    def read(self) -> tuple[float, int | None, int | None, int | None]:
        """Return the first four figures of a stage that has been reached."""
        reached = time.perf_counter()
        seconds, memory = reached - self.began, process_memory()
        self.began += time.perf_counter() - reached
        if memory is None or self.memory is None:
            return seconds, None, None, None
        private, shared = memory
        return seconds, private - self.memory[0], shared - self.memory[1], private


def open_and_generate(directory: pathlib.Path, run: OpeningRun) -> list[object]:
    """Open a file as a user's program does, and return the figures of each stage."""
    with native_stderr_silenced():
        importlib.import_module(LIBRARIES[next(iter(installed_versions()), LITERT)])
    meter = Meter()
    artifact = Artifact.open(directory)
    engine = open_engine(artifact, run.file, num_threads=run.num_threads)
    stages: list[object] = [meter.read()]
    tokenizer = BartTokenizer.from_artifact(artifact)
    length = artifact.manifest.encoder_sequence_length
    generator = Generator(tokenizer, engine, artifact.generation, length)
    stages.append(meter.read())
    source = random_source(artifact.config.vocabulary_size, run.source)
    length = run.new_tokens + 1
    generator.generate_ids(source, max_length=length, min_length=length, num_beams=run.num_beams)
    return [*stages, meter.read()]


def process_memory() -> tuple[int, int] | None:
    """Return the private and the shared memory of this process in bytes, None if it is unknown.

    See proc_pid_smaps(5), whose figures are in KiB. Shared are pages of files, libraries among
    them, that another process has mapped as well. Pages of a mapped file that nobody else has
    mapped are private: they are clean, and the system may drop them.
    """
    try:
        lines = SMAPS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {name: 1024 * int(size) for name, size, *_ in map(str.split, lines[1:])}
    private = sizes["Private_Clean:"] + sizes["Private_Dirty:"]
    return private, sizes["Shared_Clean:"] + sizes["Shared_Dirty:"]


def drop(paths: Iterable[pathlib.Path]) -> bool:
    """Drop files from the page cache; return whether all of them are gone.

    posix_fadvise(2): POSIX_FADV_DONTNEED drops pages that are clean and mapped by nobody, and needs
    no privilege. Some file systems keep their pages (tmpfs), and some systems have no such call.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    try:
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if resident(path):
                return False
    except OSError:
        return False
    return True


def resident(path: pathlib.Path) -> int:
    """Return how many pages of a file are in the page cache, by mincore(2).

    Raises:
        OSError: where the system does not say.
    """
    size = path.stat().st_size
    if not size:
        return 0
    file = np.memmap(path, mode="r")
    pages = np.empty(-(-size // PAGE), np.uint8)
    library: Any = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "mincore") or library.mincore(
        ctypes.c_void_p(file.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
    ):
        raise OSError(ctypes.get_errno(), "mincore failed", str(path))
    return int((pages & 1).sum())


@contextlib.contextmanager
def mapped(paths: Iterable[pathlib.Path]) -> Iterator[None]:
    """Map files into memory for the length of a block, as another process that has them open would.

    What a process of the block maps of them then counts as shared, not as its own.
    """
    files = [np.memmap(path, mode="r") for path in paths if path.stat().st_size]
    for file in files:
        file[::PAGE].sum()  # reads a byte of every page
    yield


if __name__ == "__main__":
    place, details = json.loads(sys.argv[1])
    print(json.dumps(open_and_generate(pathlib.Path(place), OpeningRun(**details))))
