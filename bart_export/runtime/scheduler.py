"""Continuous batching: all running searches share one call of `decode` per token.

A source is admitted as soon as a slot is free, encoded alone, and decoded at its own position and
with its own settings. Searches with equal numbers of beams run together; other searches wait until
these have ended, in the order of submission.

One thread at a time runs `step`; `wait` makes one of the waiting threads do it for all.
"""

import collections
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from bart_export.config import GenerationConfig, is_whole, require
from bart_export.errors import BartExportError, EngineError, InputError
from bart_export.runtime.batch import Batch, Slot
from bart_export.runtime.engine import FileEngine
from bart_export.runtime.search import Decode, Finished, Hypothesis, Search, search
from bart_export.runtime.sizing import MAX_SOURCES, decoder_bytes

MAX_BATCH_SIZE = 16  # rows; larger batches decoded no more tokens a second
MOST_MEMORY = 1 << 40
MEMORY_BUDGET = 256 << 20  # bytes; 28 sources of 256 tokens in bart_base's shape
WINDOW = 256  # sources that are sorted by length, so that a batch has little padding
CLOSED = "The Generator was closed. Open the artifact again."


@dataclasses.dataclass(eq=False)
class Task:
    """A source and its search.

    Attributes:
        streams: whether the task is ready with every new token, or only at the end.
        tokens: settled tokens that have not been read.
        hypotheses: the result, or None before the end.
        error: the exception that ended the search, or None.
        cancelled: set to stop the search before the next step.
        admitted, encoded, ended: `time.perf_counter()` times, or 0.
    """

    token_ids: Sequence[int]
    generation: GenerationConfig
    streams: bool = False
    tokens: collections.deque[int] = dataclasses.field(default_factory=collections.deque)
    hypotheses: list[Hypothesis] | None = None
    error: Exception | None = None
    cancelled: bool = False
    admitted: float = 0.0
    encoded: float = 0.0
    ended: float = 0.0
    settled: int = 0
    request: Decode = dataclasses.field(init=False)
    repeated: int = 0  # settled tokens to drop, because a restarted search settles them again

    def __post_init__(self) -> None:
        self.search: Search = search(self.generation, self.token_ids)

    @property
    def rows(self) -> int:
        """The number of beams or samples."""
        return max(self.generation.num_beams, self.generation.num_return_sequences)

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self.ended or self.cancelled or (self.streams and self.tokens))

    def advance(self) -> None:
        """Run the search to its next request, or to its end."""
        try:
            for event in self.search:
                if isinstance(event, Decode):
                    self.request = event
                    return
                if isinstance(event, Finished):
                    self.hypotheses = event.hypotheses
                    break
                self.settle(event.token_ids)
        except Exception as error:
            self.error = error
        self.search = iter(())  # frees its logits
        self.ended = time.perf_counter()

    def settle(self, token_ids: list[int]) -> None:
        """Append settled tokens."""
        fresh = token_ids[max(0, self.repeated - self.settled) :]
        self.settled += len(token_ids)
        self.tokens.extend(fresh)

    def take(self) -> list[int]:
        """Remove and return the tokens that have not been read."""
        return [self.tokens.popleft() for _ in range(len(self.tokens))]

    def fail(self, error: Exception) -> None:
        """End the task with an error."""
        self.error, self.ended = error, time.perf_counter()

    def restart(self) -> None:
        """Prepare to run again from the beginning."""
        self.search = search(self.generation, self.token_ids)
        self.repeated, self.settled = max(self.repeated, self.settled), 0


class Scheduler:
    """Runs searches on an engine, as many together as fit.

    Args:
        engine: the engine, which must not be used elsewhere.
        max_batch_size: the maximum number of rows, the beams of all sources, decoded together; one
            source is always decoded.
        memory_budget: the maximum size, in bytes, of the decoder's inputs and outputs, from which
            follows how many sources fit; one source always does.

    Raises:
        ConfigurationError: if a number is out of range.

    Attributes:
        encode_seconds, decode_seconds, search_seconds: total times of all steps so far.
        finished, tokens: how many searches have a result, and the tokens of their best ones.
    """

    def __init__(
        self,
        engine: FileEngine,
        max_batch_size: int = MAX_BATCH_SIZE,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        for name, size, most in (
            ("max_batch_size", max_batch_size, MAX_SOURCES),
            ("memory_budget", memory_budget, MOST_MEMORY),
        ):
            accepted = is_whole(size) and 1 <= size <= most
            require(accepted, name, f"an integer from 1 to {most}", size)
        self.engine = engine
        self.max_batch_size = max_batch_size
        self.memory_budget = memory_budget
        self.waiting: collections.deque[Task] = collections.deque()
        self.entering: list[Task] = []  # about to be encoded
        self.running: dict[Task, Slot] = {}
        self.batch: Batch | None = None
        self.encode_seconds = self.decode_seconds = self.search_seconds = 0.0
        self.finished = self.tokens = 0
        self.changed = threading.Condition()
        self.stepping = self.closing = False

    def submit(self, task: Task) -> Task:
        """Add a task to those waiting."""
        with self.changed:
            if self.closing:
                raise EngineError(CLOSED)
            self.waiting.append(task)
        return task

    def cancel(self, *tasks: Task) -> None:
        """Stop tasks before the next step."""
        with self.changed:
            for task in tasks:
                task.cancelled = True
            self.changed.notify_all()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Step until `ready`, or wait while another thread steps."""
        while True:
            with self.changed:
                while self.stepping and not ready():
                    self.changed.wait()
                if ready():
                    return
                self.stepping = True
            try:
                while not ready() and not self.closing:
                    if self.step():
                        with self.changed:
                            self.changed.notify_all()
            except BaseException:  # Ctrl-C, perhaps between two changes that belong together
                self.restart()
                raise
            finally:
                with self.changed:
                    self.stepping = False
                    self.changed.notify_all()

    def step(self) -> bool:
        """Admit sources and decode one token of every running search.

        Returns whether a task may have become ready.
        """
        self.release([task for task in self.running if task.cancelled])
        self.admit()
        tasks = list(self.running)
        if self.batch is None or not tasks:
            return True
        began = time.perf_counter()
        try:
            logits = self.batch.step({slot: task.request for task, slot in self.running.items()})
        except EngineError as error:
            if len(tasks) == 1:
                tasks[0].fail(error)
            else:  # memory may suffice for fewer, and if one is the cause, it then fails alone
                self.max_batch_size = max(1, len(tasks) * tasks[0].rows // 2)
            self.restart()
            return True
        decoded = time.perf_counter()
        for task in tasks:
            task.request.logits = logits[self.running[task]]
            task.advance()
        ended = [task for task in tasks if task.ended]
        self.release(ended)
        for task in ended:
            del task.request  # its logits would keep those of the whole batch
        self.decode_seconds += decoded - began
        self.search_seconds += time.perf_counter() - decoded
        return any(task.ready for task in tasks)

    def admit(self) -> None:
        """Encode the first waiting sources, as many as fit beside the running ones."""
        with self.changed:
            self.plan()
        if self.entering:
            began = time.perf_counter()
            self.encode()
            self.encode_seconds += time.perf_counter() - began

    def plan(self) -> None:
        """Move the first waiting tasks that fit to `entering`; the caller holds the lock."""
        while self.waiting:
            task = self.waiting[0]
            together = [*self.running, *self.entering, task]
            if not task.cancelled:
                if task.rows != together[0].rows or len(together) > self.most(together):
                    return
                self.entering.append(task)
            self.waiting.popleft()

    def most(self, tasks: Sequence[Task]) -> int:
        """Return how many sources may be decoded together if `tasks` are among them."""
        sizing, rows = self.engine.sizing, tasks[0].rows
        most = min(self.max_batch_size // rows, sizing.max_sources)
        if most <= 1:
            return 1
        source = max(len(task.token_ids) for task in tasks)
        capacity = max(task.generation.max_length for task in tasks)
        try:
            needed = decoder_bytes(sizing, source, rows, capacity)
        except InputError:  # `encode` refuses the one that does not fit
            return 1
        return max(1, min(most, self.memory_budget // needed))

    def encode(self) -> None:
        """Encode all tasks in `entering`, and start their searches."""
        if self.batch is None or not self.running:
            self.batch = self.engine.batch(self.entering[0].rows)
        longest = max(len(task.token_ids) for task in self.entering)
        while self.entering:
            task, sources = self.entering[0], len(self.running) + len(self.entering)
            task.admitted = time.perf_counter()
            try:
                if sources > 1:
                    self.batch.reserve(sources, longest, 1)
                slot = self.batch.admit(task.token_ids, task.generation.max_length)
            except InputError as error:
                task.fail(error)
                self.entering.pop(0)
                continue
            except EngineError as error:
                task.fail(error)
                self.restart()
                return
            task.encoded = time.perf_counter()
            self.running[self.entering.pop(0)] = slot
            task.advance()
        self.release([task for task in self.running if task.ended])

    def release(self, tasks: Sequence[Task]) -> None:
        """Remove running tasks and give their slots back."""
        for task in tasks:
            slot = self.running.pop(task)
            if task.hypotheses is not None:
                self.finished += 1
                self.tokens += len(task.hypotheses[0].token_ids) - 1
            if self.batch is not None:
                self.batch.release(slot)

    def restart(self) -> None:
        """Let the running tasks wait again, because the state of the batch is unknown.

        A search gives the same tokens again; those that were read are not read again.
        """
        with self.changed:
            tasks = [task for task in (*self.running, *self.entering) if not task.ended]
            for task in tasks:
                task.restart()
            self.waiting.extendleft(reversed(tasks))
            self.running, self.entering, self.batch = {}, [], None

    def close(self) -> None:
        """End all tasks with EngineError, and release the model."""
        with self.changed:
            if self.closing:
                return
            self.closing = True
            while self.stepping:
                self.changed.wait()
            for task in (*self.running, *self.waiting):
                task.fail(EngineError(CLOSED))
            self.running, self.batch = {}, None
            self.waiting.clear()
            self.engine.close()
            self.changed.notify_all()


@dataclasses.dataclass(frozen=True)
class Source:
    """The token ids of a source, and whether its text was truncated."""

    token_ids: Sequence[int]
    truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A source and its task."""

    source: Source
    task: Task


def run_in_order(
    scheduler: Scheduler,
    sources: Iterable[Source | BartExportError],
    generation: GenerationConfig,
) -> Iterator[Submitted | BartExportError]:
    """Yield each source when its task has ended, in order; errors are passed on.

    Up to `2 * WINDOW` sources are read ahead.
    """
    upcoming = iter(sources)
    ahead: collections.deque[Submitted | BartExportError] = collections.deque()
    more = True

    def hungry() -> bool:
        """Return whether the batch is about to run short of sources."""
        running = sum(not row.task.ended for row in ahead if isinstance(row, Submitted))
        return more and running < scheduler.max_batch_size and len(ahead) <= WINDOW

    def ready() -> bool:
        """Return whether there are sources to read or to yield."""
        row = ahead[0]
        return hungry() or not isinstance(row, Submitted) or bool(row.task.ended)

    try:
        while more or ahead:
            if hungry():
                window = [
                    Submitted(each, Task(each.token_ids, generation))
                    if isinstance(each, Source)
                    else each
                    for each in itertools.islice(upcoming, WINDOW)
                ]
                more = len(window) == WINDOW
                ahead.extend(window)
                tasks = [row.task for row in window if isinstance(row, Submitted)]
                for task in sorted(tasks, key=lambda task: -len(task.token_ids)):
                    scheduler.submit(task)
            else:
                scheduler.wait(ready)
                if not hungry():
                    yield ahead.popleft()
    finally:
        scheduler.cancel(*(row.task for row in ahead if isinstance(row, Submitted)))
