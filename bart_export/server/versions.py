"""The versions of one model, each of which lives its life on a thread of its own.

A version goes from START over LOADING, AVAILABLE and UNLOADING to END, or from LOADING to END if it
cannot be loaded. A new version is loaded before an old one is unloaded, and where none is wanted
any more, all are unloaded (TensorFlow Serving's AvailabilityPreservingPolicy). A version that
cannot be loaded is passed over, if there is another, until its files change: it may still be on its
way to its place.
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

from bart_export.server.options import ServeOptions
from bart_export.server.servable import Lease, Servable
from bart_export.server.sources import ServedModel, listing
from bart_export.server.status import Code, StatusError, code_and_message, one_line

LOG = logging.getLogger(__name__)

# A warm-up request that is told to end may take that long to do so.
STOP_SECONDS = 5.0

OpenVersion = Callable[[ServedModel, int, pathlib.Path], Servable]
FindVersions = Callable[[ServedModel], Mapping[int, pathlib.Path]]


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
    """A version and how far it is.

    `leases` counts the calls that hold `servable`. A version is LOADING also while it waits to be
    loaded again after `failures`. Of one that was given up, `failed_files` are the files, until
    they change.
    """

    number: int
    path: pathlib.Path
    status: VersionStatus
    is_wanted: bool = True
    servable: Servable | None = None
    leases: int = 0
    failures: int = 0
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
        self.versions: list[Version] = []  # also those that ended, for their status
        self.loading: Version | None = None
        self.look_at = 0.0  # 0 while a look is due that `wait` waits for
        self.remark = ""  # what is wrong with what the last look found
        self.thread: threading.Thread | None = None

    def serve(self, served: ServedModel) -> None:
        """Serve what a record says from now on; its versions are looked for at once."""
        with self.changed:
            self.served, self.look_at, self.remark = served, 0.0, ""
            if self.thread is None:
                self.thread = threading.Thread(
                    target=self._follow, name=f"versions of {self.name}", daemon=True
                )
                self.thread.start()
            self.changed.notify_all()

    def withdraw(self) -> None:
        """Serve nothing from now on and unload every version; does not wait for it."""
        with self.changed:
            self.served = None
            for version in self.versions:
                version.is_wanted = False
            self._retire()

    def join(self, deadline: float) -> bool:
        """Wait, after `withdraw`, until all is unloaded; return whether it was by the deadline."""
        with self.changed:
            return self.changed.wait_for(
                lambda: all(version.state == State.END for version in self.versions),
                max(0.0, deadline - time.monotonic()),
            )

    @contextlib.contextmanager
    def lease(self, number: int | None) -> Iterator[Lease]:
        """Hold a version, the latest for None, for the length of a block.

        Raises:
            StatusError: NOT_FOUND if it is not available.
        """
        with self.changed:
            version = highest(v for v in self._available() if number in (None, v.number))
            if version is None or version.servable is None:
                raise not_found(self.name, number)
            version.leases += 1
        lease = Lease(version.servable, version.number)

        def give_back() -> None:
            with self.changed:
                version.leases -= 1
                if version.state == State.UNLOADING:
                    self.changed.notify_all()

        try:
            yield lease
        finally:
            lease.after_work(give_back)

    def statuses(self) -> dict[int, VersionStatus]:
        """Return the status of every version there is or was; of two, of the one that answers."""
        with self.changed:
            ordered = sorted(self.versions, key=lambda version: version.state == State.AVAILABLE)
            return {version.number: version.status for version in ordered}

    def wait(self) -> str:
        """Wait until the versions wanted are loaded or failed; return why the latest did, or ""."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.served is None or (self.look_at > 0 and not self._is_awaiting())
            )
            latest = highest(self._wanted())
            if self.served is None:
                version, code, message = "", Code.UNAVAILABLE, "The server is stopping"
            elif latest is None:
                version, code, message = "", Code.NOT_FOUND, self.remark
            elif latest.state == State.AVAILABLE:
                return ""
            else:
                version, code = f" version: {latest.number}", latest.status.code
                message = latest.status.message
        return f"{{name: {self.name}{version}}} due to error: {code.name}: {one_line(message)}"

    def _available(self) -> Iterator[Version]:
        return (version for version in self.versions if version.state == State.AVAILABLE)

    def _wanted(self) -> Iterator[Version]:
        return (version for version in self.versions if version.is_wanted)

    def _is_awaiting(self) -> bool:
        """Return whether to wait for a version: for the latest also after it has failed once."""
        latest = highest(self._wanted())
        return any(
            version.state < State.AVAILABLE and (version.failures == 0 or version is latest)
            for version in self._wanted()
        )

    def _follow(self) -> None:
        """Look for versions whenever it is time, until nothing is served any more."""
        while True:
            with self.changed:
                while self.served and (seconds := self.look_at - time.monotonic()) > 0:
                    self.changed.wait(None if seconds == math.inf else seconds)
                served = self.served
                if served is None:
                    self.thread = None
                    return
            self._look(served)

    def _look(self, served: ServedModel) -> None:
        """Find the versions there are; what cannot be looked at changes nothing."""
        found: Mapping[int, pathlib.Path] | None = None
        try:
            found = self.find_versions(served)
            remark = missing(served, found)
        except Exception as error:  # whatever it is, the versions that are loaded go on
            remark = code_and_message(error)[1]
        for version in self.versions:
            if version.has_failed and version.failed_files != listing(version.path):
                version.failed_files = None
        with self.changed:
            if served is not self.served:
                return
            if remark and remark != self.remark:
                LOG.warning("%s: %s", self.name, one_line(remark))
            seconds = self.options.poll_seconds or math.inf
            self.remark, self.look_at = remark, time.monotonic() + seconds
            if found is not None:
                failed = {version.path for version in self.versions if version.has_failed}
                sound = {number: path for number, path in found.items() if path not in failed}
                chosen = served.policy.choose(sound) or served.policy.choose(found)
                self._want(served, {number: found[number] for number in chosen})
            self._retire()

    def _want(self, served: ServedModel, wanted: Mapping[int, pathlib.Path]) -> None:
        """Say which versions are wanted; one that has ended or is unloaded is loaded anew."""
        for version in self.versions:
            is_current = version.state < State.UNLOADING or version.has_failed
            version.is_wanted = is_current and wanted.get(version.number) == version.path
        present = {(version.number, version.path) for version in self._wanted()}
        for number, path in wanted.items() - present:
            self.versions = [v for v in self.versions if v.number != number or v.state != State.END]
            new = Version(number, path, VersionStatus(number, State.START))
            self.versions.append(new)
            threading.Thread(
                target=self._live,
                args=(served, new),
                name=f"version {number} of {self.name}",
                daemon=True,
            ).start()

    def _retire(self) -> None:
        """Give up what is not wanted once something that is answers, and tell who waits."""
        wanted = list(self._wanted())
        if not wanted or any(version.state == State.AVAILABLE for version in wanted):
            for version in self._available():
                if not version.is_wanted:
                    version.move(State.UNLOADING)
        self.changed.notify_all()

    def _live(self, served: ServedModel, version: Version) -> None:
        """Load a version, wait until it is given up and no call holds it, and close it."""
        servable = self._load(served, version)
        if servable is not None:
            with self.changed:
                self.changed.wait_for(
                    lambda: version.state == State.UNLOADING and version.leases == 0
                )
                version.servable = None
            try:
                servable.close()
            except Exception as error:  # it is gone either way
                reason = code_and_message(error)[1]
                LOG.warning("%s: closing version %d: %s", self.name, version.number, reason)
            LOG.info("%s: unloaded version %d", self.name, version.number)
        with self.changed:
            version.move(State.END)
            self.changed.notify_all()

    def _load(self, served: ServedModel, version: Version) -> Servable | None:
        """Make a version available; return None if it failed too often or is wanted no more."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._is_next(version) or not version.is_wanted)
                if not version.is_wanted:
                    return None
                self.loading = version
                version.move(State.LOADING)
            began, files = time.monotonic(), listing(version.path)
            try:
                servable = opened_within(
                    self.options.load_seconds + STOP_SECONDS,
                    lambda: self.open_version(served, version.number, version.path),
                )
            except Exception as error:  # whatever it is, other versions are loaded
                if not self._is_retried(version, files, error):
                    return None
                continue
            with self.changed:
                self.loading, version.servable = None, servable
                version.status = VersionStatus(version.number, State.AVAILABLE)
                seconds = time.monotonic() - began
                LOG.info("%s: loaded version %d in %.2f s", self.name, version.number, seconds)
                self._retire()
            return servable

    def _is_next(self, version: Version) -> bool:
        """Return whether a version is to be loaded now: one at a time, the highest first."""
        new = (other.number for other in self._wanted() if other.state == State.START)
        return self.loading is None and version.number >= max(new, default=0)

    def _is_retried(self, version: Version, files: object, error: Exception) -> bool:
        """Note that a version cannot be loaded; when it is time, return whether to try again."""
        code, message = code_and_message(error)
        seconds = self.options.retry_seconds
        with self.changed:
            self.loading = None
            version.failures += 1
            version.status = VersionStatus(version.number, State.LOADING, code, message)
            # Whatever did not end the first time may go on for ever.
            again = code != Code.DEADLINE_EXCEEDED and version.failures <= self.options.load_retries
            LOG.error(
                "%s: version %d cannot be loaded (attempt %d, %s): %s",
                self.name,
                version.number,
                version.failures,
                f"next in {seconds:g} s" if again else "the last",
                one_line(message),
            )
            if not again:
                version.move(State.END)
                version.failed_files, self.look_at = files, 0.0
            self.changed.notify_all()
            return again and not self.changed.wait_for(lambda: not version.is_wanted, seconds)


def opened_within(seconds: float, opening: Callable[[], Servable]) -> Servable:
    """Open a servable on a thread of its own; what takes too long is closed when it is open.

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
    wait([future], seconds)
    if not future.done():
        future.add_done_callback(close)
        raise StatusError(Code.DEADLINE_EXCEEDED, f"It was not loaded after {seconds:g} s")
    return future.result()


def not_found(name: str, number: int | None) -> StatusError:
    """Return the error of a request for a version that is not available, None for the latest."""
    wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
    return StatusError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")


def missing(served: ServedModel, found: Collection[int]) -> str:
    """Return what is wanted of a model and was not found, or ""."""
    absent = ", ".join(map(str, sorted((served.policy.specific or frozenset()) - set(found))))
    if absent:
        return f"Version {absent} of servable {served.name} not found under {served.base_path}"
    if not found:
        return f"No versions of servable {served.name} found under base path {served.base_path}"
    return ""
