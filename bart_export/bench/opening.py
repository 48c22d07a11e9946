"""What opening an exported file costs, each time in a process of its own.

An artifact and a file's name go in; seconds and memory come out, for the engine alone, for the
whole `Generator`, and until the first text is there: the first time (the file is hashed and its
weights are packed), cold (the system has to read the files from the disk) and warm. The artifact is
measured through a copy, made of links, that has no weight cache yet, so that nothing of the
artifact is touched. As a program this module is the process that opens and reports.
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
from typing import Any

from bart_export.artifact.artifact import CACHE, Artifact, link
from bart_export.artifact.directories import MANIFEST
from bart_export.artifact.manifest_file import path_of
from bart_export.bench import page_cache
from bart_export.bench.machine import private_bytes, shared_bytes
from bart_export.bench.work import forced, random_source
from bart_export.errors import EngineError, last_words
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime.engines import installed_versions, open_engine
from bart_export.runtime.generator import Generator
from bart_export.text.tokenizer import BartTokenizer

AGAIN = 3  # cold openings, and warm ones, that the medians are of
STAGES = ("engine", "generator", "text")
# What an engine imports when it first opens a file; that is not part of opening one.
LIBRARIES = {
    LITERT: "ai_edge_litert.compiled_model",
    TFLITE_RUNTIME: "tflite_runtime.interpreter",
}

Figures = dict[str, dict[str, Any]]  # stage → its figures


@dataclasses.dataclass(frozen=True)
class Order:
    """A file to open, and what to generate with it then."""

    file: str
    num_threads: int
    source: int
    num_beams: int
    new_tokens: int


def measure(directory: pathlib.Path, order: Order) -> dict[str, Figures | None]:
    """Open a file of a `linked_copy`: for the first time, and then cold and warm in turns.

    Returns:
        The figures of "first", "cold" (None where the system keeps the files in its memory) and
        "warm", the latter two medians over several processes. For each of `STAGES` they are
        `seconds` from the path to there, libraries imported before; `private_bytes`, by how much
        the process' private memory grew meanwhile, `shared_bytes`, by how much the rest did, and
        `process_private_bytes`, what the former came to, None where the system does not say; and
        `built_weight_cache`.

    Raises:
        EngineError: if a process fails, with what it said.
    """
    first = in_a_process(directory, order)
    cold, warm = [], []
    for _ in range(AGAIN):
        if page_cache.drop(files_read(directory, order.file)):
            cold.append(in_a_process(directory, order))
        warm.append(in_a_process(directory, order))
    return {
        "first": first,
        "cold": medians(cold) if len(cold) == AGAIN else None,
        "warm": medians(warm),
    }


def memory(directory: pathlib.Path, order: Order) -> dict[str, Any]:
    """Return by how much a process' memory grows until a file that was opened before has answered.

    `private_bytes` is what it has for itself, `shared_bytes` what it has in common with another
    process that has the same file open; None where the system does not say.

    Raises:
        EngineError: if a process fails, with what it said.
    """
    with page_cache.held(files_read(directory, order.file)):
        figures = in_a_process(directory, order)["text"]
    return {name: figures[name] for name in ("private_bytes", "shared_bytes")}


def medians(rows: list[Figures]) -> Figures:
    """Return the median of each figure; of facts, whether one of the rows has it."""
    return {
        stage: {name: middle([row[stage][name] for row in rows]) for name in rows[0][stage]}
        for stage in rows[0]
    }


def middle(values: list[Any]) -> Any:
    """Return the median of numbers, `any` of booleans, None where there is nothing."""
    if values[0] is None:
        return None
    return any(values) if isinstance(values[0], bool) else statistics.median_low(values)


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


def in_a_process(directory: pathlib.Path, order: Order) -> Figures:
    """Open in a new process and return its figures."""
    before = weight_caches(directory)
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name, json.dumps([str(directory), vars(order)])],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        said = last_words(process.stderr, process.returncode)
        raise EngineError(f"Opening {order.file} in a process of its own failed: {said}")
    figures: Figures = json.loads(process.stdout)
    built = weight_caches(directory) != before
    return {stage: {**row, "built_weight_cache": built} for stage, row in figures.items()}


def weight_caches(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return the weight caches of an artifact: name -> inode and time of change."""
    caches = (path for path in (directory / CACHE).glob("*.xnnpack"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in caches}


class Meter:
    """Counts seconds and memory of this process from the time it is made, reading not included."""

    def __init__(self) -> None:
        gc.collect()
        self.private, self.shared = private_bytes(), shared_bytes()
        self.began = time.perf_counter()

    def read(self) -> dict[str, Any]:
        """Return the figures of a stage that has been reached."""
        reached = time.perf_counter()
        private, shared = private_bytes(), shared_bytes()
        seconds = reached - self.began
        self.began += time.perf_counter() - reached
        return {
            "seconds": seconds,
            "private_bytes": difference(private, self.private),
            "shared_bytes": difference(shared, self.shared),
            "process_private_bytes": private,
        }


def difference(now: int | None, before: int | None) -> int | None:
    """Return by how much a figure grew, None where it is not known."""
    return None if now is None or before is None else now - before


def open_and_generate(directory: pathlib.Path, order: Order) -> Figures:
    """Open a file as a user's program does, and return the figures of each stage."""
    with native_stderr_silenced():
        importlib.import_module(LIBRARIES[next(iter(installed_versions()), LITERT)])
    meter = Meter()
    artifact = Artifact.open(directory)
    engine = open_engine(artifact, order.file, num_threads=order.num_threads)
    stages = [meter.read()]
    generator = Generator(
        BartTokenizer.from_artifact(artifact),
        engine,
        artifact.generation,
        artifact.manifest.encoder_sequence_length,
    )
    stages.append(meter.read())
    source = random_source(artifact.config.vocabulary_size, order.source)
    forced(generator, order.new_tokens, order.num_beams).generate_ids(source)
    stages.append(meter.read())
    return dict(zip(STAGES, stages, strict=True))


def main(order: str) -> None:
    """Do what `order` says and print the figures."""
    directory, details = json.loads(order)
    print(json.dumps(open_and_generate(pathlib.Path(directory), Order(**details))))


if __name__ == "__main__":
    main(sys.argv[1])
