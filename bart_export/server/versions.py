"""One model's versions, found, loaded, handed out and unloaded, by a thread of the model's own.

The thread looks for versions, loads the next that is wanted and looks again; it never holds the
lock while it looks or loads, so that calls are routed meanwhile. A new version is loaded before an
old one is unloaded, and where none is wanted any more, all are unloaded (TensorFlow Serving's
AvailabilityPreservingPolicy). A version that cannot be loaded is passed over, if there is another,
until its files change: it may still be on its way here. An unloaded version is closed by a thread
of its own once the last call that holds it has ended.
"""

import contextlib
import dataclasses
import enum
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any

from bart_export.server.options import ServeOptions
from bart_export.server.servable import Lease, Servable
from bart_export.server.sources import ServedModel, Specific, listing
from bart_export.server.status import Code, StatusError, one_line, told

LOG = logging.getLogger(__name__)

# A warm-up request that is told to end may take that long to do so.
STOP_SECONDS = 5.0

Aspired = Mapping[int, pathlib.Path]  # number -> where it lies
OpenVersion = Callable[[ServedModel, int, pathlib.Path], Servable]
FindVersions = Callable[[ServedModel], dict[int, pathlib.Path]]


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


class ModelVersions:
    """The versions of one model. All methods may be called from several threads at once."""

    def __init__(
        self,
        name: str,
        open_version: OpenVersion,
        find_versions: FindVersions,
        options: ServeOptions,
    ) -> None:
        self.name = name
        self.open_version = open_version
        self.find_versions = find_versions
        self.options = options
        self.changed = threading.Condition()  # guards what follows
        self.served: ServedModel | None = None
        self.versions: list[Version] = []
        self.past: dict[int, VersionStatus] = {}  # of versions that are there no more
        self.failed: dict[pathlib.Path, Any] = {}  # the files of versions that were given up
        self.aspired: Aspired = {}
        self.loading: Version | None = None
        self.looked = False  # since what is served was last changed
        self.look_at = math.inf
        self.remark = ""  # what is wrong with what the last look found
        self.thread: threading.Thread | None = None
        self.unloading: set[threading.Thread] = set()

    def serve(self, served: ServedModel) -> None:
        """Serve what a record says from now on; its versions are looked for at once."""
        with self.changed:
            self.served = served
            self.looked, self.remark = False, ""
            self.look_at = time.monotonic()
            if self.thread is None:
                self.thread = threading.Thread(
                    target=self._work, name=f"versions of {self.name}", daemon=True
                )
                self.thread.start()
            self.changed.notify_all()

    def withdraw(self) -> None:
        """Serve nothing from now on and unload every version; does not wait for it."""
        with self.changed:
            self.served = None
            self.aspired = {}
            self._settle()

    def join(self, deadline: float) -> bool:
        """Wait, after `withdraw`, until all is unloaded; return whether it was by the deadline."""
        with self.changed:
            return self.changed.wait_for(
                lambda: self.thread is None and not self.unloading,
                max(0.0, deadline - time.monotonic()),
            )

    @contextlib.contextmanager
    def lease(self, number: int | None) -> Iterator[Lease | None]:
        """Hold a version, the latest for None, for the length of a block; None if there is none."""
        with self.changed:
            fitting = [v for v in self._available() if number in (None, v.number)]
            version = max(fitting, key=lambda version: version.number, default=None)
            if version is not None:
                version.leases += 1
        if version is None or version.servable is None:
            yield None
            return
        lease = Lease(version.servable, version.number)

        def give_back() -> None:
            with self.changed:
                version.leases -= 1
                if version.leases == 0 and version.state == State.UNLOADING:
                    self.changed.notify_all()

        try:
            yield lease
        finally:
            lease.after_work(give_back)

    def statuses(self) -> dict[int, VersionStatus]:
        """Return the status of every version there is or was, by number.

        Of two of one number, a version that can answer tells more than a newer one.
        """
        with self.changed:
            told = dict(self.past)
            for version in sorted(self.versions, key=lambda v: v.state == State.AVAILABLE):
                told[version.number] = version.status()
            return told

    def wait(self) -> str:
        """Wait until the versions wanted are loaded or have failed.

        Returns:
            "" if the latest of them is available, else which one is not and why.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: self.served is None or (self.looked and not self._is_awaiting())
            )
            if self.served is None:
                return f"{{name: {self.name}}} due to error: UNAVAILABLE: The server is stopping"
            if not self.aspired:
                return f"{{name: {self.name}}} due to error: NOT_FOUND: {one_line(self.remark)}"
            latest = max(self.aspired)
            status = self.statuses()[latest]
        if status.state == State.AVAILABLE:
            return ""
        reason = f"{status.code.name}: {one_line(status.message)}"
        return f"{{name: {self.name} version: {latest}}} due to error: {reason}"

    def _available(self) -> list[Version]:
        return [version for version in self.versions if version.state == State.AVAILABLE]

    def _wanted_and_pending(self) -> list[Version]:
        return [v for v in self.versions if v.is_pending() and v.is_among(self.aspired)]

    def _is_awaiting(self) -> bool:
        """Return whether a version that is wanted may still become available soon.

        Only the highest is worth waiting for after it has failed once.
        """
        return any(
            version.attempts == 0 or version.number == max(self.aspired)
            for version in self._wanted_and_pending()
        )

    def _work(self) -> None:
        """Look and load by turns until nothing is served any more."""
        while True:
            with self.changed:
                if self.served is None:
                    self.thread = None
                    self.changed.notify_all()
                    return
                served, now = self.served, time.monotonic()
                look = now >= self.look_at
                due = [v for v in self._wanted_and_pending() if v.retry_at <= now and not look]
                version = max(due, key=lambda version: version.number, default=None)
                if version is not None:
                    version.state, self.loading = State.LOADING, version
                elif not look:
                    times = [v.retry_at for v in self.versions if v.is_pending()]
                    next_time = min([*times, self.look_at])
                    self.changed.wait(None if next_time == math.inf else max(0, next_time - now))
                    continue
            if version is None:
                self._look(served)
            else:
                self._load(served, version)

    def _next_look(self) -> float:
        seconds = self.options.poll_seconds
        return time.monotonic() + seconds if seconds > 0 else math.inf

    def _look(self, served: ServedModel) -> None:
        """Find the versions there are; what cannot be looked at changes nothing."""
        found: dict[int, pathlib.Path] | None = None
        try:
            found = self.find_versions(served)
            remark = missing(served, found)
            self.failed = {path: old for path, old in self.failed.items() if listing(path) == old}
        except Exception as error:  # whatever it is, the versions that are loaded go on
            remark = told(error)[1]
        with self.changed:
            if served is not self.served:
                return
            if remark and remark != self.remark:
                LOG.warning("%s: %s", self.name, one_line(remark))
            self.remark, self.looked, self.look_at = remark, True, self._next_look()
            if found is not None:
                sound = {n: path for n, path in found.items() if path not in self.failed}
                chosen = served.policy.choose(sound) or served.policy.choose(found)
                self.aspired = {number: found[number] for number in chosen}
                self.versions = [
                    v for v in self.versions if v.state != State.END or v.path in self.failed
                ]
                # One that is there only to be unloaded is loaded anew.
                present = {(v.number, v.path) for v in self.versions if v.state != State.UNLOADING}
                self.versions += [Version(*each) for each in self.aspired.items() - present]
            self._settle()

    def _load(self, served: ServedModel, version: Version) -> None:
        began = time.monotonic()
        files = listing(version.path)
        try:
            servable = ended_within(
                self.options.load_seconds + STOP_SECONDS,
                lambda: self.open_version(served, version.number, version.path),
            )
        except Exception as error:  # a broken version must not end the thread that loads others
            self._failed(version, files, error)
            return
        with self.changed:
            version.servable, self.loading = servable, None
            version.state, version.code, version.message = State.AVAILABLE, Code.OK, ""
            seconds = time.monotonic() - began
            LOG.info("%s: loaded version %d in %.2f s", self.name, version.number, seconds)
            self._settle()

    def _failed(self, version: Version, files: Any, error: Exception) -> None:
        with self.changed:
            self.loading = None
            version.attempts += 1
            version.code, version.message = told(error)
            # Whatever did not end the first time may go on for ever.
            ended = version.code != Code.DEADLINE_EXCEEDED
            again = ended and version.attempts <= self.options.load_retries
            version.state = State.LOADING if again else State.END
            version.retry_at = time.monotonic() + self.options.retry_seconds
            if not again:
                self.failed[version.path] = files
                self.looked, self.look_at = False, time.monotonic()
            LOG.error(
                "%s: version %d cannot be loaded (attempt %d, %s): %s",
                self.name,
                version.number,
                version.attempts,
                f"next in {self.options.retry_seconds:g} s" if again else "the last",
                one_line(version.message),
            )
            self._settle()

    def _settle(self) -> None:
        """Take the steps that need no waiting, and tell those who wait for a change."""
        available = self._available()
        # The old ones answer until one that is wanted does.
        if not self.aspired or any(version.is_among(self.aspired) for version in available):
            for version in available:
                if not version.is_among(self.aspired):
                    self._unload(version)
        for version in self.versions:
            unwanted = version.is_pending() and not version.is_among(self.aspired)
            if unwanted and version is not self.loading:
                version.state = State.END
        ended = [v for v in self.versions if v.state == State.END and not v.is_among(self.aspired)]
        self.past |= {version.number: version.status() for version in ended}
        self.versions = [version for version in self.versions if version not in ended]
        self.changed.notify_all()

    def _unload(self, version: Version) -> None:
        version.state = State.UNLOADING
        thread = threading.Thread(target=self._close, args=(version,), daemon=True)
        self.unloading.add(thread)
        thread.start()

    def _close(self, version: Version) -> None:
        """Close a version's servable once no call holds it."""
        with self.changed:
            self.changed.wait_for(lambda: version.leases == 0)
            servable, version.servable = version.servable, None
        try:
            if servable is not None:
                servable.close()
        except Exception as error:  # it is gone either way
            LOG.warning("%s: closing version %d: %s", self.name, version.number, told(error)[1])
        LOG.info("%s: unloaded version %d", self.name, version.number)
        with self.changed:
            version.state = State.END
            self.unloading.discard(threading.current_thread())
            self._settle()


def ended_within(seconds: float, opening: Callable[[], Servable]) -> Servable:
    """Open a servable on a thread of its own; what takes too long is closed when it is open."""
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
    wait([future], seconds)
    if not future.done():
        future.add_done_callback(close)
        raise StatusError(Code.DEADLINE_EXCEEDED, f"It was not loaded after {seconds:g} s")
    return future.result()


def missing(served: ServedModel, found: Collection[int]) -> str:
    """Return what is wanted of a model and was not found, or ""."""
    wanted = served.policy.versions if isinstance(served.policy, Specific) else frozenset()
    absent = ", ".join(str(number) for number in sorted(wanted - frozenset(found)))
    if absent:
        return f"Version {absent} of servable {served.name} not found under {served.base_path}"
    if not found:
        return f"No versions of servable {served.name} found under base path {served.base_path}"
    return ""
