"""A short measurement of exported files, for the report that goes with them.

Ways to open files go in; rows for the manifest come out: the time of the encoder and of a token for
several lengths of the source, and of a whole generation for several numbers of tokens, with a
single beam and with the model's own. Files take turns and figures are medians; `bench` measures
more, and at leisure. How a file is opened, and who reads the rows, is not known here.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from bart_export.config import GenerationConfig
from bart_export.quality.speed import machine
from bart_export.quality.speed.work import forced_settings, misfit, random_source
from bart_export.runtime.engine import Engine, available_cores
from bart_export.runtime.search import run, search

SOURCES = (16, 32, 64, 128, 256, 512, 1024)  # source tokens
NEW_TOKENS = (16, 32, 64, 128)
USUAL = 64  # new tokens to measure up to at least
FEW = 8  # tokens that the time of one is the median of
ROUNDS = 3
ENOUGH = 4.0  # seconds for each file after which no other round begins


@dataclasses.dataclass(frozen=True)
class Measured:
    """A file to measure: its entry in the manifest, and what opens it on this machine."""

    entry: Mapping[str, Any]
    open: Callable[[], AbstractContextManager[Engine]]


@dataclasses.dataclass(frozen=True)
class Model:
    """What the files were made of: its settings, and how long a source it was prepared for."""

    generation: GenerationConfig
    encoder_sequence_length: int

    @property
    def num_beams(self) -> list[int]:
        """Numbers of beams to measure with."""
        return sorted({1, self.generation.num_beams})

    @property
    def sources(self) -> list[int]:
        """Source tokens to measure with."""
        longest = self.encoder_sequence_length
        return [source for source in SOURCES if source <= longest] or [longest]

    @property
    def new_tokens(self) -> list[int]:
        """New tokens to measure with."""
        longest = max(USUAL, self.generation.max_length)
        return [length for length in NEW_TOKENS if length <= longest]


# What was measured (a list of the row, source, beams, new tokens, figure) → seconds of each round.
Times = dict[tuple[str, int, int, int, str], list[float]]


def measure(files: Mapping[str, Measured], model: Model, export: int) -> list[dict[str, Any]]:
    """Measure files, by their names in the manifest.

    Args:
        files: what to measure.
        model: what they were made of.
        export: the number of this export at its place, `exports` of the manifest: figures of one
            export were taken in one run and can be compared.

    Returns:
        A row for each file: `file`, `export`, `machine`, `num_threads`, `rounds`, and two lists.
        `sources` has `source`, `num_beams`, `encode_seconds` and `token_seconds` (a decode step and
        the choice of the token); `lengths` has `source`, `num_beams`, `new_tokens` and `seconds`
        from the source ids to that token.
    """
    times: dict[str, Times] = {name: {} for name in files}
    began, rounds = time.perf_counter(), 0
    while rounds < ROUNDS:
        for name, file in files.items():
            measure_once(file, model, times[name])
        rounds += 1
        if time.perf_counter() - began > ENOUGH * len(files):
            break
    about = machine.describe()
    place = {name: about[name] for name in ("processor", "architecture", "cores", "versions")}
    return [
        {
            "file": name,
            "export": export,
            "machine": place,
            "num_threads": available_cores(),
            "rounds": rounds,
            **rows(times[name]),
        }
        for name in files
    ]


def measure_once(file: Measured, model: Model, times: Times) -> None:
    """Open a file, take every figure once and add it to `times`."""
    with file.open() as engine:
        measure_engine(engine, file.entry, model, times)


def measure_engine(engine: Engine, entry: Mapping[str, Any], model: Model, times: Times) -> None:
    """Take every figure of an open file once; see `measure_once`."""
    positions = engine.config.max_sequence_length
    for beams in model.num_beams:
        for source in model.sources:
            if misfit(entry, source, beams, FEW):
                continue
            ids = random_source(engine.config.vocabulary_size, source)
            generate(engine, ids, forced_settings(model.generation, 1, beams))  # buffers in place
            clock = generate(engine, ids, forced_settings(model.generation, FEW, beams))
            keys = "sources", source, beams, 0
            note(times, (*keys, "encode_seconds"), clock[1] - clock[0])
            steps = [after - before for before, after in zip(clock[1:], clock[2:], strict=False)]
            note(times, (*keys, "token_seconds"), statistics.median(steps))
        source = model.sources[-1]
        ids = random_source(engine.config.vocabulary_size, source)
        lengths = [
            length
            for length in model.new_tokens
            if length < positions and not misfit(entry, source, beams, length)
        ]
        if not lengths:
            continue
        clock = generate(engine, ids, forced_settings(model.generation, lengths[-1], beams))
        for length in lengths:
            keys = "lengths", source, beams, length
            note(times, (*keys, "seconds"), clock[1 + length] - clock[0])


def generate(engine: Engine, source: Sequence[int], settings: GenerationConfig) -> list[float]:
    """Generate and return the clock: at the beginning, after the encoder, and after each token."""
    clock = [time.perf_counter()]
    state = engine.start(source, settings.num_beams, settings.max_length)

    def step(*arguments: Any) -> Any:
        clock.append(time.perf_counter())
        return engine.step(*arguments)

    run(search(step, state, settings))
    return [*clock, time.perf_counter()]


def note(times: Times, keys: tuple[str, int, int, int, str], seconds: float) -> None:
    """Add a figure of one round."""
    times.setdefault(keys, []).append(seconds)


def rows(times: Times) -> dict[str, list[dict[str, Any]]]:
    """Return the lists of a file's row, with medians."""
    lists: dict[str, dict[tuple[int, int, int], dict[str, Any]]] = {"sources": {}, "lengths": {}}
    for (name, source, beams, length, figure), seconds in times.items():
        row = lists[name].setdefault(
            (source, beams, length),
            {"source": source, "num_beams": beams} | ({"new_tokens": length} if length else {}),
        )
        row[figure] = statistics.median(seconds)
    return {name: list(found.values()) for name, found in lists.items()}
