"""Time and memory readings of exported files, processes and the page cache.

`measure` takes an export's short measurements; `bench` measures more. Sources are random and the
number of new tokens is forced, so that generating takes the same work with every file.
"""

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import mmap
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import bart_export
from bart_export.artifact.figures import Machine, MeasuredLength, Measurement
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.documents import dataclass
from bart_export.runtime.engine import Engine, available_cores
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import run, search
from bart_export.runtime.sizing import FloatArray, IntArray

LONGEST_SOURCE, MOST_NEW_TOKENS = 512, 64
ROUNDS = 9
ENOUGH = 4.0  # seconds per file, after which no new round begins
PACKAGES = ("ai-edge-litert", "tflite-runtime", "numpy", "tokenizers")
SMAPS = pathlib.Path("/proc/self/smaps_rollup")
STATUS = pathlib.Path("/proc/self/status")
PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Host(Machine):
    """A machine and its state; `load` is the one-minute load average, or None if unavailable."""

    load: float | None = None
    system: str = ""
    python: str = ""


def machine() -> Machine:
    """Return the processor, the cores that this process may use, and the installed packages."""
    versions = {"bart-export": bart_export.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return Machine(processor(), platform.machine(), available_cores(), versions)


def host() -> Host:
    """Return the machine and its state."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Host(
        **vars(machine()), load=load, system=platform.platform(), python=platform.python_version()
    )


def processor() -> str:
    """Return the processor's name, as precisely as the system reports it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclasses.dataclass(frozen=True)
class MeasurableFile:
    """A file to measure: the shapes of a static build, and a function that opens the file."""

    shapes: StaticShapes | None
    open: Callable[[], AbstractContextManager[Engine]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The seconds of one generation: the encoder call, the median decoder call, and the total."""

    encode: float
    step: float
    total: float


def token_limits(shapes: StaticShapes | None, positions: int) -> tuple[int, int]:
    """Return the maximum numbers of source tokens and new tokens of a file."""
    if shapes is None:
        return positions, positions - 1  # the start token takes a position
    return max(shapes.source_lengths), shapes.target_length - 1


def unsupported_reason(
    shapes: StaticShapes | None, source: int, num_beams: int, new_tokens: int
) -> str | None:
    """Return why a file is too small for this work, or None if it is not."""
    if shapes is None:
        return None
    longest, most = token_limits(shapes, 0)
    for noun, value, limit in (
        ("source tokens", source, longest),
        ("beams", num_beams, max(shapes.num_beams)),
        ("new tokens", new_tokens, most),
    ):
        if value > limit:
            return f"the static build takes at most {limit} {noun}"
    return None


def forced_settings(
    generation: GenerationConfig, new_tokens: int, num_beams: int
) -> GenerationConfig:
    """Return settings that generate exactly `new_tokens` tokens.

    Only the model's token ids are kept, so that different models do the same work.
    """
    ids = {
        name: value
        for name, value in generation.to_dict().items()
        if name.endswith("_token_id") and not name.startswith("forced_")
    }
    length = new_tokens + 1
    return GenerationConfig(max_length=length, min_length=length, num_beams=num_beams, **ids)


def random_source(vocabulary_size: int, length: int, seed: int = 0) -> list[int]:
    """Return random source ids, the same for the same arguments."""
    ids: list[int] = np.random.default_rng(seed).integers(0, vocabulary_size, length).tolist()
    return ids


def random_sources(vocabulary_size: int, length: int, count: int) -> list[list[int]]:
    """Return different random sources of a length, the same for the same arguments."""
    return [random_source(vocabulary_size, length, seed) for seed in range(count)]


def generate(engine: Engine, source: Sequence[int], settings: GenerationConfig) -> Timing:
    """Generate once and return the time it took."""
    steps = []

    def step(state: Any, token_ids: IntArray, beam_index: IntArray) -> tuple[FloatArray, Any]:
        before = time.perf_counter()
        result = engine.step(state, token_ids, beam_index)
        steps.append(time.perf_counter() - before)
        return result

    began = time.perf_counter()
    state = engine.start(source, settings.num_beams, settings.max_length)
    encode = time.perf_counter() - began
    run(search(settings), step, state)
    return Timing(encode, statistics.median(steps), time.perf_counter() - began)


def measure(files: Mapping[str, MeasurableFile], info: ModelInfo, export: int) -> list[Measurement]:
    """Measure files, by name in the manifest, with one beam and with the model's number of beams.

    `export` is the number of the export; only figures from the same export can be compared.
    """
    source, new_tokens, num_beams = workload(info)
    timings: dict[tuple[str, int], list[Timing]] = {}
    began, rounds = time.perf_counter(), 0
    while rounds < ROUNDS:
        for name, file in files.items():
            with file.open() as engine:
                ids = random_source(engine.config.vocabulary_size, source)
                for beams in num_beams:
                    if unsupported_reason(file.shapes, source, beams, new_tokens):
                        continue
                    first = forced_settings(info.generation, 1, beams)
                    generate(engine, ids, first)  # allocates buffers
                    settings = forced_settings(info.generation, new_tokens, beams)
                    timings.setdefault((name, beams), []).append(generate(engine, ids, settings))
        rounds += 1
        if time.perf_counter() - began > ENOUGH * len(files):
            break
    lengths: dict[str, list[MeasuredLength]] = {name: [] for name in files}
    for (name, beams), runs in timings.items():
        lengths[name].append(measured_length(source, beams, new_tokens, runs))
    here = machine()
    return [
        Measurement(name, export, here, available_cores(), rounds, tuple(lengths[name]))
        for name in files
    ]


def workload(info: ModelInfo) -> tuple[int, int, list[int]]:
    """Return the source length, the number of new tokens and the numbers of beams to measure."""
    source = min(info.encoder_sequence_length, LONGEST_SOURCE)
    new_tokens = min(info.generation.max_length, MOST_NEW_TOKENS) - 1
    return source, new_tokens, sorted({1, info.generation.num_beams})


def measured_length(
    source: int, num_beams: int, new_tokens: int, runs: Sequence[Timing]
) -> MeasuredLength:
    """Return the medians of the runs, and the extremes of the total."""
    totals = [timing.total for timing in runs]
    return MeasuredLength(
        source,
        num_beams,
        new_tokens,
        encode_seconds=statistics.median(timing.encode for timing in runs),
        seconds=statistics.median(totals),
        fastest=min(totals),
        slowest=max(totals),
    )


def memory_sizes() -> dict[str, int]:
    """Return this process's resident bytes by kind; see proc_pid_smaps(5)."""
    lines = SMAPS.read_text(encoding="ascii").splitlines()
    return {name: 1024 * int(size) for name, size, *_ in map(str.split, lines[1:])}


def process_memory() -> tuple[int, int] | None:
    """Return the private and shared bytes of this process, or None if unavailable.

    Pages of a file are private, though clean, if no other process maps them.
    """
    try:
        sizes = memory_sizes()
    except OSError:
        return None
    private = sizes["Private_Clean:"] + sizes["Private_Dirty:"]
    return private, sizes["Shared_Clean:"] + sizes["Shared_Dirty:"]


def status_bytes(field: str) -> int | None:
    """Return a field of this process's status in bytes, or None; see proc_pid_status(5)."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def resident_bytes(pid: int) -> int | None:
    """Return the resident bytes of a process and its children, or None if unavailable.

    Shared pages are counted once per process.
    """
    try:
        pages = pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        tasks = pathlib.Path("/proc").glob(f"{pid}/task/*/children")
        children = [int(each) for task in tasks for each in task.read_text("ascii").split()]
    except OSError:
        return None
    return int(pages) * PAGE + sum(resident_bytes(child) or 0 for child in children)


def drop_from_page_cache(paths: Iterable[pathlib.Path]) -> bool:
    """Drop files from the page cache, and return whether all of them are gone.

    posix_fadvise(2) needs no privilege; some file systems (tmpfs) and systems do not support it.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    try:
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if cached_pages(path):
                return False
    except OSError:
        return False
    return True


def cached_pages(path: pathlib.Path) -> int:
    """Return the number of a file's pages in the page cache, by mincore(2), or raise OSError."""
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
    """Map files while a block runs, so that other processes share their pages."""
    files = [np.memmap(path, mode="r") for path in paths if path.stat().st_size]
    for file in files:
        file[::PAGE].sum()  # reads a byte of every page
    yield
