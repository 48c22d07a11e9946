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

from bart_export.bench import machine
from bart_export.bench.work import forced_settings, misfit, random_source
from bart_export.config import GenerationConfig
from bart_export.runtime.engine import Engine, available_cores
from bart_export.runtime.search import run, search

LONGEST_SOURCE, MOST_NEW_TOKENS = 512, 64
ROUNDS = 9
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
    def source(self) -> int:
        """Source tokens to measure with."""
        return min(self.encoder_sequence_length, LONGEST_SOURCE)

    @property
    def new_tokens(self) -> int:
        """New tokens to measure with."""
        return min(self.generation.max_length, MOST_NEW_TOKENS) - 1


# Source tokens, beams and new tokens → seconds of each round: of the encoder, and of all.
Times = dict[tuple[int, int, int], list[tuple[float, float]]]


def measure(files: Mapping[str, Measured], model: Model, export: int) -> list[dict[str, Any]]:
    """Measure files, by their names in the manifest.

    Args:
        files: what to measure.
        model: what they were made of.
        export: the number of this export at its place, `exports` of the manifest: figures of one
            export were taken in one run and can be compared.

    Returns:
        A row for each file: `file`, `export`, `machine`, `num_threads`, `rounds`, and `lengths`, a
        list with the `source` tokens, `num_beams` and `new_tokens` of a generation; of its rounds
        `encode_seconds` and `seconds`, from the source ids to the last token, are the medians,
        `fastest` and `slowest` the least and the most of the latter.
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
            "lengths": [summary(work, seconds) for work, seconds in times[name].items()],
        }
        for name in files
    ]


def measure_once(file: Measured, model: Model, times: Times) -> None:
    """Open a file, generate once with each number of beams, and add the seconds to `times`."""
    source, new_tokens = model.source, model.new_tokens
    with file.open() as engine:
        ids = random_source(engine.config.vocabulary_size, source)
        for beams in model.num_beams:
            if misfit(file.entry, source, beams, new_tokens):
                continue
            generate(engine, ids, forced_settings(model.generation, 1, beams))  # buffers in place
            clock = generate(engine, ids, forced_settings(model.generation, new_tokens, beams))
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


def summary(work: tuple[int, int, int], rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return an entry of `lengths`."""
    encode, whole = zip(*rounds, strict=True)
    return {
        **dict(zip(("source", "num_beams", "new_tokens"), work, strict=True)),
        "encode_seconds": statistics.median(encode),
        "seconds": statistics.median(whole),
        "fastest": min(whole),
        "slowest": max(whole),
    }
