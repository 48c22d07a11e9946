"""What opening an exported file costs, each time in a process of its own.

An artifact and a recipe go in; seconds and memory come out, for the engine alone and for the whole
`Generator`, the first time (the file is hashed and its weights are packed) and afterwards. The
artifact is measured through a copy, made of links, that has no weight cache yet, so that nothing of
the artifact is touched. As a program this module is the process that opens and reports.
"""

import contextlib
import gc
import importlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from bart_export.artifact import CACHE, MANIFEST, Artifact
from bart_export.errors import EngineError
from bart_export.quality.machine import private_bytes
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes import LITERT, TFLITE_RUNTIME
from bart_export.runtime.engines import installed_versions, open_engine
from bart_export.runtime.generator import Generator, choose_file

AGAIN = 3  # openings whose median is the second opening's figure
# What an engine imports when it first opens a file; that is not part of opening one.
LIBRARIES = {
    LITERT: "ai_edge_litert.compiled_model",
    TFLITE_RUNTIME: "tflite_runtime.interpreter",
}


def open_the_engine(directory: pathlib.Path, recipe: str, num_threads: int | None) -> Any:
    """Open a recipe's file and nothing else."""
    artifact = Artifact.open(directory)
    return open_engine(artifact, choose_file(artifact, recipe, None), num_threads=num_threads)


def open_the_generator(directory: pathlib.Path, recipe: str, num_threads: int | None) -> Any:
    """Open tokenizer and file."""
    return Generator.from_artifact(directory, recipe=recipe, num_threads=num_threads)


OPENINGS: dict[str, Callable[[pathlib.Path, str, int | None], Any]] = {
    "engine": open_the_engine,
    "generator": open_the_generator,
}


def measure(artifact: Artifact, recipe: str, num_threads: int | None) -> dict[str, Any]:
    """Return, for each of `OPENINGS`, the figures of the first opening and of later ones.

    Figures are `seconds` from the path to a model ready to run, libraries imported before;
    `private_bytes`, by how much the process' private memory grew meanwhile, and
    `process_private_bytes`, what it came to, both None where the system does not say; and
    `built_weight_cache`. Those of "second" are medians over several processes.

    Raises:
        EngineError: if a process fails, with what it said.
    """
    figures: dict[str, Any] = {}
    for what in OPENINGS:
        with linked_copy(artifact) as directory:
            first = in_a_process(what, directory, recipe, num_threads)
            later = [in_a_process(what, directory, recipe, num_threads) for _ in range(AGAIN)]
        figures[what] = {"first": first, "second": medians(later)}
    return figures


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure; of facts, whether one of the rows has it."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: middle(values) for name, values in columns.items()}


def middle(values: list[Any]) -> Any:
    """Return the median of numbers, `any` of booleans, None where there is nothing."""
    if values[0] is None:
        return None
    return any(values) if isinstance(values[0], bool) else statistics.median_low(values)


@contextlib.contextmanager
def linked_copy(artifact: Artifact) -> Iterator[pathlib.Path]:
    """Make, for the length of a block, an artifact of links to another's files, without caches."""
    place = artifact.directory.resolve().parent
    writable = os.access(place, os.W_OK)
    with tempfile.TemporaryDirectory(
        dir=place if writable else None, prefix=".bench.", ignore_cleanup_errors=True
    ) as temporary:
        directory = pathlib.Path(temporary)
        for name in (MANIFEST, *artifact.manifest["files"]):
            source, path = artifact.directory.resolve() / name, directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.symlink_to(source)
            except OSError:
                shutil.copyfile(source, path)
        yield directory


def in_a_process(
    what: str, directory: pathlib.Path, recipe: str, num_threads: int | None
) -> dict[str, Any]:
    """Open in a new process and return its figures."""
    before = weight_caches(directory)
    order = json.dumps([what, str(directory), recipe, num_threads])
    process = subprocess.run(
        [sys.executable, "-m", __spec__.name, order], capture_output=True, text=True, check=False
    )
    if process.returncode:
        said = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise EngineError(f"Opening {recipe} in a process of its own failed: {said[-1]}")
    figures: dict[str, Any] = json.loads(process.stdout)
    return figures | {"built_weight_cache": weight_caches(directory) != before}


def weight_caches(directory: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Return the weight caches of an artifact: name -> inode and time of change."""
    caches = (path for path in (directory / CACHE).glob("*.xnnpack"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in caches}


def main(order: str) -> None:
    """Open what `order` says and print the figures."""
    what, directory, recipe, num_threads = json.loads(order)
    with native_stderr_silenced():
        importlib.import_module(LIBRARIES[next(iter(installed_versions()), LITERT)])
    gc.collect()
    memory = private_bytes()
    began = time.perf_counter()
    opened = OPENINGS[what](pathlib.Path(directory), recipe, num_threads)
    seconds = time.perf_counter() - began
    total = private_bytes()
    grown = None if memory is None or total is None else total - memory
    figures = {"seconds": seconds, "private_bytes": grown, "process_private_bytes": total}
    print(json.dumps(figures))
    del opened


if __name__ == "__main__":
    main(sys.argv[1])
