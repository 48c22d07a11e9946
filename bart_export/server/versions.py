"""A version of a model: its state, and its opening within a time."""

import dataclasses
import enum
import pathlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

from bart_export.server.servable import Servable
from bart_export.server.sources import ServedModel
from bart_export.server.status import Code, StatusError

# A warm-up request that is told to end may take that long to do so.
STOP_SECONDS = 5.0

OpenVersion = Callable[[ServedModel, int, pathlib.Path], Servable]


class State(enum.IntEnum):
    """The states of a version; the numbers are those of ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """What a client is told of a version; `code` and `message` say why it failed, if it did."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


@dataclasses.dataclass(eq=False)
class Version:
    """A version of a model and how far it is.

    It is LOADING while `is_opening` and while it waits to be opened again after a failure. `leases`
    counts the calls that hold `servable`. Of a version that was given up, `failed_files` are the
    files, until they change.
    """

    model: ServedModel
    number: int
    path: pathlib.Path
    status: VersionStatus
    is_wanted: bool = True
    is_opening: bool = False
    servable: Servable | None = None
    leases: int = 0
    failed_files: object = None

    @property
    def state(self) -> State:
        """How far it is."""
        return self.status.state

    @property
    def has_failed(self) -> bool:
        """Whether it was given up and its files are still the same."""
        return self.failed_files is not None

    def move(self, state: State) -> None:
        """Move on to a state, and keep the reason of a failure."""
        self.status = dataclasses.replace(self.status, state=state)


def highest(versions: Iterator[Version]) -> Version | None:
    """Return the version with the highest number."""
    return max(versions, key=lambda version: version.number, default=None)


def opened_within(load_seconds: float, opening: Callable[[], Servable]) -> Servable:
    """Open a servable on a thread of its own; one that takes too long is closed when it is open.

    The thread is a daemon: one that never ends must not keep the process.
    """
    future: Future[Servable] = Future()

    def work() -> None:
        try:
            future.set_result(opening())
        except BaseException as error:
            future.set_exception(error)

    def close(late: "Future[Servable]") -> None:
        if not late.exception():
            late.result().close()

    threading.Thread(target=work, daemon=True).start()
    seconds = load_seconds + STOP_SECONDS
    wait([future], seconds)
    if not future.done():
        future.add_done_callback(close)
        raise StatusError(Code.DEADLINE_EXCEEDED, f"It was not loaded after {seconds:g} s")
    return future.result()
