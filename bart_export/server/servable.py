"""What is served: one loaded version of a model, behind one interface, whatever computes it.

A call names a signature and brings its inputs; a future of the outputs comes back at once, or an
error when there is no room for the call. The fronts (REST and gRPC) know servables only by this
module, and servables know nothing of a front, of a model's name or of other versions.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from bart_export.runtime.generator import Result
from bart_export.server.status import Code, StatusError

if TYPE_CHECKING:
    from bart_export.server.texts import TextReader

TIMED_OUT = "Timed out waiting for notification"

# Strings are arrays of dtype object that hold bytes.
Tensors = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass
class Remarks:
    """What a client is told beside the outputs: which of its texts were cut, and which are blank.

    Over REST and gRPC they are headers and trailing metadata, of a stream a part of its last event.
    """

    truncated: list[int] = dataclasses.field(default_factory=list)
    empty: list[int] = dataclasses.field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """Return the numbers of rows, as `truncated-rows: 0,2`; {} if there is nothing to tell."""
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
        """End the work that calls this between its steps.

        Raises:
            StatusError: CANCELLED if nobody waits, DEADLINE_EXCEEDED if the time is over.
        """
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
    def signature_defs(self) -> Mapping[str, Any]:
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
            StatusError: UNAVAILABLE, at once, if no room is left in the queue.
        """

    def stream(self, call: StreamCall) -> "Future[Result]":
        """Generate from a text piece by piece; the future ends after the last piece.

        Raises:
            StatusError: UNAVAILABLE as for `submit`; UNIMPLEMENTED if this engine cannot.
        """

    def close(self) -> None:
        """Release memory and threads. Called once, when no call is under way."""
