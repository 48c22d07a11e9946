"""A short measurement of exported files, for the report that goes with them.

The longest source is encoded and decoded, with a single beam and with the model's own. Files take
turns, and a figure is the median of its rounds beside the least and the most of them; `bench`
measures more, and at leisure.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from bart_export.artifact.figures import Machine, MeasuredLength, Measurement
from bart_export.bench import machine
from bart_export.bench.work import forced_settings, misfit, random_source
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.runtime.engine import Engine, available_cores
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import run, search

LONGEST_SOURCE, MOST_NEW_TOKENS = 512, 64
ROUNDS = 9
ENOUGH = 4.0  # seconds for each file after which no other round begins


@dataclasses.dataclass(frozen=True)
class Measured:
    """A file to measure: the shapes of a static build, and what opens it on this machine."""

    shapes: StaticShapes | None
    open: Callable[[], AbstractContextManager[Engine]]


# Source tokens, beams and new tokens → seconds of each round: of the encoder, and of all.
Times = dict[tuple[int, int, int], list[tuple[float, float]]]


def measure(files: Mapping[str, Measured], info: ModelInfo, export: int) -> list[Measurement]:
    """Measure files, by their names in the manifest.

    Args:
        files: what to measure.
        info: what they were made of.
        export: the number of this export at its place, `exports` of the manifest: figures of one
            export were taken in one run and can be compared.

    Returns:
        A measurement of each file.
    """
    times: dict[str, Times] = {name: {} for name in files}
    began, rounds = time.perf_counter(), 0
    while rounds < ROUNDS:
        for name, file in files.items():
            measure_once(file, info, times[name])
        rounds += 1
        if time.perf_counter() - began > ENOUGH * len(files):
            break
    about = machine.describe()
    names = ("processor", "architecture", "cores", "versions")
    place = Machine(**{name: about[name] for name in names})
    return [
        Measurement(
            name,
            export,
            place,
            available_cores(),
            rounds,
            tuple(summary(work, seconds) for work, seconds in times[name].items()),
        )
        for name in files
    ]


def work_of(info: ModelInfo) -> tuple[int, int, list[int]]:
    """Return how many source and new tokens a model is measured with, and numbers of beams."""
    source = min(info.encoder_sequence_length, LONGEST_SOURCE)
    new_tokens = min(info.generation.max_length, MOST_NEW_TOKENS) - 1
    return source, new_tokens, sorted({1, info.generation.num_beams})


def measure_once(file: Measured, info: ModelInfo, times: Times) -> None:
    """Open a file, generate once with each number of beams, and add the seconds to `times`."""
    source, new_tokens, num_beams = work_of(info)
    with file.open() as engine:
        ids = random_source(engine.config.vocabulary_size, source)
        for beams in num_beams:
            if misfit(file.shapes, source, beams, new_tokens):
                continue
            generate(engine, ids, forced_settings(info.generation, 1, beams))  # buffers in place
            clock = generate(engine, ids, forced_settings(info.generation, new_tokens, beams))
            seconds = (clock[1] - clock[0], clock[-1] - clock[0])
            times.setdefault((source, beams, new_tokens), []).append(seconds)


def generate(engine: Engine, source: Sequence[int], settings: GenerationConfig) -> list[float]:
    """Generate and return the clock: at the beginning, after the encoder, and after each token."""
    clock = [time.perf_counter()]
    state = engine.start(source, settings.num_beams, settings.max_length)

    def step(*arguments: Any) -> Any:
        clock.append(time.perf_counter())
        return engine.step(*arguments)

    run(search(settings), step, state)
    return [*clock, time.perf_counter()]


def summary(work: tuple[int, int, int], rounds: Sequence[tuple[float, float]]) -> MeasuredLength:
    """Return what some rounds took: medians, and the extremes of the whole."""
    encode, whole = zip(*rounds, strict=True)
    return MeasuredLength(
        *work,
        encode_seconds=statistics.median(encode),
        seconds=statistics.median(whole),
        fastest=min(whole),
        slowest=max(whole),
    )
