"""The interface of a loaded model version, the same for every engine, and its calls.

Texts that are too long for the model are truncated, and blank texts get an empty result, because
the model would make one up. `Remarks` record both.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from bart_export.runtime.results import Result
from bart_export.server.messages import Array, Message
from bart_export.server.status import TIMED_OUT, Code, StatusError
from bart_export.text.tokenizer import BartTokenizer

# Strings are arrays of bytes with dtype object.
Tensors = Mapping[str, Array]


@dataclasses.dataclass
class Remarks:
    """The rows whose texts were truncated, and those that are blank.

    Sent as headers over REST, as trailing metadata over gRPC, and in a stream's last event.
    """

    truncated: list[int] = dataclasses.field(default_factory=list)
    empty: list[int] = dataclasses.field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """Return headers such as `truncated-rows: 0,2` and `empty-rows: 1`, if there are rows."""
        rows = {"truncated-rows": self.truncated, "empty-rows": self.empty}
        return {name: ",".join(map(str, numbers)) for name, numbers in rows.items() if numbers}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """When to give up work on a request, and the remarks on its texts.

    `deadline` is a `time.monotonic()` time, or None. `stop` is set once the result is no longer
    needed, because the client has disconnected or the server has given up.
    """

    deadline: float | None = None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    remarks: Remarks = dataclasses.field(default_factory=Remarks)

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, at least 0, or None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise StatusError if the work should stop; long work calls this between its steps."""
        if self.stop.is_set():
            raise StatusError(Code.CANCELLED, "The request was cancelled")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise StatusError(Code.DEADLINE_EXCEEDED, TIMED_OUT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One run of a signature.

    `inputs` has every input without a default. Names are checked; dtypes and shapes are not.
    `outputs` names the outputs to return, at least one.
    """

    signature: str
    inputs: Tensors
    outputs: tuple[str, ...]
    limits: Limits = dataclasses.field(default_factory=Limits)


# Takes a piece of text and the number of tokens generated so far.
Emit = Callable[[str, int], None]


class Servable(Protocol):
    """A loaded version of a model. All methods are thread-safe."""

    @property
    def signature_defs(self) -> Mapping[str, Message]:
        """The SignatureDef messages, complete with dtypes, shapes and defaults, by name."""

    @property
    def streams(self) -> bool:
        """Whether `stream` is supported."""

    @property
    def reader(self) -> "TextReader | None":
        """The model's text reader, or None if the model is not from an artifact."""

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature, and return a future of its outputs.

        `status_of_error` gives the code of the future's error: INVALID_ARGUMENT for inputs with a
        wrong dtype or shape, DEADLINE_EXCEEDED, CANCELLED, or that of another error of the engine.

        Raises:
            StatusError: UNAVAILABLE if the queue is full, or any error found before queueing.
        """

    def stream(
        self, text: str, parameters: Mapping[str, object], emit: Emit, limits: Limits
    ) -> "Future[Result]":
        """Generate from a text piece by piece; the future is done after the last piece.

        `parameters` are fields of `config.GenerationConfig`. Another thread calls `emit`.

        Raises:
            StatusError: UNAVAILABLE if the queue is full; UNIMPLEMENTED unless `streams`.
        """

    def close(self) -> None:
        """Release memory and threads. Called once, when no call is in progress."""


Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Lease:
    """A servable that stays open until the lease and its work have ended.

    Work may outlast the request, because it stops a moment after a client disconnects or a deadline
    passes. `hold` adds a number to the count of the servable's uses.
    """

    servable: Servable
    version: int
    hold: Callable[[int], None]

    def keep(self, future: "Future[Answer]") -> "Future[Answer]":
        """Keep the servable open until `future` is done as well, and return `future`."""
        self.hold(1)
        future.add_done_callback(lambda _: self.hold(-1))
        return future


QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"


class Workers:
    """A servable's threads; up to `queue_size` calls wait for one."""

    def __init__(self, count: int, queue_size: int, name: str) -> None:
        self._free = threading.Semaphore(count + queue_size)
        self._threads = ThreadPoolExecutor(count, name)

    def submit(self, work: Callable[[], Answer], limits: Limits) -> "Future[Answer]":
        """Do some work on the next free thread, unless its limits are exceeded by then.

        Raises:
            StatusError: UNAVAILABLE if the queue is full.
        """
        if not self._free.acquire(blocking=False):
            raise StatusError(Code.UNAVAILABLE, QUEUE_FULL)

        def limited() -> Answer:
            try:
                limits.check()
                return work()
            finally:
                # Before the result is set: whoever receives it may submit again.
                self._free.release()

        return self._threads.submit(limited)

    def close(self) -> None:
        """Wait for all work to finish."""
        self._threads.shutdown()


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Encodes texts for a model: at most `longest` source tokens, including start and end."""

    tokenizer: BartTokenizer
    longest: int

    def encode(self, text: str, remarks: Remarks, row: int = 0) -> list[int]:
        """Return the ids of a text, truncated to `longest`; a truncation is added to `remarks`."""
        ids, truncated = self.tokenizer.encode_beginning(text, self.longest)
        if truncated:
            remarks.truncated.append(row)
        return ids

    def blank_rows(self, texts: Array, limits: Limits) -> list[int]:
        """Return the blank rows of texts (batch,); truncated texts are added to the remarks."""
        for row, data in enumerate(texts):
            limits.check()
            text = data.decode("utf-8", "replace")
            if is_blank(text):
                limits.remarks.empty.append(row)
            else:
                self.encode(text, limits.remarks, row)
        return limits.remarks.empty


def is_blank(text: str) -> bool:
    """Return whether a text is empty or only whitespace."""
    return not text.strip()
