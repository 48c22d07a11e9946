"""What is served: one loaded version of a model, behind one interface, whatever computes it.

A call names a signature and brings its inputs; a future of the outputs comes back at once, or an
error when there is no room for the call. Whatever the engine, a text that is longer than the model
reads is cut, and a text without a word gets an empty text instead of one that the model makes up;
`Remarks` say so.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from bart_export.artifact.artifact import Artifact
from bart_export.runtime.results import Result
from bart_export.server.messages import Message
from bart_export.server.status import TIMED_OUT, Code, StatusError
from bart_export.server.tensors import Array
from bart_export.text.tokenizer import BartTokenizer

# Strings are arrays of dtype object that hold bytes.
Tensors = Mapping[str, Array]


@dataclasses.dataclass
class Remarks:
    """The rows whose texts were cut, and those that are blank.

    Headers over REST, trailing metadata over gRPC, and part of the last event of a stream.
    """

    truncated: list[int] = dataclasses.field(default_factory=list)
    empty: list[int] = dataclasses.field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """Return them as `truncated-rows: 0,2` and `empty-rows: 1`, without those of no row."""
        rows = {"truncated-rows": self.truncated, "empty-rows": self.empty}
        return {name: ",".join(map(str, numbers)) for name, numbers in rows.items() if numbers}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """When work is no longer wanted, and what is remarked while it is done.

    `deadline` is a time of `time.monotonic()`, None for none. `stop` is set once nobody waits for
    the answer, because the client has gone or the server gives up.
    """

    deadline: float | None = None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    remarks: Remarks = dataclasses.field(default_factory=Remarks)

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, at least 0, or None if there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """End the work that calls this between its steps."""
        if self.stop.is_set():
            raise StatusError(Code.CANCELLED, "The request was cancelled")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise StatusError(Code.DEADLINE_EXCEEDED, TIMED_OUT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One run of a signature.

    `inputs` has every input the signature has no default for, checked for name but for neither
    dtype nor shape. `outputs` names those that are wanted, at least one.
    """

    signature: str
    inputs: Tensors
    outputs: tuple[str, ...]
    limits: Limits = dataclasses.field(default_factory=Limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamCall:
    """One generation from a text whose pieces are wanted as soon as they are certain.

    `parameters` are fields of `config.GenerationConfig`. `emit` is called from the worker's thread
    with each piece of text and the number of tokens generated so far.
    """

    text: str
    parameters: Mapping[str, Any]
    emit: Callable[[str, int], None]
    limits: Limits = dataclasses.field(default_factory=Limits)


class Servable(Protocol):
    """A loaded version of a model. All methods may be called from several threads at once."""

    @property
    def signature_defs(self) -> Mapping[str, Message]:
        """SignatureDef messages of `server.messages`, complete with dtypes, shapes and defaults."""

    @property
    def streams(self) -> bool:
        """Whether `stream` works."""

    @property
    def reader(self) -> "TextReader | None":
        """What reads texts as the model does; None for a model that is no artifact's."""

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature.

        The future ends with the outputs, or with a StatusError: INVALID_ARGUMENT for inputs of
        another dtype or shape, DEADLINE_EXCEEDED, CANCELLED, or what the engine says.

        Raises:
            StatusError: UNAVAILABLE if no room is left in the queue, and whatever else is known at
                once.
        """

    def stream(self, call: StreamCall) -> "Future[Result]":
        """Generate from a text piece by piece; the future ends after the last piece.

        Raises:
            StatusError: UNAVAILABLE as for `submit`; UNIMPLEMENTED if this engine cannot.
        """

    def close(self) -> None:
        """Release memory and threads. Called once, when no call is under way."""


Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Lease:
    """A servable that is not closed while the lease lasts, nor before its work has ended.

    A front stops waiting when a client goes away or time is over, a moment before the work stops.
    `hold` adds to the number of those that hold the servable.
    """

    servable: Servable
    version: int
    hold: Callable[[int], None]

    def keep(self, future: "Future[Answer]") -> "Future[Answer]":
        """Hold the servable until `future` is done, too, and return `future`."""
        self.hold(1)
        future.add_done_callback(lambda _: self.hold(-1))
        return future


QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"


class Workers:
    """Threads of a servable; `queue_size` calls may wait beside those that run."""

    def __init__(self, count: int, queue_size: int, name: str) -> None:
        self._free = threading.Semaphore(count + queue_size)
        self._threads = ThreadPoolExecutor(count, name)

    def submit(self, work: Callable[[], Answer], limits: Limits) -> "Future[Answer]":
        """Do some work on the next free thread, unless its limits have ended it by then.

        Raises:
            StatusError: UNAVAILABLE if too much is waiting already.
        """
        if not self._free.acquire(blocking=False):
            raise StatusError(Code.UNAVAILABLE, QUEUE_FULL)

        def limited() -> Answer:
            try:
                limits.check()
                return work()
            finally:
                # Before the answer is told: whoever is may count on the thread that gave it.
                self._free.release()

        return self._threads.submit(limited)

    def close(self) -> None:
        """Wait for the threads to end."""
        self._threads.shutdown()


TEXT, GENERATED = "text", "generated_text"


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Reads texts as a model does: `longest` source tokens at most, both ends included."""

    tokenizer: BartTokenizer
    longest: int

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "TextReader":
        """Return the reader of an artifact's texts."""
        return cls(BartTokenizer.from_artifact(artifact), artifact.manifest.encoder_sequence_length)

    def encode(self, text: str, remarks: Remarks, row: int = 0) -> list[int]:
        """Return the ids of a text, cut to what the model reads, which is remarked."""
        ids, truncated = self.tokenizer.encode_beginning(text, self.longest)
        if truncated:
            remarks.truncated.append(row)
        return ids

    def blank_rows(self, texts: Array, limits: Limits) -> list[int]:
        """Return the rows of texts (batch,) that have no word; what is not read is remarked."""
        for row, data in enumerate(texts):
            limits.check()
            text = data.decode("utf-8", "replace")
            if is_blank(text):
                limits.remarks.empty.append(row)
            else:
                self.encode(text, limits.remarks, row)
        return limits.remarks.empty


def is_blank(text: str) -> bool:
    """Say whether a text has no word: it is empty or white space."""
    return not text.strip()


def generates_from_texts(call: Call, signature: Message) -> bool:
    """Say whether a call generates texts from texts (batch,)."""
    text = call.inputs.get(TEXT)
    return (
        text is not None
        and GENERATED in signature.outputs
        and text.dtype.kind == "O"
        and text.ndim == 1
        and text.size > 0
    )


def blanked(outputs: Tensors, rows: Sequence[int]) -> Tensors:
    """Return outputs with nothing in some rows: empty strings, and numbers that are 0."""
    results = {}
    for name, value in outputs.items():
        results[name] = value.copy()
        results[name][rows] = b"" if value.dtype.kind == "O" else 0
    return results
