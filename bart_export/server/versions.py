"""The versions of a model and what becomes of them next, decided without doing it.

A version starts, is loaded, is available, is unloaded and has ended. Which step is due follows from
the versions there are and from those wanted ("aspired"), each a number and a path: a new version is
loaded before an old one is unloaded, and where none is wanted any more, all are unloaded
(TensorFlow Serving's AvailabilityPreservingPolicy). Nothing here loads, waits or locks.
"""

import dataclasses
import enum
import pathlib
from collections.abc import Mapping, Sequence

from bart_export.server.servable import Servable
from bart_export.server.status import Code

Aspired = Mapping[int, pathlib.Path]  # number -> where it lies


class State(enum.IntEnum):
    """The states that a client is told; the numbers are those of ModelVersionStatus.State."""

    UNKNOWN = 0
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
    """A version and how far it is.

    `leases` counts the calls that hold `servable`. A version whose loading has failed `attempts`
    times is tried again at `retry_at`, a time of `time.monotonic()`, and stays LOADING until then.
    """

    number: int
    path: pathlib.Path
    state: State = State.START
    servable: Servable | None = None
    leases: int = 0
    attempts: int = 0
    retry_at: float = 0.0
    code: Code = Code.OK
    message: str = ""

    def is_among(self, aspired: Aspired) -> bool:
        """Return whether this very version, at this path, is wanted."""
        return aspired.get(self.number) == self.path

    def is_pending(self) -> bool:
        """Return whether it has neither been loaded nor given up."""
        return self.state in (State.START, State.LOADING)

    def status(self) -> VersionStatus:
        """Return what a client is told."""
        return VersionStatus(self.number, self.state, self.code, self.message)


def new_versions(versions: Sequence[Version], aspired: Aspired) -> list[Version]:
    """Return a version for each that is wanted and not there, or there only to be unloaded."""
    present = {(v.number, v.path) for v in versions if v.state != State.UNLOADING}
    return [
        Version(number, path) for number, path in aspired.items() if (number, path) not in present
    ]


def superseded(versions: Sequence[Version], aspired: Aspired) -> list[Version]:
    """Return the available versions to unload: nobody wants them, and another can answer."""
    available = [version for version in versions if version.state == State.AVAILABLE]
    if aspired and not any(version.is_among(aspired) for version in available):
        return []
    return [version for version in available if not version.is_among(aspired)]


def next_load(versions: Sequence[Version], aspired: Aspired, now: float) -> Version | None:
    """Return the version to load now, the highest first, or None."""
    due = [
        version
        for version in versions
        if version.is_pending() and version.is_among(aspired) and version.retry_at <= now
    ]
    return max(due, key=lambda version: version.number, default=None)


def seconds_to_retry(versions: Sequence[Version], now: float) -> float | None:
    """Return the seconds until a version is tried again, or None if none waits for it."""
    times = [version.retry_at for version in versions if version.is_pending()]
    return max(0.0, min(times) - now) if times else None


def awaited(versions: Sequence[Version], aspired: Aspired) -> bool:
    """Return whether a version that is wanted may still become available soon.

    Only the highest is worth waiting for after it has failed once.
    """
    return any(
        version.is_pending() and (version.attempts == 0 or version.number == max(aspired))
        for version in versions
        if version.is_among(aspired)
    )


def latest_available(versions: Sequence[Version], number: int | None) -> Version | None:
    """Return the highest available version, or that of a number, or None."""
    available = (
        version
        for version in versions
        if version.state == State.AVAILABLE and number in (None, version.number)
    )
    return max(available, key=lambda version: version.number, default=None)


def statuses(
    past: Mapping[int, VersionStatus], versions: Sequence[Version]
) -> dict[int, VersionStatus]:
    """Return the status of each number; a version that can answer tells more than a newer one."""
    told = dict(past)
    for version in sorted(versions, key=lambda version: version.state == State.AVAILABLE):
        told[version.number] = version.status()
    return told
