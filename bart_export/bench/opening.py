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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bart_export.artifact.artifact import CACHE, Artifact, link
from bart_export.artifact.directories import MANIFEST
from bart_export.artifact.manifest_file import path_of
from bart_export.bench.measurements import random_source
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


@dataclasses.dataclass(frozen=True)
class StageFigures:
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


Stages = dict[str, StageFigures]


def measure(directory: pathlib.Path, run: OpeningRun) -> dict[str, Stages | None]:
    """Open a file of a `linked_copy`: for the first time, and then cold and warm in turns.

    Returns:
        The figures of "first", "cold" (None where the system keeps the files in its memory) and
        "warm", the latter two medians over several processes.

    Raises:
        EngineError: if a process fails, with what it said.
    """
    first = in_a_process(directory, run)
    cold, warm = [], []
    for _ in range(AGAIN):
        if drop(files_read(directory, run.file)):
            cold.append(in_a_process(directory, run))
        warm.append(in_a_process(directory, run))
    return {
        "first": first,
        "cold": medians(cold) if len(cold) == AGAIN else None,
        "warm": medians(warm),
    }


def memory(directory: pathlib.Path, run: OpeningRun) -> StageFigures:
    """Return the figures of a text beside another process that has the same file open.

    Raises:
        EngineError: if a process fails, with what it said.
    """
    with mapped(files_read(directory, run.file)):
        return in_a_process(directory, run)["text"]


def medians(rows: Sequence[Stages]) -> Stages:
    """Return the median of each figure; of the weight cache, whether one of the rows built it."""

    def middle(values: tuple[Any, ...]) -> Any:
        if values[0] is None:
            return None
        return any(values) if isinstance(values[0], bool) else statistics.median_low(values)

    return {
        stage: StageFigures(
            *map(middle, zip(*(dataclasses.astuple(row[stage]) for row in rows), strict=True))
        )
        for stage in rows[0]
    }


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


def in_a_process(directory: pathlib.Path, run: OpeningRun) -> Stages:
    """Open in a new process and return its figures."""
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
    return {stage: StageFigures(*[*row, built]) for stage, row in zip(STAGES, figures, strict=True)}


def weight_caches(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return the weight caches of an artifact: name -> inode and time of change."""
    caches = ((path.name, path.stat()) for path in (directory / CACHE).glob("*.xnnpack"))
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in caches}


class Meter:
    """Counts seconds and memory of this process from the time it is made, reading not included."""

    def __init__(self) -> None:
        gc.collect()
        self.private, self.shared = process_memory("Private"), process_memory("Shared")
        self.began = time.perf_counter()

    def read(self) -> tuple[float, int | None, int | None, int | None]:
        """Return the first four figures of a stage that has been reached."""
        reached = time.perf_counter()
        private, shared = process_memory("Private"), process_memory("Shared")
        seconds = reached - self.began
        self.began += time.perf_counter() - reached
        return seconds, difference(private, self.private), difference(shared, self.shared), private


def difference(now: int | None, before: int | None) -> int | None:
    """Return by how much a figure grew, None where it is not known."""
    return None if now is None or before is None else now - before


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


def process_memory(kind: str) -> int | None:
    """Return the "Private" or "Shared" memory of this process in bytes, None where it is unknown.

    See proc_pid_smaps(5), whose figures are in KiB. Shared are pages of files, libraries among
    them, that another process has mapped as well. Pages of a mapped file that nobody else has
    mapped are private: they are clean, and the system may drop them.
    """
    try:
        lines = SMAPS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = f"{kind}_Clean:", f"{kind}_Dirty:"
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(fields))


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
def mapped(paths: Iterable[pathlib.Path]) -> Iterator[None]:
    """Map files into memory for the length of a block, as another process that has them open would.

    What a process of the block maps of them then counts as shared, not as its own.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            if not path.stat().st_size:
                continue
            file = stack.enter_context(path.open("rb"))
            mapping = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            mapping[::PAGE]  # reads a byte of every page
        yield


if __name__ == "__main__":
    place, details = json.loads(sys.argv[1])
    print(json.dumps(open_and_generate(pathlib.Path(place), OpeningRun(**details))))
