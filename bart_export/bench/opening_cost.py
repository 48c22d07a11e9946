"""The time and memory of opening an exported file, each time in a new process.

The engine, the complete `Generator` and the first text are measured on the first opening (which
hashes the file and packs its weights), cold (files read from disk) and warm. The files are hard
links without weight caches, so the artifact is not changed. As a program, this module opens a file
and reports.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bart_export.artifact.artifact import CACHE, MANIFEST, Artifact, path_of
from bart_export.artifact.drafts import link
from bart_export.artifact.manifest import TfliteEntry
from bart_export.bench.measurements import (
    drop_from_page_cache,
    mapped,
    process_memory,
    random_sources,
    status_bytes,
)
from bart_export.bench.rows import MemoryRow, OpeningRow
from bart_export.errors import EngineError, last_words
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime.engine_choice import installed_versions, open_engine
from bart_export.runtime.generator import Generator
from bart_export.text.tokenizer import BartTokenizer

REPEATS = 3  # cold and warm openings, for the median
STAGES = ("engine", "generator", "text")
# An engine's first opening imports these; the import is not part of the opening.
LIBRARIES = {
    LITERT: "ai_edge_litert.compiled_model",
    TFLITE_RUNTIME: "tflite_runtime.interpreter",
}


@dataclasses.dataclass(frozen=True)
class OpeningRun:
    """A file to open, and the texts to generate with it."""

    file: str
    num_threads: int
    source: int
    num_beams: int
    new_tokens: int
    num_texts: int = 1


class Figures(NamedTuple):
    """The cost of reaching a stage while opening a file, excluding imports.

    `private_bytes` and `shared_bytes` are how much the process has grown, `process_private_bytes`
    is its private total, and `peak_bytes` its peak resident size; all four are None if unavailable.
    """

    seconds: float
    private_bytes: int | None
    shared_bytes: int | None
    process_private_bytes: int | None
    peak_bytes: int | None
    built_weight_cache: bool


def measure(directory: pathlib.Path, entry: TfliteEntry, run: OpeningRun) -> Iterator[OpeningRow]:
    """Open a file of a `linked_copy` for the first time, then cold and warm alternately.

    Cold and warm figures are medians; cold ones are None if the files stay in the page cache.
    """
    first, cold, warm = open_in_process(directory, run), [], []
    for _ in range(REPEATS):
        if drop_from_page_cache(files_read(directory, run.file)):
            cold.append(open_in_process(directory, run))
        warm.append(open_in_process(directory, run))
    openings = {"first": [first], "cold": cold if len(cold) == REPEATS else [], "warm": warm}
    for opening, runs in openings.items():
        for stage in STAGES:
            key = entry.recipe, entry.build, run.num_threads, opening, stage
            figures = zip(*(stages[stage] for stages in runs), strict=True)
            yield OpeningRow(*key, *map(median, figures))


def median(values: tuple[Any, ...]) -> Any:
    """Return the median, or None if a value is None; for booleans, whether any is true."""
    if None in values:
        return None
    return any(values) if isinstance(values[0], bool) else statistics.median_low(values)


def memory(directory: pathlib.Path, entry: TfliteEntry, run: OpeningRun) -> MemoryRow:
    """Measure the memory of a process while another process has the same file open."""
    with mapped(files_read(directory, run.file)):
        text = open_in_process(directory, run)["text"]
    work = run.num_threads, run.source, run.num_beams, run.new_tokens
    return MemoryRow(entry.recipe, entry.build, *work, text.private_bytes, text.shared_bytes)


@contextlib.contextmanager
def linked_copy(artifact: Artifact) -> Iterator[pathlib.Path]:
    """Yield a temporary copy of an artifact, made of hard links, without its caches.

    The copy of a remote artifact has the files that were asked for.
    """
    place = artifact.directory.resolve().parent
    writable = os.access(place, os.W_OK)
    with tempfile.TemporaryDirectory(
        dir=place if writable else None, prefix=".bench.", ignore_cleanup_errors=True
    ) as temporary:
        directory = pathlib.Path(temporary)
        fetched = (name for name in artifact.manifest.files if (artifact.directory / name).exists())
        for name in (MANIFEST, *fetched):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            link(path_of(artifact.directory, name), directory / name)
        yield directory


def files_read(directory: pathlib.Path, file: str) -> list[pathlib.Path]:
    """Return the paths read by an opening: the file, the tokenizer's files and weight caches."""
    stored = Artifact.open(directory).manifest.tokenizer
    caches = sorted((directory / CACHE).glob("*.xnnpack"))
    return [directory / file, directory / stored.vocabulary, directory / stored.merges, *caches]


def open_in_process(directory: pathlib.Path, run: OpeningRun) -> dict[str, Figures]:
    """Open a file in a new process and return the figures by stage, or raise EngineError."""
    before = weight_caches(directory)
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name, json.dumps([str(directory), vars(run)])],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        message = last_words(process.stderr, process.returncode)
        raise EngineError(f"Opening {run.file} in a separate process failed: {message}")
    built = weight_caches(directory) != before
    figures = json.loads(process.stdout)
    return {stage: Figures(*[*row, built]) for stage, row in zip(STAGES, figures, strict=True)}


def weight_caches(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return the inode and modification time of each weight cache, by name."""
    caches = ((path.name, path.stat()) for path in (directory / CACHE).glob("*.xnnpack"))
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in caches}


class Meter:
    """Measures this process's time and memory since its creation, except for its own readings."""

    def __init__(self) -> None:
        gc.collect()
        self.memory = process_memory()
        self.began = time.perf_counter()

    def read(self) -> tuple[float, int | None, int | None, int | None, int | None]:
        """Return the time and memory used so far: the first five fields of `Figures`."""
        reached = time.perf_counter()
        seconds, memory, peak = reached - self.began, process_memory(), status_bytes("VmHWM:")
        self.began += time.perf_counter() - reached
        if memory is None or self.memory is None:
            return seconds, None, None, None, None
        private, shared = memory
        return seconds, private - self.memory[0], shared - self.memory[1], private, peak


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
    sources = random_sources(artifact.config.vocabulary_size, run.source, run.num_texts)
    length = run.new_tokens + 1
    generator.generate_ids(sources, max_length=length, min_length=length, num_beams=run.num_beams)
    return [*stages, meter.read()]


if __name__ == "__main__":
    place, details = json.loads(sys.argv[1])
    print(json.dumps(open_and_generate(pathlib.Path(place), OpeningRun(**details))))
