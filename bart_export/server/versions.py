"""Versions of a model: their directories, which of them are served, and their states.

As in TensorFlow Serving, a SavedModel's base path has a directory for each version, named by its
number. An artifact is a single version for LiteRT, numbered by the exports to its directory.
"""

import dataclasses
import enum
import os
import pathlib
import re
from collections.abc import Callable, Collection, Mapping

from bart_export.artifact.artifact import CACHE, Artifact, is_artifact
from bart_export.artifact.manifest import SAVED_MODEL
from bart_export.errors import ArtifactError
from bart_export.runtime.engine_choice import choose_file
from bart_export.server.servable import Servable
from bart_export.server.status import Code

TENSORFLOW, LITERT = "tensorflow", "litert"
GRAPH = "saved_model.pb"

VERSION = re.compile(r"[0-9]+")
HIGHEST_VERSION = 2**63 - 1  # versions are int64 in every message


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Which versions are served: the `latest` ones (None for all), or the `specific` ones."""

    latest: int | None = 1
    specific: frozenset[int] | None = None

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return the versions to serve out of `found`."""
        if self.specific is not None:
            return self.specific & frozenset(found)
        return frozenset(sorted(found, reverse=True)[: self.latest])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model to be served.

    For the engine "tensorflow", `base_path` holds a numbered SavedModel directory for each version;
    for "litert" it is an artifact. `labels` maps labels to versions.
    """

    name: str
    base_path: pathlib.Path
    engine: str
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def missing(self, found: Collection[int]) -> str:
        """Return a message about wanted versions that are not in `found`, or ""."""
        absent = ", ".join(map(str, sorted((self.policy.specific or frozenset()) - set(found))))
        if absent:
            return f"Version {absent} of servable {self.name} not found under {self.base_path}"
        if not found:
            return f"No versions of servable {self.name} found under base path {self.base_path}"
        return ""


def find_versions(model: ServedModel) -> dict[int, pathlib.Path]:
    """Return the directories of a model's versions, by number.

    A SavedModel counts as a version once it has a graph; it may be incomplete and fail to load.

    Raises:
        ArtifactError: for an invalid manifest, or a base path that cannot be listed.
    """
    base_path = model.base_path
    if model.engine == LITERT:
        return {Artifact.open(base_path).manifest.exports: base_path}
    numbered = numbered_directories(base_path)
    return {number: path for number, path in numbered.items() if (path / GRAPH).is_file()}


def numbered_directories(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the children of a base path that are named by a version number.

    If two names have the same number, such as 1 and 01, the one without leading zeros is used.
    """
    try:
        names = sorted(os.listdir(base_path))
    except OSError as error:
        raise ArtifactError(
            f"{base_path} cannot be listed: {error.strerror}. Expected a directory with a "
            "numbered directory for each version; versions already loaded stay."
        ) from None
    numbers = {int(name): name for name in names if VERSION.fullmatch(name)}
    return {
        number: base_path / name for number, name in numbers.items() if number <= HIGHEST_VERSION
    }


def served_files(artifact: Artifact, engine: str) -> list[str]:
    """Return the names of the files that an engine reads, or raise ArtifactError without any."""
    tokenizer = artifact.manifest.tokenizer
    read = [tokenizer.vocabulary, tokenizer.merges]
    if engine == LITERT:
        return [*read, choose_file(artifact, None, None)]
    return read + [name for name in artifact.manifest.files if name.startswith(f"{SAVED_MODEL}/")]


def artifact_directory(version: pathlib.Path) -> pathlib.Path | None:
    """Return the directory of the artifact that contains a version, or a link's target, or None."""
    folder = pathlib.Path(os.path.realpath(version)).parent
    return folder.parent if folder.name == SAVED_MODEL and is_artifact(folder.parent) else None


def list_files(version: pathlib.Path) -> object:
    """Return names, sizes and modification times of all files of a version, or of its artifact.

    Weight caches are left out: loading writes them, and must not look like a change.
    """
    directory = artifact_directory(version) or version
    caches = directory / CACHE
    try:
        paths = [path for path in sorted(directory.rglob("*")) if caches not in (path, path.parent)]
    except OSError as error:  # deleted meanwhile, or out of order
        return str(error)
    return [(path, size_and_time(path)) for path in paths]


def size_and_time(path: pathlib.Path) -> tuple[int, int] | None:
    """Return a file's size and modification time, or None for a link to nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


OpenVersion = Callable[[ServedModel, int, pathlib.Path], Servable]


class State(enum.IntEnum):
    """The states of a version, numbered as in ModelVersionStatus.State."""

    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(eq=False)
class Version:
    """A version of a model and its state.

    `leases` counts the calls that use `servable`. `failed_files` lists the files of a version that
    could not be loaded, for the reason in `code` and `message`; it is None again once they change.
    """

    model: ServedModel
    number: int
    path: pathlib.Path
    state: State = State.LOADING
    code: Code = Code.OK
    message: str = ""
    is_wanted: bool = True
    servable: Servable | None = None
    leases: int = 0
    failed_files: object = None

    @property
    def has_failed(self) -> bool:
        """Whether it could not be loaded, and its files have not changed since."""
        return self.failed_files is not None
