"""A worker process: one scheduler that decodes the sources of all requests together.

The server sends pickled `Commands` over a pipe, and a worker replies with `Ready` or `Failed`, and
then `Progress`. It ends when the server tells it to, or dies. This module imports nothing else from
the server.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TypeAlias

import numpy as np

from bart_export.artifact.artifact import Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import ArtifactError, BartExportError
from bart_export.runtime.generator import Generator
from bart_export.runtime.logits import log_normalizers
from bart_export.runtime.results import Result
from bart_export.runtime.scheduler import Task


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a worker opens, and how.

    `exports` is the artifact's expected number of exports; `seconds` is the time limit.
    """

    directory: pathlib.Path
    exports: int
    num_threads: int
    max_batch_size: int
    seconds: float

    def generator(self) -> Generator:
        """Open the artifact."""
        exports = Artifact.open(self.directory).manifest.exports
        if exports != self.exports:
            raise ArtifactError(
                f"{self.directory} must hold export {self.exports}, but export {exports} has "
                "replaced it. The next poll will find that one."
            )
        return Generator.from_artifact(
            self.directory, num_threads=self.num_threads, max_batch_size=self.max_batch_size
        )


def decode_twice(generator: Generator) -> None:
    """Decode two tokens with each number of beams that the artifact's settings use."""
    source = generator.encode("A text.", truncate=True)
    start = generator.generation.decoder_start_token_id
    for beams in {1, generator.generation.num_beams}:
        state = generator.engine.start(source, beams, 2)
        token_ids, beam_index = np.full(beams, start, np.int32), np.arange(beams, dtype=np.int32)
        for _ in range(2):
            logits, state = generator.engine.step(state, token_ids, beam_index)
            log_normalizers(logits)


@dataclasses.dataclass(frozen=True)
class Start:
    """A command to generate from a source; with `streams`, tokens are reported as they settle."""

    number: int
    token_ids: Sequence[int]
    generation: GenerationConfig
    streams: bool


@dataclasses.dataclass(frozen=True)
class Cancel:
    """A command to stop a generation."""

    number: int


Commands: TypeAlias = list[Start] | Cancel  # None ends the worker


@dataclasses.dataclass(frozen=True)
class Ready:
    """The artifact is open; `longest` is the maximum number of source tokens."""

    longest: int


@dataclasses.dataclass(frozen=True)
class Failed:
    """The artifact cannot be opened."""

    error: str


@dataclasses.dataclass(frozen=True)
class Progress:
    """What has happened since the previous message.

    Attributes:
        batch_sizes: the number of sources that each step decoded together.
        started: the seconds since its admission, for each newly admitted source.
        tokens: the newly settled tokens of each source that streams.
        ended: the result or error of each source that has ended.
    """

    batch_sizes: list[int]
    started: dict[int, float]
    tokens: dict[int, list[int]]
    ended: dict[int, Result | Exception]


def run(pipe: Connection, opening: Opening) -> None:
    """Open and try an artifact, and generate until told to end, or until the server dies."""
    with contextlib.suppress(EOFError, OSError):
        try:
            generator = opening.generator()
            decode_twice(generator)
        except BartExportError as error:
            pipe.send(Failed(str(error)))
        except Exception as error:  # libraries may raise anything
            pipe.send(Failed(f"{type(error).__name__}: {error}"))
        else:
            pipe.send(Ready(generator.encoder_sequence_length))
            Worker(generator, pipe).work()


class Worker:
    """A generator whose tasks come from a pipe."""

    def __init__(self, generator: Generator, pipe: Connection) -> None:
        self.generator, self.scheduler, self.pipe = generator, generator.scheduler, pipe
        self.tasks: dict[int, Task] = {}
        self.started: set[int] = set()
        self.batch_sizes: list[int] = []

    def work(self) -> None:
        """Take commands and decode until told to end; wait for commands only when idle.

        Sources that arrive while others are encoded join them before the next step: equally long
        generations then take the same steps, none of which decodes only a few of them.
        """
        scheduler = self.scheduler
        while True:
            while self.pipe.poll(
                0 if self.tasks or scheduler.running or scheduler.waiting else None
            ):
                commands: Commands | None = self.pipe.recv()
                if commands is None:
                    return
                self.take(commands)
                if not self.pipe.poll():
                    scheduler.admit()
            scheduler.step()
            self.report()

    def take(self, commands: Commands) -> None:
        """Submit new tasks, or cancel one."""
        if isinstance(commands, Cancel):
            if task := self.tasks.pop(commands.number, None):
                self.scheduler.cancel(task)
            self.started.discard(commands.number)
            return
        for start in commands:
            task = Task(start.token_ids, start.generation, start.streams)
            self.tasks[start.number] = self.scheduler.submit(task)

    def report(self) -> None:
        """Send what the latest steps did, if any source started, settled tokens or ended."""
        decoded = sum(task.encoded > 0 for task in self.tasks.values())
        self.batch_sizes += [decoded] if decoded else []
        now = time.perf_counter()
        started = {
            number: now - task.admitted
            for number, task in self.tasks.items()
            if task.admitted and number not in self.started
        }
        tokens = {
            number: task.take()
            for number, task in self.tasks.items()
            if task.streams and task.tokens
        }
        ended = {
            number: task.error or self.generator.result(task)
            for number, task in self.tasks.items()
            if task.ended
        }
        if started or tokens or ended:
            self.pipe.send(Progress(self.batch_sizes, started, tokens, ended))
            self.batch_sizes = []
        self.started |= started.keys()
        for number in ended:
            del self.tasks[number]
            self.started.discard(number)
