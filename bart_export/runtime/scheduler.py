"""Continuous batching: all running searches share one call of `decode` per token.

A source is admitted as soon as a slot is free, encoded alone, and decoded at its own position and
with its own settings. Searches with the same number of beams run together; the others wait for them
to end, in order of submission.

One thread at a time runs `step`; `wait` makes one waiting thread do so for all.
"""

import collections
import dataclasses
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from bart_export.config import MAX_BATCH_SIZE, GenerationConfig, whole
from bart_export.errors import BartExportError, EngineError, InputError
from bart_export.runtime.batch import Batch, Slot
from bart_export.runtime.engine import FileEngine
from bart_export.runtime.search import Decode, Finished, Hypothesis, Search, search
from bart_export.runtime.sizing import MAX_SOURCES, decoder_bytes

MAX_MEMORY_BUDGET = 1 << 40
MEMORY_BUDGET = 192 << 20  # bytes; 16 sources of 256 tokens in bart_base's shape
WINDOW = 256  # sources that are sorted by length, to reduce padding
RETRY_AFTER = 64  # searches, after which more rows are tried again; a failed attempt repeats work
CLOSED = "The Generator was closed. Open the artifact again."


@dataclasses.dataclass(eq=False)
class Task:
    """A source and its search.

    Attributes:
        token_ids, generation: the source and its settings.
        streams: whether every new token makes the task ready, or only its end.
        truncated: whether `token_ids` are only the beginning of a text.
        cancelled: set to stop the search before the next step.
        tokens: settled tokens that have not been read.
        request: what the search has asked for.
        settled, repeated: how many tokens the search has settled, and how many of them are to be
            skipped, because an earlier start of the search had settled them.
        hypotheses: the result, or None before the end.
        error: the exception that ended the search, or None.
        admitted, encoded, ended: `time.perf_counter()` times, or 0.
    """

    token_ids: Sequence[int]
    generation: GenerationConfig
    streams: bool = False
    truncated: bool = False
    cancelled: bool = False
    tokens: collections.deque[int] = dataclasses.field(default_factory=collections.deque)
    request: Decode = dataclasses.field(init=False)
    settled: int = 0
    repeated: int = 0
    hypotheses: list[Hypothesis] | None = None
    error: Exception | None = None
    admitted: float = 0.0
    encoded: float = 0.0
    ended: float = 0.0

    def __post_init__(self) -> None:
        if self.generation.do_sample and self.generation.seed is None:
            # A restarted search must draw the same tokens.
            seed = secrets.randbits(63)
            self.generation = dataclasses.replace(self.generation, seed=seed)
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
        except Exception as error:  # of any kind, raised where the task is read
            self.error = error
        self.search = iter(())  # frees its logits
        self.ended = time.perf_counter()

    def settle(self, token_ids: list[int]) -> None:
        """Append settled tokens."""
        fresh = token_ids[max(0, self.repeated - self.settled) :]
        self.settled += len(token_ids)
        self.tokens.extend(fresh)

    def take(self) -> list[int]:
        """Remove and return the unread tokens."""
        return [self.tokens.popleft() for _ in range(len(self.tokens))]

    def fail(self, error: Exception) -> None:
        """End the task with an error."""
        self.error, self.ended = error, time.perf_counter()

    def restart(self) -> None:
        """Prepare to start over."""
        self.search = search(self.generation, self.token_ids)
        self.repeated, self.settled = max(self.repeated, self.settled), 0


class Scheduler:
    """Runs searches on an engine, as many at a time as fit.

    Args:
        engine: the engine, which must not be used elsewhere.
        max_batch_size: the maximum number of rows (beams of all sources) decoded together; a single
            source always fits.
        memory_budget: the maximum size of the decoder's inputs and outputs, in bytes; a single
            source always fits.

    Raises:
        ConfigurationError: if a number is out of range.

    Attributes:
        row_limit: `max_batch_size`, or less after a batch failed.
        encode_seconds, decode_seconds, search_seconds: total times of all steps so far.
        finished, tokens: the numbers of finished searches and of tokens in their best sequences.
    """

    def __init__(
        self,
        engine: FileEngine,
        max_batch_size: int = MAX_BATCH_SIZE,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        self.engine = engine
        self.max_batch_size = whole("max_batch_size", max_batch_size, 1, MAX_SOURCES)
        self.row_limit = self.max_batch_size
        self.memory_budget = whole("memory_budget", memory_budget, 1, MAX_MEMORY_BUDGET)
        # Shared by all threads, and changed with the lock. Each method takes it where it needs it.
        self.lock = threading.RLock()  # entered in C, so that Ctrl-C cannot leave it locked
        self.changed = threading.Condition(self.lock)
        self.waiting: collections.deque[Task] = collections.deque()
        self.closing = False
        self.stepper: int | None = None  # the identifier of the thread that steps
        # Of the thread that steps.
        self.admitting: list[Task] = []  # about to be encoded
        self.running: dict[Task, Slot] = {}
        self.batch: Batch | None = None
        self.encode_seconds = self.decode_seconds = self.search_seconds = 0.0
        self.finished = self.tokens = 0
        self.more_rows_at = 0  # the number of finished searches at which `row_limit` is doubled

    def submit(self, task: Task) -> Task:
        """Add a task to those waiting."""
        with self.lock:
            self.waiting.append(task)
            # Last, because a signal handler may have closed the scheduler in between. The other
            # tasks stay: the thread that closes it has yet to fail them.
            if self.closing:
                if task in self.waiting:
                    self.waiting.remove(task)
                raise EngineError(CLOSED)
        return task

    def cancel(self, *tasks: Task) -> None:
        """Stop tasks before the next step."""
        with self.lock:
            for task in tasks:
                task.cancelled = True
            self.changed.notify_all()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Step until `ready`, or wait while another thread steps."""
        while True:
            steps = False
            try:
                with self.lock:
                    while (self.stepper is not None or self.closing) and not ready():
                        self.changed.wait()
                    if ready():
                        return
                    steps, self.stepper = True, threading.get_ident()
                while not ready() and not self.closing:
                    if self.step():
                        with self.lock:
                            self.changed.notify_all()
            except BaseException:  # such as Ctrl-C, which may leave an inconsistent state
                if steps:
                    self.restart()
                raise
            finally:
                if steps:
                    with self.lock:
                        self.stepper = None
                        self.end()
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
        except Exception as error:  # engines may raise anything
            self.retry(tasks, error)
            return True
        decoded = time.perf_counter()
        for task in tasks:
            task.request.logits = logits[self.running[task]]
            task.advance()
        ended = [task for task in tasks if task.ended]
        self.release(ended)
        if self.finished >= self.more_rows_at:
            self.row_limit = min(2 * self.row_limit, self.max_batch_size)
            self.more_rows_at += RETRY_AFTER
        for task in ended:
            del task.request  # its logits
        self.decode_seconds += decoded - began
        self.search_seconds += time.perf_counter() - decoded
        return any(task.ready for task in tasks)

    def admit(self) -> None:
        """Encode the first waiting sources that fit alongside the running ones."""
        self.plan()
        if self.admitting:
            began = time.perf_counter()
            self.encode()
            self.encode_seconds += time.perf_counter() - began

    def plan(self) -> None:
        """Move the first waiting tasks that fit to `admitting`."""
        with self.lock:
            while self.waiting:
                task = self.waiting[0]
                together = [*self.running, *self.admitting, task]
                if not task.cancelled:
                    if task.rows != together[0].rows or len(together) > self.source_limit(together):
                        return
                    self.admitting.append(task)
                self.waiting.popleft()

    def source_limit(self, tasks: Sequence[Task]) -> int:
        """Return how many sources, including those of `tasks`, may be decoded together."""
        sizing, rows = self.engine.sizing, tasks[0].rows
        most = min(self.row_limit // rows, sizing.max_sources)
        if most <= 1:
            return 1
        source = max(len(task.token_ids) for task in tasks)
        capacity = max(task.generation.max_length for task in tasks)
        try:
            needed = decoder_bytes(sizing, source, rows, capacity)
        except InputError:  # `encode` rejects the source that does not fit
            return 1
        return max(1, min(most, self.memory_budget // needed))

    def encode(self) -> None:
        """Encode all tasks in `admitting`, and start their searches."""
        if self.batch is None or not self.running:
            self.batch = self.engine.batch(self.admitting[0].rows)
        longest = max(len(task.token_ids) for task in self.admitting)
        while self.admitting:
            task, sources = self.admitting[0], len(self.running) + len(self.admitting)
            task.admitted = time.perf_counter()
            try:
                if sources > 1:
                    self.batch.reserve(sources, longest, 1)
                slot = self.batch.admit(task.token_ids, task.generation.max_length)
            except InputError as error:
                task.fail(error)
                self.admitting.pop(0)
                continue
            except Exception as error:  # engines may raise anything
                self.retry([*self.running, *self.admitting], error)
                return
            task.encoded = time.perf_counter()
            self.running[task] = slot
            self.admitting.pop(0)
            task.advance()
        self.release([task for task in self.running if task.ended])

    def release(self, tasks: Sequence[Task]) -> None:
        """Remove running tasks and free their slots."""
        for task in tasks:
            slot = self.running.pop(task)
            if task.hypotheses is not None:
                self.finished += 1
                self.tokens += len(task.hypotheses[0].token_ids) - 1
            if self.batch is not None:
                self.batch.release(slot)

    def retry(self, tasks: Sequence[Task], error: Exception) -> None:
        """Restart tasks after an error, half as many at a time; a single task fails.

        Fewer tasks may fit in memory, and a task at fault will fail alone. After `RETRY_AFTER`
        searches, twice as many are tried again.
        """
        if len(tasks) == 1:
            tasks[0].fail(error)
        else:
            self.row_limit = max(1, len(tasks) * tasks[0].rows // 2)
            self.more_rows_at = self.finished + RETRY_AFTER
        self.restart()

    def restart(self) -> None:
        """Return the running tasks to the queue, because the batch's state is unknown.

        A restarted search repeats its tokens; `Task.settle` skips the repeated ones.
        """
        with self.lock:
            tasks = dict.fromkeys((*self.running, *self.admitting))
            restarted = [task for task in tasks if not task.ended]
            for task in restarted:
                task.restart()
            # An interrupted change may have left a task in two places.
            self.waiting = collections.deque(dict.fromkeys((*restarted, *self.waiting)))
            self.running, self.admitting, self.batch = {}, [], None

    def close(self) -> None:
        """End all tasks with EngineError, and release the model.

        In a signal handler that interrupted a step, the thread does so after that step.
        """
        with self.lock:
            self.closing = True
            while self.stepper not in (None, threading.get_ident()):
                self.changed.wait()
            self.end()

    def end(self) -> None:
        """Fail the remaining tasks and release the model, if it is closing and no thread steps."""
        with self.lock:
            if not self.closing or self.stepper is not None:
                return
            for task in (*self.running, *self.admitting, *self.waiting):
                task.fail(EngineError(CLOSED))
            self.running, self.admitting, self.batch = {}, [], None
            self.waiting.clear()
            self.changed.notify_all()
            self.engine.close()


def run_in_order(
    scheduler: Scheduler, tasks: Iterable[Task | BartExportError]
) -> Iterator[Task | BartExportError]:
    """Yield each task once it has ended, in order; errors are passed through.

    Up to `2 * WINDOW` tasks are read ahead.
    """
    upcoming = iter(tasks)
    ahead: collections.deque[Task | BartExportError] = collections.deque()
    more = True

    def needs_tasks() -> bool:
        """Return whether more tasks must be read to keep the batch full."""
        running = sum(not each.ended for each in ahead if isinstance(each, Task))
        return more and running < scheduler.max_batch_size and len(ahead) <= WINDOW

    def ready() -> bool:
        """Return whether it is time to read or yield a task."""
        first = ahead[0]
        return needs_tasks() or not isinstance(first, Task) or bool(first.ended)

    try:
        while more or ahead:
            if needs_tasks():
                window = list(itertools.islice(upcoming, WINDOW))
                more = len(window) == WINDOW
                ahead.extend(window)
                read = [each for each in window if isinstance(each, Task)]
                for task in sorted(read, key=lambda task: -len(task.token_ids)):
                    scheduler.submit(task)
            else:
                scheduler.wait(ready)
                if not needs_tasks():
                    yield ahead.popleft()
    finally:
        scheduler.cancel(*(each for each in ahead if isinstance(each, Task)))
