"""The artifact directory: what an export leaves behind and every runtime reads (format_version 1).

An export writes into a draft beside its target; `Draft.commit` writes `manifest.json` last and
puts the draft in the target's place with one rename, so that a killed export leaves the previous
artifact as it was and nothing that looks finished. `Artifact.open` reads a manifest, and
`Artifact.path` hands out a file only while its bytes are those the manifest names. The format is
described in artifacts/README.md. This module knows no model, no quantizer and no runtime.

History of the format: 1 (2026-11), the first.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from bart_export import stamps
from bart_export.config import BartConfig, GenerationConfig
from bart_export.directories import ARTIFACT, MANIFEST, exchange, place_beside, synchronize
from bart_export.errors import ArtifactError, ConfigurationError

FORMAT_VERSION = 1
CACHE = ".cache"
# Files that every export writes; a bundle for Android has the first only.
GOLDEN, REPORT = "golden.json", "REPORT.md"
FIELDS: dict[str, type] = {
    "format_version": int,
    "preset": str,
    "source": dict,
    "config": dict,
    "generation": dict,
    "encoder_sequence_length": int,
    "special_token_ids": dict,
    "parameter_count": int,
    "tokenizer": dict,
    "signatures": dict,
    "files": dict,
    "tools": dict,
    "verification": list,
    "measurements": list,
    "sensitivity": list,
    "exports": int,
}
SEAL = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')
UNSEALED = "0" * 64


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact directory whose manifest has been read and checked."""

    directory: pathlib.Path
    manifest: Mapping[str, Any]
    config: BartConfig
    generation: GenerationConfig

    @classmethod
    def open(cls, directory: pathlib.Path) -> "Artifact":
        """Read the manifest of an artifact.

        Raises:
            ArtifactError: for a directory without manifest, or one that is damaged, edited,
                incomplete or of a newer format.
        """
        from bart_export.presets import no_artifact  # which knows what may be mistaken for one

        path = directory / MANIFEST
        if not directory.is_dir():
            raise ArtifactError(no_artifact(directory))
        try:
            manifest = read_manifest(path)
            config = BartConfig.from_dict(manifest["config"])
            generation = GenerationConfig.from_dict(manifest["generation"])
        except FileNotFoundError:
            raise ArtifactError(no_artifact(directory)) from None
        except ConfigurationError as error:
            raise ArtifactError(f"{path} is damaged: {error} Export it again.") from error
        return cls(directory, manifest, config, generation)

    def path(self, name: str, *, rehash: bool = False) -> pathlib.Path:
        """Return the path of a file after checking that its bytes are the manifest's.

        A file that this user has hashed since the system started, and that nobody has touched
        since (`stamps`), is not read again, unless `rehash`.

        Raises:
            ArtifactError: for a file the manifest does not name, that is missing, or was altered.
        """
        if name not in self.manifest["files"]:
            known = ", ".join(self.manifest["files"])
            raise ArtifactError(f"{self.directory} has no file {name}. It has: {known}.")
        expected = self.manifest["files"][name]
        path = self.directory / name
        try:
            status = path.stat()
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be read: {error.strerror}. Export the artifact again."
            ) from None
        stamp = stamps.stamp(status, expected["sha256"])
        if not rehash and stamps.read(path) == stamp:
            return path
        regular = stat.S_ISREG(status.st_mode)
        right_size = regular and status.st_size == expected["bytes"]
        if not right_size or sha256(path) != expected["sha256"]:
            raise ArtifactError(
                f"{path} is not the file its manifest names: it was altered or damaged "
                f"({status.st_size} bytes of {expected['bytes']}). Export the artifact again."
            )
        stamps.write(path, stamp)
        return path

    def folder(self, name: str) -> pathlib.Path:
        """Return the path of a folder after checking every file in it, for who opens it whole.

        Raises:
            ArtifactError: for a file that is missing or was altered, and for one that the manifest
                does not name: TensorFlow prefers a `saved_model.cpb` to the `saved_model.pb`.
        """
        folder = self.directory / name
        named = [file for file in self.manifest["files"] if file.startswith(f"{name}/")]
        for path in sorted(folder.rglob("*")):
            file = path.relative_to(self.directory).as_posix()
            if file not in named and (path.is_symlink() or not path.is_dir()):
                raise ArtifactError(
                    f"{path} is in no manifest, and {folder} may hold nothing but what the "
                    "manifest names. Take it away, or export the artifact again."
                )
        if not named:
            raise ArtifactError(f"{self.directory / MANIFEST} names no file of {folder}.")
        for file in named:
            self.path(file)
        return folder

    def files(self, target: str) -> dict[str, Mapping[str, Any]]:
        """Return the entries of one target's files ("tflite"), by name, in manifest order."""
        return {
            name: entry
            for name, entry in self.manifest["files"].items()
            if entry.get("target") == target
        }


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """Read and check a manifest.

    Raises:
        ArtifactError: if it is not JSON, of a newer format, edited, or lacks a field.
        FileNotFoundError: if there is none.
    """
    try:
        text = path.read_bytes()
        manifest = json.loads(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Export the artifact again.") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} must have format_version {FORMAT_VERSION}, received {version!r}. "
            "Export the artifact again with this version of bart-export, or update it."
        )
    unsealed, seals = SEAL.subn(f'"manifest_sha256": "{UNSEALED}"'.encode(), text)
    if seals != 1 or seal(unsealed) != text:
        raise ArtifactError(
            f"{path} was edited or damaged after the export: its manifest_sha256 does not match. "
            "Export the artifact again."
        )
    wrong = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise ArtifactError(
            f"{path} lacks {', '.join(wrong)}, or has another type there. Export it again."
        )
    return manifest  # type: ignore[no-any-return]


def seal(unsealed: bytes) -> bytes:
    """Put the sha256 of a manifest's text, with that very value as zeros, into the text."""
    digest = hashlib.sha256(unsealed).hexdigest()
    return unsealed.replace(UNSEALED.encode(), digest.encode(), 1)


def sha256(path: pathlib.Path) -> str:
    """Return the sha256 of a file, in hexadecimal (hashlib.file_digest needs Python 3.11)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


@dataclasses.dataclass
class Draft:
    """A directory that becomes an artifact when it is committed."""

    directory: pathlib.Path
    target: pathlib.Path

    @property
    def scratch(self) -> pathlib.Path:
        """A directory for files that the artifact does not keep."""
        path = self.directory.with_name("scratch")
        path.mkdir(exist_ok=True)
        return path

    def entry(self, name: str, **details: Any) -> dict[str, Any]:
        """Return the manifest's entry of a file of the draft."""
        path = self.directory / name
        return {"bytes": path.stat().st_size, "sha256": sha256(path), **details}

    def carry(self, artifact: Artifact, name: str) -> None:
        """Take a file over from another artifact, as a hard link where the file system has them.

        Raises:
            ArtifactError: if the file is not what that artifact's manifest says.
        """
        source = artifact.path(name, rehash=True)
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and put the draft in the target's place, in one rename."""
        content = {"format_version": FORMAT_VERSION, "manifest_sha256": UNSEALED, **manifest}
        text = json.dumps(content, indent=1, ensure_ascii=False).encode()
        for path in sorted(self.directory.rglob("*")):
            synchronize(path)
        (self.directory / MANIFEST).write_bytes(seal(text + b"\n"))
        synchronize(self.directory / MANIFEST)
        synchronize(self.directory)
        check_replaceable(self.target)  # much may have happened there since the draft was begun
        if self.target.exists():
            exchange(self.directory, self.target)
        else:
            self.directory.rename(self.target)
        synchronize(self.target.parent)


@contextlib.contextmanager
def draft(target: pathlib.Path) -> Iterator[Draft]:
    """Make a draft beside `target` for the length of a block; what is not committed is removed.

    A symbolic link stands for the directory it points to, which is replaced; the link stays.

    Raises:
        ArtifactError: if the place cannot be written, is full, holds something else than an
            artifact, or another export writes there.
    """
    try:
        target = pathlib.Path(os.path.realpath(target))
        check_replaceable(target)
        with place_beside(target) as place:
            (place / ARTIFACT).mkdir()
            yield Draft(place / ARTIFACT, target)
    except OSError as error:
        place = error.filename or target
        advice = ADVICE.get(error.errno or 0, "Name another place with --output")
        raise ArtifactError(f"Cannot write {place}: {error.strerror}. {advice}.") from error


def check_replaceable(target: pathlib.Path) -> None:
    """Refuse to put an artifact in the place of anything but an artifact.

    Raises:
        ArtifactError: for a file, a directory of other things, or one around the current directory.
    """
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file. Name a directory for the artifact.")
    if pathlib.Path.cwd().is_relative_to(target):
        raise ArtifactError(
            f"{target} is, or holds, the current directory, and replacing it would pull that away. "
            "Name another directory with --output."
        )
    if target.is_dir() and any(target.iterdir()) and not holds_artifact(target):
        raise ArtifactError(
            f"{target} is a directory with other things in it and no {MANIFEST} of an artifact. "
            "Name a new directory, or an artifact to replace."
        )


def holds_artifact(directory: pathlib.Path) -> bool:
    """Return whether a directory has a manifest of ours, be it damaged: others have one, too."""
    try:
        return b'"manifest_sha256"' in (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        return False


ADVICE = {
    errno.ENOSPC: "Free some space or name another place with --output",
    errno.EDQUOT: "Free some space or name another place with --output",
    errno.EACCES: "Name a place you may write with --output",
    errno.EROFS: "Name a place you may write with --output",
}
