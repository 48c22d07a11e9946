"""Where the versions of a model lie, and which engine serves what lies at a place.

A SavedModel's base path has a directory for each version, named by its number, as TensorFlow
Serving has it. An artifact is itself the one version of the model that LiteRT serves, and its
manifest counts the exports to that place. A version that is not whole is passed over, with one
line in the log, and looked at again when its files change; one that was whole is not read again.
Nothing here loads a model.
"""

import dataclasses
import logging
import os
import pathlib
import re
from typing import Any

from bart_export.artifact.artifact import Artifact
from bart_export.artifact.directories import MANIFEST
from bart_export.artifact.manifest_file import path_of
from bart_export.errors import ArtifactError
from bart_export.server import saved_model_files
from bart_export.server.served_model import LITERT, TENSORFLOW, ServedModel

LOG = logging.getLogger(__name__)

VERSION = re.compile(r"[0-9]+")
HIGHEST_VERSION = 2**63 - 1  # versions are int64 in every message
SAVED_MODEL = "saved_model"

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
    if (base_path / "saved_model.pb").is_file():
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


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found about a version directory: its files then, and what it lacked, or ""."""

    files: Any
    problem: str


class Sources:
    """Finds versions, and remembers what it has said and seen of each directory."""

    def __init__(self) -> None:
        self.verdicts: dict[pathlib.Path, Verdict] = {}

    def find_versions(self, served: ServedModel) -> dict[int, pathlib.Path]:
        """Return where the whole versions of a model lie, by number.

        Raises:
            ArtifactError: if the base path cannot be listed, or is an artifact that is not whole.
        """
        if served.engine == LITERT:
            return {export_number(served.base_path): served.base_path}
        numbered = numbered_directories(served.base_path)
        paths = set(numbered.values())
        for path in [path for path in self.verdicts if path.parent == served.base_path]:
            if path not in paths:
                self.verdicts.pop(path, None)
        return {number: path for number, path in numbered.items() if self._is_whole(path)}

    def _is_whole(self, path: pathlib.Path) -> bool:
        before = self.verdicts.get(path)
        if before and not before.problem and before.files == identity(path):
            return True
        files = listing(path)
        if before is None or before.files != files:
            problem = saved_model_files.problem(path)
            self.verdicts[path] = Verdict(files if problem else identity(path), problem)
            if problem and not (before and before.problem):
                LOG.warning("skipped %s until it changes: %s", path, problem)
        return not self.verdicts[path].problem


def numbered_directories(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the children of a base path whose names are version numbers.

    Of two names of one number, 1 and 01, that without zeros counts.

    Raises:
        ArtifactError: if the base path cannot be listed.
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


def export_number(base_path: pathlib.Path) -> int:
    """Return the version of an artifact: which export to its place it is.

    Raises:
        ArtifactError: if it is not whole, as while it is copied.
    """
    artifact = Artifact.open(base_path)
    for name, entry in artifact.manifest["files"].items():
        try:
            size = path_of(base_path, name).stat().st_size
        except OSError as error:
            raise ArtifactError(f"{base_path / name} cannot be read: {error.strerror}.") from None
        if size != entry["bytes"]:
            raise ArtifactError(f"{base_path / name} has {size} of {entry['bytes']} bytes.")
    return int(artifact.manifest["exports"])


def identity(path: pathlib.Path) -> Any:
    """Return what tells a directory from another of its name."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def listing(path: pathlib.Path) -> Any:
    """Return the names, sizes and times of change of everything below a path."""
    paths = sorted(path.rglob("*"))
    try:
        stats = [(path, path.stat()) for path in paths]
    except OSError:  # gone meanwhile; nothing is equal to this, so that it is looked at again
        return object()
    return [(path, status.st_size, status.st_mtime_ns) for path, status in stats]
