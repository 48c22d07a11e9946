"""Dynamic batching: which waiting calls run together, and when, by TensorFlow Serving's rules.

Calls with the same signature, outputs and dtypes are run as one batch, and each gets its rows of
the outputs. The rules and parameters are those of TensorFlow Serving's batching_session.cc and
batching_util.cc and TensorFlow's shared_batch_scheduler.h.

Three things differ: a call that times out in the queue, or is cancelled, is left out of its batch;
`queue_size` also bounds the number of waiting calls; and an invalid call does not fail the others
in its batch.
"""

import collections
import dataclasses
import itertools
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from bart_export.errors import ConfigurationError
from bart_export.server import messages
from bart_export.server.merging import merged_inputs, row_count, split_outputs
from bart_export.server.servable import QUEUE_FULL, Limits, Tensors
from bart_export.server.status import Code, StatusError, invalid

# Upper bounds of the parameters. TensorFlow Serving has none.
MOST_ROWS, MOST_SIZES, MOST_BATCHES, MOST_THREADS = 10_000, 1000, 1 << 31, 256
MOST_MICROSECONDS = 3_600_000_000

TIMED_OUT = "Run() timeout exceeded while waiting in batching queue"

# (signature, names of outputs, inputs of all rows, seconds or None) -> outputs of all rows.
Run = Callable[[str, Sequence[str], Tensors, float | None], Tensors]
# Outputs of a call's parts, in order -> outputs of the call.
Join = Callable[[Sequence[Tensors]], Tensors]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """The fields of TensorFlow Serving's BatchingParameters message.

    `max_batch_size` bounds the rows of a call and of a batch. If large calls are split
    (`enable_large_batch_splitting`), `max_execution_batch_size` (0 for the same size) bounds the
    rows of a batch. A batch that is not full waits `batch_timeout_micros` for more calls. Up to
    `max_enqueued_batches` wait for each signature. `num_batch_threads` batches run in parallel;
    None uses the server's `workers`. Batches are padded to the next of `allowed_batch_sizes`.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int | None = None
    thread_pool_name: str = "model_server_batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        sizes = self.allowed_batch_sizes
        for name, value, least, most in (
            ("max_batch_size", self.max_batch_size, 1, MOST_ROWS),
            ("batch_timeout_micros", self.batch_timeout_micros, 0, MOST_MICROSECONDS),
            ("max_enqueued_batches", self.max_enqueued_batches, 0, MOST_BATCHES),
            ("num_batch_threads", self.num_batch_threads, 1, MOST_THREADS),
            ("The number of allowed_batch_sizes", len(sizes), 0, MOST_SIZES),
        ):
            if value is not None and value < least:
                raise invalid(
                    f"{name} must be {'positive' if least else 'non-negative'}; was {value}"
                )
            if value is not None and value > most:
                raise invalid(f"{name} must be at most {most}; was {value}")
        if not 0 <= self.max_execution_batch_size <= self.max_batch_size:
            raise invalid(
                "max_execution_batch_size must be at most max_batch_size, "
                f"{self.max_batch_size}; was {self.max_execution_batch_size}"
            )
        if sorted({*sizes}) != [*sizes]:
            raise invalid(
                "allowed_batch_sizes entries must be monotonically increasing; were "
                f"{', '.join(map(str, sizes))}"
            )
        if sizes and sizes[-1] != self.max_batch_size:
            raise invalid(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{sizes[-1]}; expected {self.max_batch_size}"
            )

    @property
    def batch_limit(self) -> int:
        """The largest number of rows in a batch."""
        split = self.enable_large_batch_splitting and self.max_execution_batch_size
        return split or self.max_batch_size

    def filled(self, rows: int) -> int:
        """Return the number of rows that a batch of `rows` is padded to."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


def read_parameters(path: pathlib.Path) -> Parameters:
    """Read a BatchingParameters message in text format.

    Raises:
        StatusError: INVALID_ARGUMENT for a file that cannot be read, or invalid parameters.
    """
    try:
        message = messages.read_text(path, messages.BatchingParameters)
    except ConfigurationError as error:
        raise invalid(str(error)) from None
    fields = {
        field.name: value.value if hasattr(value, "value") else value
        for field, value in message.ListFields()
    }
    sizes = tuple(fields.pop("allowed_batch_sizes", ()))
    try:
        return Parameters(allowed_batch_sizes=sizes, **fields)
    except StatusError as error:
        raise invalid(f"{path}: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A waiting call, or a part of one, whose inputs all have `rows` rows."""

    inputs: Tensors
    rows: int
    limits: Limits
    future: "Future[Tensors]" = dataclasses.field(default_factory=Future)

    def begin(self) -> bool:
        """Return whether to run the task; if it was cancelled or has timed out, end it instead."""
        if not self.future.set_running_or_notify_cancel():
            return False
        if self.limits.stop.is_set():
            self.end(StatusError(Code.CANCELLED, "The request was cancelled"))
        elif self.limits.remaining() == 0.0:
            self.end(StatusError(Code.RESOURCE_EXHAUSTED, TIMED_OUT))
        return not self.future.done()

    def end(self, answer: Tensors | Exception) -> None:
        """Set the outputs or the error."""
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)

    def split(self, first: int, limit: int, join: Join) -> "list[Task]":
        """Return parts of at most `limit` rows; the first has at most `first`, unless that is 0.

        The task ends with its last part, with the joined outputs or the first failed part's error.
        """
        self.future.set_running_or_notify_cancel()
        starts = [0, *range(first, self.rows, limit)] if first else [*range(0, self.rows, limit)]
        parts = []
        for start, end in itertools.pairwise([*starts, self.rows]):
            inputs = {name: value[start:end] for name, value in self.inputs.items()}
            parts.append(Task(inputs, end - start, self.limits))
        unfinished = threading.Semaphore(len(parts) - 1)

        def finish(_: "Future[Tensors]") -> None:
            if unfinished.acquire(blocking=False):
                return
            try:
                self.end(join([part.future.result() for part in parts]))
            except Exception as error:  # of any part, or of joining them
                self.end(error)

        for part in parts:
            part.future.add_done_callback(finish)
        return parts


@dataclasses.dataclass
class Batch:
    """Tasks that will run together, no later than `due`, a `time.monotonic()` time."""

    tasks: list[Task] = dataclasses.field(default_factory=list)
    rows: int = 0
    due: float = 0.0


class Queue:
    """The waiting batches of one signature; new tasks join the last one."""

    def __init__(self, parameters: Parameters, join: Join) -> None:
        self.parameters = parameters
        self.join = join
        self.batches = collections.deque([Batch()])

    def add(self, task: Task) -> int:
        """Append a task or its parts, and return their number."""
        parameters, limit = self.parameters, self.parameters.batch_limit
        free, splits = limit - self.batches[-1].rows, parameters.enable_large_batch_splitting
        more = parameters.max_enqueued_batches - len(self.batches)
        if task.rows > free + limit * more if splits else task.rows > free and more <= 0:
            raise StatusError(
                Code.UNAVAILABLE,
                f"{QUEUE_FULL}; currently {len(self.batches)} batches enqueued and "
                f"max_enqueued_batches is {parameters.max_enqueued_batches}",
            )
        parts = task.split(free, limit, self.join) if splits and task.rows > free else [task]
        for part in parts:
            if self.batches[-1].rows + part.rows > limit:
                self.batches.append(Batch())
            batch = self.batches[-1]
            if not batch.tasks:
                batch.due = time.monotonic() + parameters.batch_timeout_micros / 1e6
            batch.tasks.append(part)
            batch.rows += part.rows
        return len(parts)

    def due(self) -> float:
        """Return when the first batch may run: at once if it is full or another is waiting."""
        first = self.batches[0]
        ready = len(self.batches) > 1 or first.rows >= self.parameters.batch_limit
        return 0.0 if ready else first.due


Key = tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]


class BatchScheduler:
    """Threads that run the batches of one model, taking its signatures in turn.

    `join` joins the outputs of a call's parts. `num_threads` is the default of `num_batch_threads`.
    Up to `queue_size` calls wait in addition to those for which a thread is free.
    """

    def __init__(
        self, run: Run, join: Join, parameters: Parameters, num_threads: int, queue_size: int
    ) -> None:
        self._run = run
        self._join = join
        self._parameters = parameters
        self._queue_size = queue_size
        self._queues: collections.OrderedDict[Key, Queue] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._waiting = 0
        self._closing = False
        self._idle = parameters.num_batch_threads or num_threads
        self._threads = [
            threading.Thread(
                target=self._work, name=f"{parameters.thread_pool_name}_{number}", daemon=True
            )
            for number in range(self._idle)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, signature: str, outputs: Sequence[str], inputs: Tensors, limits: Limits
    ) -> "Future[Tensors]":
        """Queue a call for a batch; each of `inputs` is (rows, ...).

        Raises:
            StatusError: INVALID_ARGUMENT for inputs that cannot be batched, UNAVAILABLE if the
                queue is full.
        """
        task = Task(inputs, row_count(inputs), limits)
        if task.rows > self._parameters.max_batch_size:
            raise invalid(
                f"Task size {task.rows} is larger than maximum input batch size "
                f"{self._parameters.max_batch_size}"
            )
        # A call with wrong dtypes fails alone: TensorFlow would refuse the whole batch.
        dtypes = tuple(sorted((name, str(value.dtype)) for name, value in inputs.items()))
        key = (signature, tuple(sorted(outputs)), dtypes)
        with self._changed:
            if self._waiting >= self._queue_size + self._idle:
                raise StatusError(Code.UNAVAILABLE, QUEUE_FULL)
            queue = self._queues.get(key) or Queue(self._parameters, self._join)
            added = queue.add(task)
            self._queues[key] = queue
            self._waiting += added
            self._changed.notify(added)
        return task.future

    def close(self) -> None:
        """Run all waiting batches, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        # A separate method, so that waiting threads keep no tensors alive.
        if (taken := self._take()) is None:
            return False
        (signature, outputs, _), waiting = taken
        tasks = [task for task in waiting if task.begin()]
        answers = self._run_batch(signature, outputs, tasks) if tasks else []
        # Before the results are set: whoever receives one may submit again.
        with self._changed:
            self._idle += 1
        for task, answer in zip(tasks, answers, strict=True):
            task.end(answer)
        return True

    def _take(self) -> tuple[Key, list[Task]] | None:
        """Wait for a batch that may run, or return None when closed and empty."""
        with self._changed:
            while True:
                dues = {key: queue.due() for key, queue in self._queues.items()}
                now = time.monotonic()
                key = next((key for key in dues if dues[key] <= now or self._closing), None)
                if key is not None:
                    queue = self._queues.pop(key)
                    tasks = queue.batches.popleft().tasks
                    if queue.batches:  # behind the other queues
                        self._queues[key] = queue
                    self._waiting -= len(tasks)
                    self._idle -= 1
                    return key, tasks
                if self._closing:
                    return None
                self._changed.wait(min(dues.values()) - now if dues else None)

    def _run_batch(
        self, signature: str, outputs: Sequence[str], tasks: Sequence[Task]
    ) -> Sequence[Tensors | Exception]:
        """Run tasks together and return the outputs or error of each."""
        rows = [task.rows for task in tasks]
        size = self._parameters.filled(sum(rows)) if any(rows) else 0
        remaining = [seconds for task in tasks if (seconds := task.limits.remaining()) is not None]
        seconds = max(remaining) if len(remaining) == len(tasks) else None
        try:
            merged = merged_inputs(
                [task.inputs for task in tasks], size, self._parameters.pad_variable_length_inputs
            )
            return split_outputs(self._run(signature, outputs, merged, seconds), rows, size)
        except StatusError as error:
            if error.code == Code.INVALID_ARGUMENT and len(tasks) > 1:  # find the invalid one
                return [self._run_batch(signature, outputs, [task])[0] for task in tasks]
            return [StatusError(error.code, error.message) for _ in tasks]
        except Exception as error:  # engines may raise anything; the thread must go on
            return [error for _ in tasks]
