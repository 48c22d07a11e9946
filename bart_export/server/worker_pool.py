"""Worker processes that run a model, and the jobs that the server gives them.

The server's own process never runs a model: LiteRT holds Python's GIL, so that no other request
would be answered in the meantime. A thread listens to each worker. If a worker dies, it is
restarted, and its jobs are retried once, except those whose tokens a client has received.
"""

import contextlib
import dataclasses
import itertools
import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from bart_export.config import GenerationConfig
from bart_export.errors import EngineError, last_words
from bart_export.runtime.results import Result
from bart_export.server import worker
from bart_export.server.metrics import MICROSECONDS, GenerationMetrics
from bart_export.server.servable import Limits
from bart_export.server.status import Code, StatusError
from bart_export.server.worker import Cancel, Commands, Failed, Opening, Progress, Ready, Start

LOG = logging.getLogger(__name__)

PROCESSES = multiprocessing.get_context("spawn")  # a fork would copy locks that are held
POLL_SECONDS = 0.02  # between checks of running jobs' limits
IDLE_SECONDS = 1.0  # between checks while there are no jobs; one may arrive meanwhile
MAX_FAILED_STARTS = 3  # in a row, after which a worker is not restarted
RESTART_SECONDS = 1.0  # between a failed start and the next one
MAX_ATTEMPTS = 2  # processes that may die while running a job
EXIT_SECONDS = 5.0  # for a process to exit once its pipe is closed
# About a process that ends while it opens the artifact.
HINT = "; the .tflite file may not be the one that bart-export wrote. Export the artifact again"


@dataclasses.dataclass(eq=False)
class Job:
    """A source to generate from.

    Attributes:
        tokens: if the job streams, receives lists of settled tokens; None is the last item.
        future: the result.
        submitted: a `time.perf_counter()` time.
        attempts: the number of processes that were told to run it.
    """

    token_ids: Sequence[int]
    generation: GenerationConfig
    limits: Limits
    streams: bool = False
    tokens: "queue.SimpleQueue[list[int] | None]" = dataclasses.field(
        default_factory=queue.SimpleQueue
    )
    future: "Future[Result]" = dataclasses.field(default_factory=Future)
    number: int = dataclasses.field(default_factory=itertools.count().__next__)
    submitted: float = dataclasses.field(default_factory=time.perf_counter)
    is_running: bool = False
    is_cancelled: bool = False
    has_streamed: bool = False
    attempts: int = 0


class WorkerPool:
    """Worker processes for one artifact; jobs go to the one with the fewest.

    Args:
        opening: what the workers open.
        count: the number of workers.
        metrics: counts and times the jobs.

    Raises:
        EngineError: if a worker cannot open the artifact.
    """

    def __init__(self, opening: Opening, count: int, metrics: GenerationMetrics) -> None:
        self.metrics = metrics
        self.workers: list[WorkerProcess] = []
        try:
            # The first process packs the weights that the others map, or opening kills it alone.
            for more in (1, count - 1):
                self.workers += [WorkerProcess(opening, self) for _ in range(more)]
                self.longest = min(each.opened.result() for each in self.workers)
        except BaseException:  # nobody else would end the processes
            self.close()
            raise

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Run jobs together and return their results; if one fails, the others are stopped."""
        self.submit(jobs)
        try:
            return [job.future.result() for job in jobs]
        finally:
            self.cancel(jobs)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs together."""
        self.metrics.waiting.inc(len(jobs))
        self.send(jobs)

    def send(self, jobs: Sequence[Job]) -> None:
        """Give jobs to a worker, preferably one that is ready."""
        for each in sorted(self.workers, key=lambda each: (not each.is_ready, len(each.jobs))):
            if each.take(jobs):
                return
        for job in jobs:
            reason = f"No worker process is running: {self.workers[0].reason}"
            self.end(job, StatusError(Code.UNAVAILABLE, reason))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop the jobs that have not ended."""
        for job in jobs:
            job.is_cancelled = True  # for `retry`, if it is not one of any worker's
        for each, job in itertools.product(self.workers, jobs):
            each.stop(job, StatusError(Code.CANCELLED, "The request was cancelled"))

    def retry(self, jobs: Sequence[Job], reason: str) -> None:
        """Rerun the jobs of a worker that died, or end those that cannot be rerun."""
        again = [job for job in jobs if job.attempts < MAX_ATTEMPTS and not job.has_streamed]
        for job in again:
            if job.is_running:
                self.metrics.running.dec()
                self.metrics.waiting.inc()
                job.is_running = False
        if again:
            self.send(again)
            self.cancel([job for job in again if job.is_cancelled])
        for job in set(jobs).difference(again):
            message = f"The worker process of this request died: {reason}. Try again."
            self.end(job, StatusError(Code.UNAVAILABLE, message))

    def handle(self, job: Job, progress: Progress) -> None:
        """Record what has happened to a job."""
        metrics, waited = self.metrics, MICROSECONDS * (time.perf_counter() - job.submitted)
        if job.number in progress.started:
            job.is_running = True
            metrics.waiting.dec()
            metrics.running.inc()
            metrics.queueing_time.observe(waited - MICROSECONDS * progress.started[job.number])
            if not isinstance(progress.ended.get(job.number), Exception):
                metrics.time_to_first_token.observe(waited)
        if job.number in progress.tokens:
            job.has_streamed = True
            job.tokens.put(progress.tokens[job.number])

    def end(self, job: Job, outcome: Result | Exception) -> None:
        """Set the result or the error of a job."""
        (self.metrics.running if job.is_running else self.metrics.waiting).dec()
        if isinstance(outcome, Result):
            tokens = sum(len(sequence.token_ids) - 1 for sequence in outcome.sequences)
            self.metrics.generated_tokens.inc(tokens)
            job.future.set_result(outcome)
        else:
            job.future.set_exception(outcome)
        job.tokens.put(None)

    def close(self) -> None:
        """End all processes. No job may be in progress."""
        for each in self.workers:
            each.close()
        for each in self.workers:
            each.join()


class WorkerProcess:
    """One of the pool's workers, which is restarted when its process ends.

    Attributes:
        opened: the maximum number of source tokens, once the first process is ready.
        jobs: those that have not ended, by number.
        is_ready: whether the process has opened the artifact.
        is_retired: whether the worker has been given up or closed.
        reason: why the last process ended.
        process: the last one that was started.
    """

    def __init__(self, opening: Opening, pool: WorkerPool) -> None:
        self.opening, self.pool = opening, pool
        self.opened: Future[int] = Future()
        self.lock = threading.Lock()  # guards the fields below
        self.jobs: dict[int, Job] = {}
        self.commands: queue.SimpleQueue[Commands | None] = queue.SimpleQueue()
        self.is_ready = self.is_closing = self.is_retired = False
        self.reason = ""
        self.process: BaseProcess | None = None
        self.thread = threading.Thread(target=self.supervise, name="litert-worker", daemon=True)
        self.thread.start()

    def take(self, jobs: Sequence[Job]) -> bool:
        """Take jobs, which start as soon as the process is ready; return False if it is retired."""
        with self.lock:
            if not self.is_retired:
                self.jobs.update((job.number, job) for job in jobs)
                if self.is_ready:
                    self.start(jobs)
            return not self.is_retired

    def start(self, jobs: Collection[Job]) -> None:
        """Tell the process to run jobs. The caller holds the lock."""
        for job in jobs:
            job.attempts += 1
        self.commands.put(
            [Start(job.number, job.token_ids, job.generation, job.streams) for job in jobs]
        )

    def stop(self, job: Job, error: StatusError) -> None:
        """Stop a job if it is one of this worker's."""
        with self.lock:
            is_ours = self.jobs.pop(job.number, None) is not None
            if is_ours and self.is_ready:
                self.commands.put(Cancel(job.number))
        if is_ours:
            self.pool.end(job, error)

    def close(self) -> None:
        """Tell the process to end, without waiting."""
        with self.lock:
            self.is_closing = True
            self.commands.put(None)

    def join(self) -> None:
        """Wait for a closed process to exit, and kill it if it hangs."""
        self.thread.join(EXIT_SECONDS)
        while self.thread.is_alive():
            if self.process is not None:
                self.process.kill()
            self.thread.join(EXIT_SECONDS)

    def supervise(self) -> None:
        """Run the process, and restart it whenever it ends; give up after failed starts."""
        failures = 0
        while not self.is_retired:
            try:
                block_signals()
                reason = self.run_process()
            except Exception as error:  # such as too few file descriptors, threads or memory
                reason = f"{type(error).__name__}: {error}"
            with self.lock:
                failures = 0 if self.is_ready else failures + 1
                lost, self.jobs = list(self.jobs.values()), {}
                never = not self.opened.done()
                self.is_retired = self.is_closing or never or failures == MAX_FAILED_STARTS
                self.is_ready, self.reason = False, reason
            if never:
                place = self.opening.directory
                self.opened.set_exception(EngineError(f"A worker cannot open {place}: {reason}"))
            elif not self.is_closing:
                log = LOG.error if self.is_retired else LOG.warning
                log(
                    "%s: a worker process ended: %s. %s",
                    self.opening.directory.name,
                    reason,
                    f"Given up after {failures} failed starts" if self.is_retired else
                    f"Restarting it; texts in progress: {len(lost)}",
                )  # fmt: skip
            self.pool.retry(lost, reason)
            if failures and not self.is_retired:
                time.sleep(RESTART_SECONDS)

    def run_process(self) -> str:
        """Run a process until it ends, and return why it ended."""
        reason, began = "", time.monotonic()
        pipe, other_end = PROCESSES.Pipe()
        process = PROCESSES.Process(target=worker.run, args=(other_end, self.opening), daemon=True)
        with pipe:
            with other_end:
                process.start()
            with self.lock:
                self.process = process
                commands = self.commands = queue.SimpleQueue()
                if self.is_closing:
                    commands.put(None)
            writer = threading.Thread(target=write, args=(pipe, commands), daemon=True)
            try:
                writer.start()
                with contextlib.suppress(EOFError, OSError):
                    while True:
                        watches = self.jobs or not self.is_ready
                        if pipe.poll(POLL_SECONDS if watches else IDLE_SECONDS):
                            message = pipe.recv()
                            if isinstance(message, Failed):
                                reason = message.error
                            else:
                                self.handle(message)
                        elif not self.is_ready and time.monotonic() - began > self.opening.seconds:
                            reason = f"it was not ready within {self.opening.seconds:g} s"
                            process.kill()
                        self.check_limits()
            finally:
                process.join(EXIT_SECONDS)
                process.kill()
                process.join()
                commands.put(None)
                if writer.is_alive():
                    writer.join()
        hint = "" if self.is_ready else HINT
        return reason or last_words("", process.exitcode or 0) + hint

    def handle(self, message: Ready | Progress) -> None:
        """Handle a message from the process."""
        if isinstance(message, Ready):
            with self.lock:
                self.is_ready = True
                if self.jobs:
                    self.start(self.jobs.values())
            if not self.opened.done():
                self.opened.set_result(message.longest)
            return
        for size in message.batch_sizes:
            self.pool.metrics.batch_size.observe(size)
        for number in {*message.started, *message.tokens, *message.ended}:
            with self.lock:
                ends = number in message.ended
                job = self.jobs.pop(number, None) if ends else self.jobs.get(number)
                if job is not None:  # locked, so that `stop` cannot end it meanwhile
                    self.pool.handle(job, message)
            if job is not None and ends:
                self.pool.end(job, message.ended[number])

    def check_limits(self) -> None:
        """Stop the jobs whose limits are exceeded."""
        for job in list(self.jobs.values()):
            try:
                job.limits.check()
            except StatusError as error:
                self.stop(job, error)


def block_signals() -> None:
    """Block the signals that stop a server in this thread and in the processes that it starts.

    A signal to the whole group, such as Ctrl-C, then reaches only the server, which lets running
    calls finish.
    """
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        resource_tracker.ensure_running()  # starting it later would unblock the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def write(pipe: Connection, commands: "queue.SimpleQueue[Commands | None]") -> None:
    """Send commands to a process; None ends it.

    Runs on a thread, because a full pipe blocks, and the process may be blocked by its own.
    """
    with contextlib.suppress(OSError):
        while (command := commands.get()) is not None:
            pipe.send(command)
        pipe.send(None)
