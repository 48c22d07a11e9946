"""Which models are served, and the life of their versions.

A version goes from START over LOADING, AVAILABLE and UNLOADING to END, or from LOADING to END if it
cannot be loaded; it does so on a thread of its own. A new version is loaded before an old one is
unloaded, and where none is wanted any more, all are unloaded (TensorFlow Serving's
AvailabilityPreservingPolicy). A version that cannot be loaded is passed over, if there is another,
until its files change: it may still be on its way to its place.
"""

import collections
import contextlib
import dataclasses
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from bart_export.server.options import ServeOptions
from bart_export.server.servable import Lease, Servable
from bart_export.server.status import Code, StatusError, code_and_message, invalid, one_line
from bart_export.server.versions import (
    OpenVersion,
    ServedModel,
    State,
    Version,
    VersionStatus,
    find_versions,
    highest,
    listing,
    opened_within,
)

LOG = logging.getLogger(__name__)

FindVersions = Callable[[ServedModel], Mapping[int, pathlib.Path]]
Labels = Mapping[str, Mapping[str, int]]  # name -> label -> version


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a request asks for: the latest version of a model, or that of a number or label."""

    name: str
    version: int | None = None
    label: str | None = None


class ModelStore:
    """The models that are served. All methods may be called from several threads at once."""

    def __init__(
        self,
        open_version: OpenVersion,
        options: ServeOptions,
        find_versions: FindVersions = find_versions,
    ) -> None:
        self.open_version = open_version
        self.options = options
        self.find_versions = find_versions
        self.configuring = threading.Lock()  # one change of the list at a time
        self.changed = threading.Condition()  # guards what follows
        self.served: Mapping[str, ServedModel] = {}
        self.labels: Labels = {}
        self.versions: list[Version] = []  # also those that ended, for their status
        self.due: set[str] = set()  # models whose versions are to be looked for at once
        self.remarks: dict[str, str] = {}  # what is wrong with what the last look found
        self.stopped = False
        self.thread = threading.Thread(target=self._follow, name="versions", daemon=True)
        self.thread.start()

    def configure(self, models: Sequence[ServedModel]) -> None:
        """Serve these models and no others; wait until those that do not answer yet are available.

        A model that stays keeps its versions until those newly wanted are loaded, which is not
        waited for. Labels change after that, all of them or none, and models that are listed no
        more are withdrawn last: as long as a list cannot be followed, what answered goes on.

        Raises:
            StatusError: INVALID_ARGUMENT for a list that is refused as a whole; UNKNOWN for models
                that did not become available, and FAILED_PRECONDITION for a label of a version
                that is not: what the list names is served beside what was served before.
        """
        with self.configuring:
            check_models(models, self.served)
            listed = {model.name: model for model in models}
            with self.changed:
                # Before new versions are loaded, one of which may answer before the others.
                awaited = [name for name in listed if not any(self._available(name))]
            self._serve({**self.served, **listed})
            reasons = [reason for name in awaited if (reason := self._failure(name))]
            if reasons:
                listed_reasons = "".join(f"{reason}, " for reason in reasons)
                raise StatusError(
                    Code.UNKNOWN,
                    f"{len(reasons)} model(s) did not become available: {{{listed_reasons}}}",
                )
            self.labels = self._checked_labels(models)
            self._serve(listed)

    def stop(self) -> None:
        """Unload everything; calls that still hold a servable have `drain_seconds` to end."""
        seconds = self.options.drain_seconds
        with self.changed:
            self.stopped, self.labels = True, {}
            self._serve({})
            self.changed.wait_for(lambda: all(v.state == State.END for v in self.versions), seconds)
            late = {v.model.name for v in self.versions if v.state != State.END}
        for name in sorted(late):
            LOG.warning("%s: not unloaded after %g s", name, seconds)

    def names(self) -> list[str]:
        """Return the names of the models that are served, in the order of their list."""
        return list(self.served)

    @contextlib.contextmanager
    def lease(self, spec: ModelSpec) -> Iterator[Lease]:
        """Hold the servable that answers a request for the length of a block.

        Raises:
            StatusError: NOT_FOUND if no such version is available, INVALID_ARGUMENT for a label
                that is not known.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        labels, number = self.labels.get(spec.name, {}), spec.version
        if spec.label is not None:
            if spec.label not in labels:
                raise invalid(f"Unrecognized servable version label: {spec.label}")
            number = labels[spec.label]

        with self.changed:
            available = self._available(spec.name)
            version = highest(v for v in available if number in (None, v.number))
            if version is None or version.servable is None:
                wanted = spec.name if number is None else f"{spec.name}, {number}"
                kind = "Latest" if number is None else "Specific"
                raise StatusError(
                    Code.NOT_FOUND, f"Servable not found for request: {kind}({wanted})"
                )
            version.leases += 1

        def hold(calls: int) -> None:
            with self.changed:
                version.leases += calls
                if version.state == State.UNLOADING:
                    self.changed.notify_all()

        try:
            yield Lease(version.servable, version.number, hold)
        finally:
            hold(-1)

    def status(self, spec: ModelSpec) -> list[VersionStatus]:
        """Return the states of a model's versions, the highest first, or of the version named.

        Labels are ignored, as in TensorFlow Serving.
        """
        with self.changed:
            # Of two versions of one number, that which answers counts.
            versions = sorted(self._of(spec.name), key=lambda v: v.state == State.AVAILABLE)
            statuses = {version.number: version.status for version in versions}
        if not statuses:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if spec.version is None:
            return [statuses[number] for number in sorted(statuses, reverse=True)]
        if spec.version not in statuses:
            raise StatusError(
                Code.NOT_FOUND, f"Could not find version {spec.version} of model {spec.name}"
            )
        return [statuses[spec.version]]

    def _of(self, name: str) -> Iterator[Version]:
        return (version for version in self.versions if version.model.name == name)

    def _available(self, name: str) -> Iterator[Version]:
        return (version for version in self._of(name) if version.state == State.AVAILABLE)

    def _wanted(self, name: str) -> Iterator[Version]:
        return (version for version in self._of(name) if version.is_wanted)

    def _serve(self, served: Mapping[str, ServedModel]) -> None:
        """Serve these models and withdraw all others; neither is waited for."""
        with self.changed:
            if self.stopped and served:
                raise StatusError(Code.UNAVAILABLE, "The server is stopping")
            old, self.served = self.served, served
            for name, model in served.items():
                if old.get(name) != model:
                    LOG.info("%s: served from %s (%s)", name, model.base_path, model.engine)
                    self.due.add(name)
                    self.remarks.pop(name, None)
            for name in old.keys() - served.keys():
                LOG.info("%s: served no more", name)
                self.due.discard(name)
                for version in self._of(name):
                    version.is_wanted = False
                self._retire(name)
            self.changed.notify_all()

    def _checked_labels(self, models: Sequence[ServedModel]) -> Labels:
        """Return the labels of a list of models."""
        for model in models:
            with self.changed:
                available = {version.number for version in self._available(model.name)}
            held = self.labels.get(model.name, {})
            for label, number in model.labels.items():
                moves = held.get(label, number) != number
                if self.options.allow_labels_for_unavailable and not moves:
                    continue
                if number not in available:
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return {model.name: dict(model.labels) for model in models}

    def _failure(self, name: str) -> str:
        """Wait until the versions wanted are loaded or failed; return why the latest did, or ""."""

        def is_settled() -> bool:
            latest = highest(self._wanted(name))
            loading = (v for v in self._wanted(name) if v.state < State.AVAILABLE)
            # Only the latest is waited for once it has failed.
            awaited = any(v.status.code == Code.OK or v is latest for v in loading)
            return self.stopped or (name not in self.due and not awaited)

        with self.changed:
            self.changed.wait_for(is_settled)
            latest = highest(self._wanted(name))
            if self.stopped:
                version, code, message = "", Code.UNAVAILABLE, "The server is stopping"
            elif latest is None:
                version, code, message = "", Code.NOT_FOUND, self.remarks[name]
            elif latest.state == State.AVAILABLE:
                return ""
            else:
                version, code = f" version: {latest.number}", latest.status.code
                message = latest.status.message
        return f"{{name: {name}{version}}} due to error: {code.name}: {one_line(message)}"

    def _follow(self) -> None:
        """Look for the versions of every model from time to time, and of those due at once."""
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda: self.stopped or self.due, self.options.poll_seconds or None
                )
                if self.stopped:
                    return
                models = [self.served[name] for name in self.due or self.served]
            for model in models:
                self._look(model)

    def _look(self, model: ServedModel) -> None:
        """Find the versions there are; what cannot be looked at changes nothing."""
        name, found = model.name, None
        try:
            found = self.find_versions(model)
            remark = model.missing(found)
        except Exception as error:  # whatever it is, the versions that are loaded go on
            remark = code_and_message(error)[1]
        for version in self._of(name):
            if version.has_failed and version.failed_files != listing(version.path):
                version.failed_files = None
        with self.changed:
            if self.served.get(name) is not model:
                return
            if remark and remark != self.remarks.get(name):
                LOG.warning("%s: %s", name, one_line(remark))
            self.remarks[name] = remark
            self.due.discard(name)
            if found is not None:
                self._want(model, found)
            self._retire(name)

    def _want(self, model: ServedModel, found: Mapping[int, pathlib.Path]) -> None:
        """Say which versions are wanted; one that has ended or is unloaded is loaded anew."""
        known = list(self._of(model.name))
        failed = {version.path for version in known if version.has_failed}
        sound = {number: path for number, path in found.items() if path not in failed}
        chosen = model.policy.choose(sound) or model.policy.choose(found)
        wanted = {(number, found[number]) for number in chosen}
        for version in known:
            is_current = version.state < State.UNLOADING or version.has_failed
            version.is_wanted = is_current and (version.number, version.path) in wanted
        for number, path in wanted - {(v.number, v.path) for v in known if v.is_wanted}:
            new = Version(model, number, path, VersionStatus(number, State.START))
            replaced = {v for v in known if v.number == number and v.state == State.END}
            self.versions = [*(v for v in self.versions if v not in replaced), new]
            threading.Thread(target=self._live, args=(new,), daemon=True).start()

    def _retire(self, name: str) -> None:
        """Give up what is not wanted once something that is answers, and tell who waits."""
        wanted = list(self._wanted(name))
        if not wanted or any(version.state == State.AVAILABLE for version in wanted):
            for version in self._available(name):
                if not version.is_wanted:
                    version.move(State.UNLOADING)
        self.changed.notify_all()

    def _live(self, version: Version) -> None:
        """Load a version, wait until it is given up and no call holds it, and close it."""
        name, number = version.model.name, version.number
        if servable := self._load(version):
            with self.changed:
                self.changed.wait_for(
                    lambda: version.state == State.UNLOADING and version.leases == 0
                )
                version.servable = None
            try:
                servable.close()
            except Exception as error:  # it is gone either way
                reason = code_and_message(error)[1]
                LOG.warning("%s: closing version %d: %s", name, number, reason)
            LOG.info("%s: unloaded version %d", name, number)
        with self.changed:
            version.move(State.END)
            if version.has_failed and version.is_wanted:
                self.due.add(name)  # for another version in its place
            self.changed.notify_all()

    def _load(self, version: Version) -> Servable | None:
        """Make a version available; return None if it failed too often or is wanted no more."""
        name, number = version.model.name, version.number
        for attempt in range(1, self.options.load_retries + 2):
            with self.changed:
                self.changed.wait_for(lambda: self._is_next(version) or not version.is_wanted)
                if not version.is_wanted:
                    return None
                version.is_opening = True
                version.move(State.LOADING)
            began, files = time.monotonic(), listing(version.path)
            try:
                servable = opened_within(
                    self.options.load_seconds,
                    lambda: self.open_version(version.model, number, version.path),
                )
            except Exception as error:  # whatever it is, other versions are loaded
                code, message = code_and_message(error)
            else:
                with self.changed:
                    version.is_opening, version.servable = False, servable
                    version.status = VersionStatus(number, State.AVAILABLE)
                    seconds = time.monotonic() - began
                    LOG.info("%s: loaded version %d in %.2f s", name, number, seconds)
                    self._retire(name)
                return servable
            # Whatever did not end the first time may go on for ever.
            is_last = attempt > self.options.load_retries or code == Code.DEADLINE_EXCEEDED
            seconds = self.options.retry_seconds
            LOG.error(
                "%s: version %d cannot be loaded (attempt %d, %s): %s",
                name,
                number,
                attempt,
                "the last" if is_last else f"next in {seconds:g} s",
                one_line(message),
            )
            with self.changed:
                version.is_opening = False
                version.status = VersionStatus(number, State.LOADING, code, message)
                self.changed.notify_all()
                if is_last:
                    version.failed_files = files
                    break
                self.changed.wait_for(lambda: not version.is_wanted, seconds)
        return None

    def _is_next(self, version: Version) -> bool:
        """Return whether to load a version now: one of a model at a time, the highest first."""
        known = list(self._of(version.model.name))
        new = (v.number for v in known if v.is_wanted and v.state == State.START)
        return not any(v.is_opening for v in known) and version.number >= max(new, default=0)


def check_models(models: Sequence[ServedModel], served: Mapping[str, ServedModel]) -> None:
    """Hold a list of models to what may follow the one that is served."""
    if served and not models:
        # A file that is being written begins like this.
        raise invalid(
            f"Expected a list of models, received none; {', '.join(served)} stay(s) served"
        )
    for name, times in collections.Counter(model.name for model in models).items():
        if times > 1:
            raise invalid(f"Illegal to list model {name} multiple times in config list")
    for model in models:
        old = served.get(model.name, model)
        if old.engine != model.engine:
            raise invalid(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{old.engine} and new platform requested is {model.engine}"
            )
