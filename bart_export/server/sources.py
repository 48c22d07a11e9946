"""Where the versions of a model lie, and which engine serves what lies at a place.

A SavedModel's base path has a directory for each version, named by its number, as TensorFlow
Serving has it. An artifact is itself the one version of the model that LiteRT serves, and its
manifest counts the exports to that place. The manifest also says whether an artifact is whole; a
SavedModel from elsewhere is whole once TensorFlow loads it.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from bart_export.artifact.artifact import Artifact, holds_artifact
from bart_export.artifact.directories import MANIFEST
from bart_export.artifact.manifest_file import path_of
from bart_export.errors import ArtifactError

TENSORFLOW = "tensorflow"
LITERT = "litert"


@dataclasses.dataclass(frozen=True)
class Latest:
    """The highest `number` versions."""

    number: int = 1

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return those versions of `found` that are wanted."""
        return frozenset(sorted(found, reverse=True)[: self.number])


@dataclasses.dataclass(frozen=True)
class All:
    """Every version."""

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return those versions of `found` that are wanted."""
        return frozenset(found)


@dataclasses.dataclass(frozen=True)
class Specific:
    """The versions named, as far as they are there."""

    versions: frozenset[int]

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return those versions of `found` that are wanted."""
        return self.versions & frozenset(found)


VersionPolicy = Latest | All | Specific


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model to be served.

    For the engine "tensorflow", `base_path` holds a SavedModel in a numbered directory for each
    version; for "litert" it is an artifact. `labels` maps a label to a version.
    """

    name: str
    base_path: pathlib.Path
    engine: str
    policy: VersionPolicy = Latest()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


VERSION = re.compile(r"[0-9]+")
HIGHEST_VERSION = 2**63 - 1  # versions are int64 in every message
SAVED_MODEL, GRAPH = "saved_model", "saved_model.pb"

# The targets whose files an engine runs; the faster engine comes first.
TARGETS = {LITERT: "tflite", TENSORFLOW: SAVED_MODEL}


def choose_engine(
    base_path: pathlib.Path, requested: str | None = None
) -> tuple[str, pathlib.Path]:
    """Choose the engine that serves what lies at a place.

    Args:
        base_path: an artifact, or a SavedModel's base path, which need not be there yet.
        requested: an engine; None takes the fastest that an artifact has files for.

    Returns:
        The engine and the base path that it reads.

    Raises:
        ArtifactError: if there is nothing for the engine requested, or a damaged artifact.
    """
    if (base_path / GRAPH).is_file():
        raise ArtifactError(
            f"{base_path} is one version of a SavedModel. Expected the directory that holds the "
            f"numbered versions; accepted would be {base_path.parent}."
        )
    if not (base_path / MANIFEST).is_file():
        if (base_path / "config.json").is_file():
            raise ArtifactError(
                f"{base_path} is a checkpoint, which has to be exported before it is served: "
                f"bart-export --preset {base_path} --target tflite --output DIRECTORY. Then serve "
                "DIRECTORY."
            )
        if requested == LITERT:
            raise ArtifactError(
                f"The engine {LITERT} serves artifacts, but {base_path} has no {MANIFEST}. Use "
                f"the engine {TENSORFLOW} for a SavedModel, or name a directory that bart-export "
                "wrote."
            )
        return TENSORFLOW, base_path
    artifact = Artifact.open(base_path)
    present = [engine for engine, target in TARGETS.items() if artifact.files(target)]
    engine = requested or next(iter(present), None)
    if engine not in present:
        wanted = [TARGETS[engine]] if engine else list(TARGETS.values())
        raise ArtifactError(
            f"{base_path} has no files of the target {' or '.join(wanted)}"
            f"{f' for the engine {engine}' if engine else ''}. Export it again with --target "
            f"{wanted[0]}{f', or use the engine {present[0]}' if present else ''}."
        )
    return engine, base_path / SAVED_MODEL if engine == TENSORFLOW else base_path


def find_versions(served: ServedModel) -> dict[int, pathlib.Path]:
    """Return where the versions of a model lie, by number."""
    base_path = served.base_path
    if served.engine == LITERT:
        return {whole(base_path).manifest.exports: base_path}
    if base_path.name == SAVED_MODEL and holds_artifact(base_path.parent):
        whole(base_path.parent, f"{SAVED_MODEL}/")
    numbered = numbered_directories(base_path)
    return {number: path for number, path in numbered.items() if (path / GRAPH).is_file()}


def numbered_directories(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the children of a base path whose names are version numbers.

    Of two names of one number, 1 and 01, that without zeros counts.
    """
    try:
        names = sorted(os.listdir(base_path))
    except OSError as error:
        raise ArtifactError(
            f"{base_path} cannot be listed: {error.strerror}. Expected a directory with a "
            "numbered directory for each version; what is loaded stays."
        ) from None
    numbers = {int(name): name for name in names if VERSION.fullmatch(name)}
    return {
        number: base_path / name for number, name in numbers.items() if number <= HIGHEST_VERSION
    }


def whole(directory: pathlib.Path, folder: str = "") -> Artifact:
    """Open an artifact whose files, or those of a folder, are as long as its manifest says."""
    artifact = Artifact.open(directory)
    problem = shortfall(artifact, folder)
    if problem and Artifact.open(directory).manifest == artifact.manifest:
        raise ArtifactError(problem)
    # Another may have taken its place between the manifest and a file.
    return whole(directory, folder) if problem else artifact


def shortfall(artifact: Artifact, folder: str) -> str:
    """Return what is wrong with the length of a file, or ""."""
    for name, entry in artifact.manifest.files.items():
        if name.startswith(folder):
            path = artifact.directory / name
            try:
                size = path_of(artifact.directory, name).stat().st_size
            except OSError as error:
                return f"{path} cannot be read: {error.strerror}."
            if size != entry.bytes:
                return f"{path} has {size} of {entry.bytes} bytes."
    return ""


def listing(path: pathlib.Path) -> Any:
    """Return the names, sizes and times of change of everything below a path."""
    try:
        stats = [(path, path.stat()) for path in sorted(path.rglob("*"))]
    except OSError:  # gone meanwhile; nothing is equal to this, so that it is looked at again
        return object()
    return [(path, status.st_size, status.st_mtime_ns) for path, status in stats]
