"""A worker process: one scheduler that decodes the sources of all requests together.

The server and its workers exchange pickled `Orders` and `News` over a pipe. A worker ends when the
server says so, or dies. This module imports nothing else of the server.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TypeAlias

from bart_export.artifact.artifact import Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import ArtifactError, BartExportError
from bart_export.runtime.generator import Generator
from bart_export.runtime.results import Result
from bart_export.runtime.scheduler import Source, Task


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a worker opens: an artifact with this number of exports."""

    directory: pathlib.Path
    exports: int
    num_threads: int
    max_batch_size: int

    def generator(self) -> Generator:
        """Open the artifact."""
        exports = Artifact.open(self.directory).manifest.exports
        if exports != self.exports:
            raise ArtifactError(
                f"{self.directory} must hold export {self.exports}, but export {exports} has "
                "replaced it."
            )
        return Generator.from_artifact(
            self.directory, num_threads=self.num_threads, max_batch_size=self.max_batch_size
        )


@dataclasses.dataclass(frozen=True)
class Order:
    """A source to generate from; with `streams`, its tokens are reported as they settle."""

    number: int
    token_ids: Sequence[int]
    generation: GenerationConfig
    streams: bool


@dataclasses.dataclass(frozen=True)
class Cancel:
    """The order to stop these generations."""

    numbers: Sequence[int]


Orders: TypeAlias = list[Order] | Cancel  # None is the last order


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
    """What has happened since the last news.

    Attributes:
        batch_sizes: the number of sources that each step decoded together.
        started: for each source that was admitted, the seconds since then.
        tokens: the tokens that have settled, for each source that streams.
        ended: the result, or the error, of each source that has ended.
    """

    batch_sizes: list[int]
    started: dict[int, float]
    tokens: dict[int, list[int]]
    ended: dict[int, Result | Exception]


News: TypeAlias = Ready | Failed | Progress


def run(pipe: Connection, opening: Opening) -> None:
    """Open an artifact and generate until the last order, or until the server has died."""
    with contextlib.suppress(EOFError, OSError):
        try:
            generator = opening.generator()
        except BartExportError as error:
            pipe.send(Failed(str(error)))
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
        """Take orders and decode, until the last order; wait for orders only without tasks."""
        while True:
            while self.pipe.poll(0 if self.scheduler.running or self.scheduler.waiting else None):
                orders: Orders | None = self.pipe.recv()
                if orders is None:
                    return
                self.take(orders)
            self.scheduler.step()
            self.report()

    def take(self, orders: Orders) -> None:
        """Submit new tasks, or cancel tasks."""
        if isinstance(orders, Cancel):
            ended = [self.tasks.pop(number, None) for number in orders.numbers]
            self.scheduler.cancel(*filter(None, ended))
            self.started.difference_update(orders.numbers)
            return
        for order in orders:
            task = Task(order.token_ids, order.generation, order.streams)
            self.tasks[order.number] = self.scheduler.submit(task)

    def report(self) -> None:
        """Send what the last steps did, unless nobody waits for it."""
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
            number: task.error or self.generator.result(Source(task.token_ids), task)
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
