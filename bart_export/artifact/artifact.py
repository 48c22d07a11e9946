"""The artifact directory: what an export leaves behind and every runtime reads.

An export writes into a draft beside its target; `Draft.commit` writes `manifest.json` last and
puts the draft in the target's place with one rename, so that a killed export leaves the previous
artifact as it was and nothing that looks finished. The format is described in artifacts/README.md.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

from bart_export import documents
from bart_export.artifact import manifest_file, stamps
from bart_export.artifact.directories import ARTIFACT, MANIFEST, exchange, place_beside, synchronize
from bart_export.artifact.figures import Golden
from bart_export.artifact.manifest import FileEntry, Manifest, StaticEntry
from bart_export.config import BartConfig, GenerationConfig
from bart_export.contract import Bucket, tflite_signatures
from bart_export.errors import ArtifactError, shown
from bart_export.presets import PRESETS

CACHE = ".cache"
# Files that every export writes; a bundle for Android has the first only.
GOLDEN, REPORT = "golden.json", "REPORT.md"
SERVING = "serving"
# What may lie in an artifact and is in no manifest; the last three are what systems leave anywhere.
UNNAMED = {MANIFEST, CACHE, SERVING, ".DS_Store", "Thumbs.db", "desktop.ini"}
EXPORTED = {GOLDEN, REPORT, "report", "tokenizer", "tflite", "saved_model", "edgetpu"}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact directory whose manifest has been read and checked."""

    directory: pathlib.Path
    manifest: Manifest

    @property
    def config(self) -> BartConfig:
        """The model's architecture."""
        return self.manifest.config

    @property
    def generation(self) -> GenerationConfig:
        """The settings where a call gives none."""
        return self.manifest.generation

    @classmethod
    def open(cls, directory: pathlib.Path) -> "Artifact":
        """Read the manifest of an artifact.

        Raises:
            ArtifactError: for one that is missing, damaged, edited or of a newer format.
        """
        path = directory / MANIFEST
        if not os.path.isdir(directory):
            raise ArtifactError(no_artifact(directory))
        try:
            return cls(directory, manifest_file.read_manifest(path))
        except FileNotFoundError:
            raise ArtifactError(no_artifact(directory)) from None

    def path(self, name: str, *, rehash: bool = False) -> pathlib.Path:
        """Return the path of a file after checking that its bytes are the manifest's.

        A file that this user has hashed since the system started, and that nobody has touched
        since (`stamps`), is not read again, unless `rehash`. Any other is an ArtifactError.
        """
        if name not in self.manifest.files:
            known = ", ".join(self.manifest.files)
            raise ArtifactError(f"{self.directory} has no file {name}. It has: {known}.")
        expected = self.manifest.files[name]
        path = manifest_file.path_of(self.directory, name)
        try:
            status = path.stat()
            documents.require_regular(path, status)
            stamp = stamps.stamp(status, expected.sha256)
            if not rehash and stamps.read(path) == stamp:
                return path
            altered = difference(path, status.st_size, expected)
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be read: {error.strerror}. Export the artifact again."
            ) from None
        if altered:
            raise ArtifactError(
                f"{path} is not the file its manifest names: it was altered or damaged "
                f"({altered}). Export the artifact again."
            )
        stamps.write(path, stamp)
        return path

    def golden(self) -> Golden:
        """Return the content of golden.json, or raise ArtifactError."""
        path = self.path(GOLDEN)
        try:
            return manifest_file.read_golden(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArtifactError(
                f"{path} cannot be used: {reason}. Export the artifact again."
            ) from None

    def folder(self, name: str) -> pathlib.Path:
        """Return the path of a folder after checking that it holds its named files and no other.

        TensorFlow, for one, prefers a `saved_model.cpb` to the `saved_model.pb`.
        """
        folder = self.directory / name
        named = [file for file in self.manifest.files if file.startswith(f"{name}/")]
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

    def files(self, target: str) -> dict[str, FileEntry]:
        """Return the entries of one target's files ("saved_model"), by name, in manifest order."""
        files = self.manifest.files
        return {name: entry for name, entry in files.items() if entry.target == target}

    def buckets(self, name: str) -> tuple[Bucket, ...] | None:
        """Return the signatures of a file of the static build, None for a dynamic one."""
        entry = self.manifest.files[name]
        if not isinstance(entry, StaticEntry):
            return None
        known = {signature.name: signature for signature in tflite_signatures(self.config)}
        return tuple(
            Bucket(bucket, known[signature.signature], signature.sizes)
            for bucket, signature in entry.signatures.items()
        )


def sha256(path: pathlib.Path) -> str:
    """Return the sha256 of a file, in hexadecimal (hashlib.file_digest needs Python 3.11)."""
    digest = hashlib.sha256()
    with documents.open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def difference(path: pathlib.Path, size: int, expected: FileEntry) -> str:
    """Return in what a file of some size is not what its entry in a manifest says, "" if it is."""
    if size != expected.bytes:
        return f"it has {size} bytes, not {expected.bytes}"
    same = sha256(path) == expected.sha256
    return "" if same else f"it has the right size, {size} bytes, and another content"


def link(source: str | pathlib.Path, path: str | pathlib.Path) -> None:
    """Give a file another name, or copy it where the file system has no hard links."""
    try:
        os.link(os.path.realpath(source), path)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, path)


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

    def content(self, name: str) -> tuple[int, str]:
        """Return the size in bytes and the sha256 of a file, which every entry begins with."""
        path = self.directory / name
        return path.stat().st_size, sha256(path)

    def entry(self, name: str) -> FileEntry:
        """Return the entry of a file of the draft that has only a size and a hash."""
        return FileEntry(*self.content(name))

    def carry(self, artifact: Artifact, name: str) -> None:
        """Take a checked file over from another artifact, as a hard link where that can be."""
        self.take(artifact.path(name, rehash=True), name)

    def take(self, source: pathlib.Path, name: str) -> None:
        """Give a file a name in the draft; see `carry`."""
        (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
        link(source, self.directory / name)

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest and put the draft in the target's place, in one rename."""
        for path in sorted(self.directory.rglob("*")):
            if not path.is_symlink():
                synchronize(path)
        manifest_file.write_manifest(self.directory / MANIFEST, manifest)
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
        advice = ADVICE.get(error.errno or 0, "Name another place with")
        raise ArtifactError(
            f"Cannot write {place}: {error.strerror}. {advice} --output."
        ) from error


def check_readable_by_all(path: pathlib.Path) -> None:
    """Raise ArtifactError for a path not in UTF-8: TensorFlow and LiteRT take no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ArtifactError(
            f"{shown(str(path))} must be a path in UTF-8 for TensorFlow and LiteRT to open it. "
            "Rename it, or name another."
        ) from None


def check_replaceable(target: pathlib.Path) -> None:
    """Raise ArtifactError unless an artifact can be put in a place without any other loss."""
    check_readable_by_all(target)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file. Name a directory for the artifact.")
    if pathlib.Path.cwd().is_relative_to(target):
        raise ArtifactError(
            f"{target} is, or holds, the current directory, and replacing it would pull that away. "
            "Name another directory with --output."
        )
    if target.is_symlink():
        raise ArtifactError(f"{target} is a link that leads nowhere. Name another directory.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not holds_artifact(target):
        raise ArtifactError(
            f"{target} is a directory with other things in it and no {MANIFEST} of an artifact. "
            "Name a new directory, or an artifact to replace."
        )
    if found := stranger(target):
        raise ArtifactError(
            f"{target} holds {shown(found)}, which is not the artifact's and would be lost. "
            "Move it away, or name another directory with --output."
        )


def holds_artifact(directory: pathlib.Path) -> bool:
    """Return whether a directory has a manifest of ours, be it damaged: others have one, too."""
    try:
        content = documents.read_bounded(directory / MANIFEST, manifest_file.MANIFEST_LIMIT)
    except OSError:
        return False
    return b'"manifest_sha256"' in content


def stranger(directory: pathlib.Path) -> str | None:
    """Return the name of something in an artifact that no export made, None if there is nothing.

    Where the manifest is damaged, only what lies at the top is told apart.
    """
    try:
        names = set(manifest_file.read_manifest(directory / MANIFEST).files)
    except ArtifactError:
        theirs = (path.name for path in sorted(directory.iterdir()))
        return next((name for name in theirs if name not in EXPORTED | UNNAMED), None)
    for folder, folders, files in os.walk(directory):
        place = pathlib.Path(folder)
        if place == directory:
            folders[:] = [name for name in folders if name not in UNNAMED]
            files = [name for name in files if name not in UNNAMED]
        links = [name for name in folders if (place / name).is_symlink()]
        for name in sorted([*files, *links]):
            found = (place / name).relative_to(directory).as_posix()
            if found not in names and name not in UNNAMED:
                return found
    return None


ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space or name another place with"),
    **dict.fromkeys((errno.EACCES, errno.EROFS), "Name a place you may write with"),
}


def no_artifact(path: pathlib.Path) -> str:
    """Return the line about a path that is no artifact: what it is, and how to get an artifact."""
    typed = re.sub("^(hf|kaggle):/", r"\1://", path.as_posix())
    exported = pathlib.Path("artifacts", path)
    around = next(filter(is_artifact, path.absolute().parents), None)
    if path.exists() and around is not None:
        return f"{path} is a part of an artifact. Name the artifact: {around}"
    if not path.exists() and is_artifact(exported):
        return f"There is no {path}. Did you mean {exported}?"
    if not path.exists() and (typed in PRESETS or "://" in typed):
        return f"{typed} is a preset, of which an artifact is made with: {export_command(typed)}"
    if (path / "config.json").is_file():
        return f"{path} is a checkpoint, of which an artifact is made with: {export_command(path)}"
    if not path.is_dir():
        return (
            f"An artifact is a directory with a {MANIFEST}, but {path} is not a directory. "
            f"Make one with: {export_command('NAME')} --output {shlex.quote(str(path))}"
        )
    return f"{path} has no {MANIFEST}, so it is not a finished artifact. Export it again."


def is_artifact(directory: pathlib.Path) -> bool:
    """Return whether a directory looks like an artifact."""
    return (directory / MANIFEST).is_file() and holds_artifact(directory)


def export_command(preset: str | pathlib.Path) -> str:
    """Return the command that exports a preset."""
    name = str(preset)
    if isinstance(preset, pathlib.Path) and name in PRESETS:
        name = f"./{name}"
    return f"bart-export --preset {shlex.quote(name)} --target tflite"
