"""The model store: it polls for new versions of models, and loads and unloads them.

A version goes through LOADING, AVAILABLE, UNLOADING and END on its own thread; one that cannot be
loaded goes from LOADING to END. A model loads one version at a time, the highest first, and before
it unloads the old one (TensorFlow Serving's AvailabilityPreservingPolicy). A version that cannot be
loaded is skipped in favour of another until its files change, because it may not be fully copied
yet.
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
from bart_export.server.servable import Lease
from bart_export.server.status import Code, StatusError, invalid, status_of_load
from bart_export.server.versions import (
    OpenVersion,
    ServedModel,
    State,
    Version,
    find_versions,
    list_files,
)

LOG = logging.getLogger(__name__)

# Time for stopped calls to end: an engine checks between tokens.
STOP_SECONDS = 5.0

FindVersions = Callable[[ServedModel], Mapping[int, pathlib.Path]]
Labels = Mapping[str, Mapping[str, int]]  # name -> label -> version


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The model a request names, and its version by number or label (the latest if None)."""

    name: str
    version: int | None = None
    label: str | None = None


class ModelStore:
    """The models that are served. All methods are thread-safe."""

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
        self.changed = threading.Condition()  # guards all fields below
        self.served: Mapping[str, ServedModel] = {}
        self.labels: Labels = {}
        self.versions: list[Version] = []  # ended ones too, for their status
        self.due: set[str] = set()  # models to poll immediately
        self.remarks: dict[str, str] = {}  # problems found by the last poll, by model
        self.stopped = False
        self.thread = threading.Thread(target=self._poll_models, name="version-poll", daemon=True)
        self.thread.start()

    def configure(self, models: Sequence[ServedModel]) -> None:
        """Serve these models and no others; wait until each has an available version.

        A model that already has one keeps it until its newly wanted versions are loaded, but this
        does not wait for those. Then labels are changed, all or none; unlisted models go last.

        Raises:
            StatusError: INVALID_ARGUMENT for a list that is refused as a whole. UNKNOWN for models
                that did not become available, and FAILED_PRECONDITION for a label of an unavailable
                version: the listed models are then served along with the previous ones.
        """
        with self.configuring:
            check_models(models, self.served)
            listed = {model.name: model for model in models}
            with self.changed:
                # Determined first: a new version may become available at any time.
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

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Unload everything; calls in progress have some seconds to end."""
        with self.changed:
            self.stopped, self.labels = True, {}
            self._serve({})
            self.changed.wait_for(lambda: all(v.state == State.END for v in self.versions), seconds)
            late = {v.model.name for v in self.versions if v.state != State.END}
        for name in sorted(late):
            LOG.warning("%s: still not unloaded after %g s", name, seconds)

    @contextlib.contextmanager
    def lease(self, spec: ModelSpec) -> Iterator[Lease]:
        """Keep a request's servable loaded for the duration of a `with` block.

        Raises:
            StatusError: NOT_FOUND if no such version is available, INVALID_ARGUMENT for an unknown
                label.
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

    def status(self, spec: ModelSpec) -> list[Version]:
        """Return copies of a model's versions, highest first, or of the version requested.

        Labels are ignored, as in TensorFlow Serving.
        """
        with self.changed:
            # If two versions have the same number, report the available one.
            versions = sorted(self._of(spec.name), key=lambda v: v.state == State.AVAILABLE)
            copies = {version.number: dataclasses.replace(version) for version in versions}
        if not copies:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if spec.version is None:
            return [copies[number] for number in sorted(copies, reverse=True)]
        if spec.version not in copies:
            raise StatusError(
                Code.NOT_FOUND, f"Could not find version {spec.version} of model {spec.name}"
            )
        return [copies[spec.version]]

    def _of(self, name: str) -> Iterator[Version]:
        return (version for version in self.versions if version.model.name == name)

    def _available(self, name: str) -> Iterator[Version]:
        return (version for version in self._of(name) if version.state == State.AVAILABLE)

    def _wanted(self, name: str) -> Iterator[Version]:
        return (version for version in self._of(name) if version.is_wanted)

    def _serve(self, served: Mapping[str, ServedModel]) -> None:
        """Start serving these models and stop serving all others, without waiting."""
        with self.changed:
            if self.stopped and served:
                raise StatusError(Code.UNAVAILABLE, "The server is stopping")
            old, self.served = self.served, served
            for name, model in served.items():
                if old.get(name) != model:
                    LOG.info("%s: serving %s (%s)", name, model.base_path, model.engine)
                    self.due.add(name)
                    self.remarks.pop(name, None)
            for name in old.keys() - served.keys():
                LOG.info("%s: no longer served", name)
                for version in self._of(name):
                    version.is_wanted = False
                self._retire(name)
            self.changed.notify_all()

    def _checked_labels(self, models: Sequence[ServedModel]) -> Labels:
        """Return the labels of `models` after checking that their versions are available."""
        for model in models:
            with self.changed:
                available = {version.number for version in self._available(model.name)}
            for number in model.labels.values():
                if number not in available:
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return {model.name: dict(model.labels) for model in models}

    def _failure(self, name: str) -> str:
        """Wait until wanted versions have loaded or failed; return the latest one's error or ""."""

        def is_settled() -> bool:
            loading = any(version.state == State.LOADING for version in self._of(name))
            return self.stopped or (name not in self.due and not loading)

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
                version = f" version: {latest.number}"
                code, message = latest.code, latest.message
        return f"{{name: {name}{version}}} due to error: {code.name}: {message}"

    def _poll_models(self) -> None:
        """Poll all models periodically, and those in `due` immediately."""
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda: self.stopped or self.due, self.options.poll_seconds or None
                )
                if self.stopped:
                    return
                self.due &= self.served.keys()
                models = [self.served[name] for name in self.due or self.served]
            for model in models:
                self._poll(model)

    def _poll(self, model: ServedModel) -> None:
        """Find a model's versions on disk; if they cannot be listed, nothing changes."""
        name, found = model.name, None
        try:
            found = self.find_versions(model)
            remark = model.missing(found)
        except Exception as error:  # loaded versions stay, whatever the error
            remark = status_of_load(error).message
        for version in self._of(name):
            if version.has_failed and version.failed_files != list_files(version.path):
                version.failed_files = None
        with self.changed:
            if self.served.get(name) is not model:
                return
            if remark and remark != self.remarks.get(name):
                LOG.warning("%s: %s", name, remark)
            self.remarks[name] = remark
            self.due.discard(name)
            if found is not None:
                self._want(model, found)
            self._retire(name)

    def _want(self, model: ServedModel, found: Mapping[int, pathlib.Path]) -> None:
        """Choose the wanted versions, and load the highest new one; ended ones are loaded again."""
        known = list(self._of(model.name))
        if any(version.state == State.LOADING for version in known):
            return  # its end is followed by another poll
        failed = {version.path for version in known if version.has_failed}
        sound = {number: path for number, path in found.items() if path not in failed}
        chosen = model.policy.choose(sound) or model.policy.choose(found)
        available = self._available(model.name)
        if not chosen and any(version.model.base_path != model.base_path for version in available):
            return  # a new base path without versions: those of the previous one stay
        wanted = {(number, found[number]) for number in chosen}
        for version in known:
            is_current = version.state == State.AVAILABLE or version.has_failed
            version.is_wanted = is_current and (version.number, version.path) in wanted
        if new := wanted - {(v.number, v.path) for v in known if v.is_wanted}:
            version = Version(model, *max(new))
            replaced = {v for v in known if v.number == version.number and v.state == State.END}
            self.versions = [*(v for v in self.versions if v not in replaced), version]
            threading.Thread(target=self._live, args=(version,), daemon=True).start()

    def _retire(self, name: str) -> None:
        """Unload unwanted versions once a wanted one is available, and notify all waiters."""
        wanted = list(self._wanted(name))
        if not wanted or any(version.state == State.AVAILABLE for version in wanted):
            for version in self._available(name):
                if not version.is_wanted:
                    version.state = State.UNLOADING
        self.changed.notify_all()

    def _live(self, version: Version) -> None:
        """Load a version, and close it once it is UNLOADING and no call is using it."""
        name, number = version.model.name, version.number
        began, files = time.monotonic(), list_files(version.path)
        try:
            servable = self.open_version(version.model, number, version.path)
        except Exception as error:  # other versions load, whatever the error
            failure = status_of_load(error)
            with self.changed:
                version.code, version.message = failure.code, failure.message
                version.failed_files, version.state = files, State.END
                LOG.error("%s: version %d cannot be loaded: %s", name, number, failure)
                self.due.add(name)  # another version may be served instead
                self.changed.notify_all()
            return
        with self.changed:
            version.servable, version.state = servable, State.AVAILABLE
            LOG.info("%s: loaded version %d in %.2f s", name, number, time.monotonic() - began)
            self.due.add(name)  # another version may be waiting
            self._retire(name)
            self.changed.wait_for(lambda: version.state == State.UNLOADING and version.leases == 0)
            version.servable = None
        try:
            servable.close()
        except Exception as error:  # it is unloaded either way
            LOG.warning("%s: closing version %d: %s", name, number, status_of_load(error))
        LOG.info("%s: unloaded version %d", name, number)
        with self.changed:
            version.state = State.END
            self.changed.notify_all()


def highest(versions: Iterator[Version]) -> Version | None:
    """Return the version with the highest number, or None if there are none."""
    return max(versions, key=lambda version: version.number, default=None)


def check_models(models: Sequence[ServedModel], served: Mapping[str, ServedModel]) -> None:
    """Raise StatusError unless a list of models may replace the one served now."""
    if served and not models:
        # A file that is still being written may look like this.
        raise invalid(
            f"Expected a list of models, received none. Still serving {', '.join(served)}"
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
