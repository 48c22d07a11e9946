"""Which models are served, and which of their versions answers a request."""

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Mapping, Sequence

from bart_export.server.options import ServeOptions
from bart_export.server.servable import Lease
from bart_export.server.sources import ServedModel, find_versions
from bart_export.server.status import Code, StatusError, invalid
from bart_export.server.versions import (
    FindVersions,
    ModelVersions,
    OpenVersion,
    State,
    VersionStatus,
    not_found,
)

LOG = logging.getLogger(__name__)

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
        self.lock = threading.Lock()  # guards what follows; dictionaries are replaced, not changed
        self.served: Mapping[str, ServedModel] = {}
        self.models: Mapping[str, ModelVersions] = {}  # also those served no more, for their states
        self.labels: Labels = {}
        self.stopped = False

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
            listed = {served.name: served for served in models}
            # Before new versions are loaded, one of which may answer before the others.
            waited_for = [name for name in listed if not self._answers(name)]
            self._serve({**self.served, **listed})
            reasons = [reason for name in waited_for if (reason := self.models[name].wait())]
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
        with self.lock:
            self.stopped = True
            self.served, self.labels = {}, {}
        for model in self.models.values():
            model.withdraw()
        deadline = time.monotonic() + self.options.drain_seconds
        for name, model in self.models.items():
            if not model.join(deadline):
                LOG.warning("%s: not unloaded after %g s", name, self.options.drain_seconds)

    def names(self) -> list[str]:
        """Return the names of the models that are served, in the order of their list."""
        return list(self.served)

    def lease(self, spec: ModelSpec) -> contextlib.AbstractContextManager[Lease]:
        """Hold the servable that answers a request for the length of a block."""
        number = self._number(spec)
        if spec.name not in self.models:
            raise not_found(spec.name, number)
        return self.models[spec.name].lease(number)

    def status(self, spec: ModelSpec) -> list[VersionStatus]:
        """Return the states of a model's versions, the highest first, or of the version named.

        Labels are ignored, as in TensorFlow Serving.
        """
        model = self.models.get(spec.name)
        statuses = model.statuses() if model else {}
        if not statuses:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if spec.version is None:
            return [statuses[number] for number in sorted(statuses, reverse=True)]
        if spec.version not in statuses:
            raise StatusError(
                Code.NOT_FOUND, f"Could not find version {spec.version} of model {spec.name}"
            )
        return [statuses[spec.version]]

    def _number(self, spec: ModelSpec) -> int | None:
        """Return the version that a request names, by number or label; None for the latest."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        if spec.label is None:
            return spec.version
        labels = self.labels.get(spec.name, {})
        if spec.label not in labels:
            raise invalid(f"Unrecognized servable version label: {spec.label}")
        return labels[spec.label]

    def _serve(self, served: Mapping[str, ServedModel]) -> None:
        """Serve these models and withdraw all others."""
        with self.lock:
            if self.stopped:
                raise StatusError(Code.UNAVAILABLE, "The server is stopping")
            old, self.served = self.served, served
            new = {
                name: ModelVersions(name, self.open_version, self.find_versions, self.options)
                for name in served.keys() - self.models.keys()
            }
            self.models = {**self.models, **new}
            for name, model in served.items():
                if old.get(name) != model:
                    LOG.info("%s: served from %s (%s)", name, model.base_path, model.engine)
                    self.models[name].serve(model)
            for name in old.keys() - served.keys():
                LOG.info("%s: served no more", name)
                self.models[name].withdraw()

    def _answers(self, name: str) -> bool:
        """Return whether a version of a model is available."""
        statuses = self.models[name].statuses() if name in self.models else {}
        return any(status.state == State.AVAILABLE for status in statuses.values())

    def _checked_labels(self, models: Sequence[ServedModel]) -> Labels:
        """Return the labels of a list of models."""
        for served in models:
            statuses = self.models[served.name].statuses()
            held = self.labels.get(served.name, {})
            for label, number in served.labels.items():
                moves = held.get(label, number) != number
                if self.options.allow_labels_for_unavailable and not moves:
                    continue
                if number not in statuses or statuses[number].state != State.AVAILABLE:
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {served.name}, "
                        "which is not currently available for inference",
                    )
        return {served.name: dict(served.labels) for served in models}


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
