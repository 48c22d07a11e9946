"""The speed of exported files, measured with random sources and a forced number of new tokens.

`measure` is the short measurement whose figures go into the manifest of an export; `bench` measures
more. Files of one artifact do the same work and take turns.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import bart_export
from bart_export.artifact.figures import Machine, MeasuredLength, Measurement
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.runtime.engine import Engine, FloatArray, IntArray, available_cores
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import run, search

LONGEST_SOURCE, MOST_NEW_TOKENS = 512, 64
ROUNDS = 9
ENOUGH = 4.0  # seconds for each file after which no other round begins
PACKAGES = ("ai-edge-litert", "tflite-runtime", "numpy", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Host(Machine):
    """A machine and its state.

    `load` is the mean number of processes that wanted a core over the last minute, None where the
    system does not say.
    """

    load: float | None = None
    system: str = ""
    python: str = ""


def machine() -> Machine:
    """Return the machine and the versions of what runs on it; packages not installed are left out.

    `cores` are those that this process may use.
    """
    versions = {"bart-export": bart_export.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return Machine(processor(), platform.machine(), available_cores(), versions)


def host() -> Host:
    """Return the machine and its state."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    about = vars(machine())
    return Host(**about, load=load, system=platform.platform(), python=platform.python_version())


def processor() -> str:
    """Return the processor's name, as exactly as the system gives it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclasses.dataclass(frozen=True)
class Measured:
    """A file to measure: the shapes of a static build, and what opens it on this machine."""

    shapes: StaticShapes | None
    open: Callable[[], AbstractContextManager[Engine]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The seconds of one generation: the encoder, the median call of the decoder, and in all."""

    encode: float
    step: float
    total: float


def room(shapes: StaticShapes | None, positions: int) -> tuple[int, int]:
    """Return how many source tokens and new tokens a file of a model takes at most."""
    if shapes is None:
        return positions, positions - 1  # the start token has one, too
    return max(shapes.source_lengths), shapes.target_length - 1


def unsupported_reason(
    shapes: StaticShapes | None, source: int, num_beams: int, new_tokens: int
) -> str | None:
    """Return why a file of some shapes cannot do what its model can, None if it can."""
    if shapes is None:
        return None
    sources, tokens = room(shapes, 0)
    for what, value, most in (
        ("source tokens", source, sources),
        ("beams", num_beams, max(shapes.num_beams)),
        ("new tokens", new_tokens, tokens),
    ):
        if value > most:
            return f"the static build takes {most} {what} at most"
    return None


def forced_settings(
    generation: GenerationConfig, new_tokens: int, num_beams: int
) -> GenerationConfig:
    """Return settings that generate exactly `new_tokens` tokens.

    Only the token ids of a model's own settings are kept, so that different models do the same
    work.
    """
    ids = {
        name: value
        for name, value in generation.to_dict().items()
        if name.endswith("_token_id") and not name.startswith("forced_")
    }
    length = new_tokens + 1
    return GenerationConfig(max_length=length, min_length=length, num_beams=num_beams, **ids)


def random_source(vocabulary_size: int, length: int) -> list[int]:
    """Return token ids of a source, the same for the same arguments."""
    ids: list[int] = np.random.default_rng(0).integers(0, vocabulary_size, length).tolist()
    return ids


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


def measure(files: Mapping[str, Measured], info: ModelInfo, export: int) -> list[Measurement]:
    """Measure files, by their names in the manifest.

    The longest source is encoded and decoded, with a single beam and with the model's own number.

    Args:
        files: what to measure.
        info: what they were made of.
        export: the number of this export at its place, `exports` of the manifest: figures of one
            export were taken in one run and can be compared.

    Returns:
        A measurement of each file.
    """
    source, new_tokens, num_beams = work_of(info)
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
                    generate(engine, ids, first)  # puts buffers in place
                    settings = forced_settings(info.generation, new_tokens, beams)
                    timings.setdefault((name, beams), []).append(generate(engine, ids, settings))
        rounds += 1
        if time.perf_counter() - began > ENOUGH * len(files):
            break
    place, cores = machine(), available_cores()
    lengths: dict[str, list[MeasuredLength]] = {name: [] for name in files}
    for (name, beams), found in timings.items():
        lengths[name].append(measured_length(source, beams, new_tokens, found))
    return [Measurement(name, export, place, cores, rounds, tuple(lengths[name])) for name in files]


def work_of(info: ModelInfo) -> tuple[int, int, list[int]]:
    """Return how many source and new tokens a model is measured with, and numbers of beams."""
    source = min(info.encoder_sequence_length, LONGEST_SOURCE)
    new_tokens = min(info.generation.max_length, MOST_NEW_TOKENS) - 1
    return source, new_tokens, sorted({1, info.generation.num_beams})


def measured_length(
    source: int, num_beams: int, new_tokens: int, rounds: Sequence[Timing]
) -> MeasuredLength:
    """Return what some rounds took: medians, and the extremes of the total."""
    totals = [timing.total for timing in rounds]
    return MeasuredLength(
        source,
        num_beams,
        new_tokens,
        encode_seconds=statistics.median(timing.encode for timing in rounds),
        seconds=statistics.median(totals),
        fastest=min(totals),
        slowest=max(totals),
    )
