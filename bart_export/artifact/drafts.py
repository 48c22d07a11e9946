"""Drafts: directories next to an artifact that replace it in one rename.

An export writes into a draft, and `Draft.commit` writes `manifest.json` last. A killed export
leaves the previous artifact unchanged, and no other directory that looks complete.

A draft is in a *place*: a directory with a random name and a `MARKER` file, which names the target
and is locked while its export runs, so that the places of killed exports can be removed. Links
are never followed, and directories without a marker are never touched.
"""

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from bart_export import documents
from bart_export.artifact import locks
from bart_export.artifact.artifact import (
    CACHE,
    GOLDEN,
    MANIFEST,
    REPORT,
    SERVING,
    check_readable_by_all,
    is_artifact,
    read_manifest,
    sha256,
    write_manifest,
)
from bart_export.artifact.manifest import FileEntry, Manifest
from bart_export.errors import ArtifactError, VerificationFailed, shown

MARKER = "bart-export.draft"
SUFFIX = ".draft"
# Directories in a place: the new artifact (after an exchange, the replaced one) and, where the
# system has no exchange, the replaced artifact between two renames.
ARTIFACT, PREVIOUS = "artifact", "previous"
OUTPUT = "--output"  # the option for the target of most drafts
PATIENCE = 5.0  # seconds to wait for another process that is creating its place
# Allowed in an artifact though not in its manifest; operating systems create the last three.
UNNAMED = {MANIFEST, CACHE, SERVING, ".DS_Store", "Thumbs.db", "desktop.ini"}
EXPORTED = {GOLDEN, REPORT, "report", "tokenizer", "tflite", "saved_model", "edgetpu"}
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space, or choose another place with"),
    **dict.fromkeys((errno.EACCES, errno.EROFS), "Name a writable place with"),
}


@dataclasses.dataclass
class Draft:
    """A directory that becomes an artifact when committed; `flag` names its target in errors."""

    directory: pathlib.Path
    target: pathlib.Path
    flag: str = OUTPUT

    @property
    def scratch(self) -> pathlib.Path:
        """A directory for temporary files."""
        path = self.directory.with_name("scratch")
        path.mkdir(exist_ok=True)
        return path

    def content(self, name: str) -> tuple[int, str]:
        """Return a file's size in bytes and its sha256, the first two fields of every entry."""
        path = self.directory / name
        return path.stat().st_size, sha256(path)

    def entry(self, name: str) -> FileEntry:
        """Return an entry with a file's size and hash only."""
        return FileEntry(*self.content(name))

    def take(self, source: pathlib.Path, name: str) -> None:
        """Copy a file into the draft, as a hard link if possible."""
        (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
        link(source, self.directory / name)

    def commit(self, manifest: Manifest) -> None:
        """Write the manifest, then replace the target with the draft in one rename."""
        for path in sorted(self.directory.rglob("*")):
            if not path.is_symlink():
                documents.synchronize(path)
        write_manifest(self.directory / MANIFEST, manifest)
        documents.synchronize(self.directory / MANIFEST)
        documents.synchronize(self.directory)
        check_replaceable(self.target, self.flag)  # it may have changed since the draft was created
        if self.target.exists():
            exchange(self.directory, self.target)
        else:
            self.directory.rename(self.target)
        documents.synchronize(self.target.parent)


@contextlib.contextmanager
def draft(target: pathlib.Path, flag: str = OUTPUT) -> Iterator[Draft]:
    """Yield a draft next to `target`, which is removed unless the block commits it.

    If `target` is a symbolic link, the directory it points to is replaced and the link stays.
    Errors advise to choose another target with the option `flag`.

    Raises:
        ArtifactError: if the target cannot be written, the disk is full, the target contains
            anything but an artifact, or another export is writing it.
        VerificationFailed: if the block does; the message adds that nothing was committed.
    """
    try:
        target = pathlib.Path(os.path.realpath(target))
        check_replaceable(target, flag)
        with place_beside(target, flag) as place:
            (place / ARTIFACT).mkdir()
            yield Draft(place / ARTIFACT, target, flag)
    except VerificationFailed as error:
        raise VerificationFailed(f"{error} Nothing was committed.") from error
    except OSError as error:
        place = error.filename or target
        advice = ADVICE.get(error.errno or 0, "Name another place with")
        raise ArtifactError(f"Cannot write {place}: {error.strerror}. {advice} {flag}.") from error


def check_replaceable(target: pathlib.Path, flag: str = OUTPUT) -> None:
    """Raise ArtifactError if replacing a target would lose anything but an artifact."""
    check_readable_by_all(target)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file. Name a directory for the artifact.")
    if pathlib.Path.cwd().is_relative_to(target):
        raise ArtifactError(
            f"{target} is, or contains, the current directory, which cannot be replaced. "
            f"Name another directory with {flag}."
        )
    if target.is_symlink():
        raise ArtifactError(f"{target} is a broken symbolic link. Name another directory.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not is_artifact(target):
        raise ArtifactError(
            f"{target} is not empty and has no {MANIFEST} that bart-export wrote. "
            "Name a new directory, or an artifact to replace."
        )
    if foreign := foreign_file(target):
        raise ArtifactError(
            f"{target} contains {shown(foreign)}, which does not belong to the artifact and would "
            f"be lost. Move it, or choose another directory with {flag}."
        )


def foreign_file(directory: pathlib.Path) -> str | None:
    """Return the name of a file in an artifact that no export wrote, or None.

    If the manifest is damaged, only the top level is checked.
    """
    try:
        names = set(read_manifest(directory / MANIFEST).files)
    except ArtifactError:
        found = (path.name for path in sorted(directory.iterdir()))
        return next((name for name in found if name not in EXPORTED | UNNAMED), None)
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        unnamed = UNNAMED & {path.name, name.partition("/")[0]}
        if name not in names and not unnamed and (path.is_symlink() or not path.is_dir()):
            return name
    return None


def link(source: str | pathlib.Path, path: str | pathlib.Path) -> None:
    """Hard-link a file, or copy it if the file system cannot."""
    try:
        os.link(os.path.realpath(source), path)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, path)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


@contextlib.contextmanager
def place_beside(target: pathlib.Path, flag: str = OUTPUT) -> Iterator[pathlib.Path]:
    """Yield a new place next to `target`, after removing those of killed exports."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with locks.locked_directory(target.parent, PATIENCE):
            for abandoned in places(target):
                clear(abandoned, target, flag)
            place = pathlib.Path(
                tempfile.mkdtemp(prefix=prefix(target), suffix=SUFFIX, dir=target.parent)
            )
            stack.callback(remove, place)
            descriptor = os.open(place / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            stack.callback(os.close, descriptor)
            locks.lock(descriptor)
            os.write(descriptor, json.dumps({"target": target.name, "pid": os.getpid()}).encode())
        yield place


def prefix(target: pathlib.Path) -> str:
    """Return the prefix of the names of a target's places, short enough for any file system."""
    return f".{target.name[:50]}."


def places(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield this user's directories next to a target that are named like its places."""
    pattern = re.compile(re.escape(prefix(target)) + r"[a-z0-9_]{8}" + re.escape(SUFFIX))
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    for path in sorted(target.parent.iterdir()):
        if pattern.fullmatch(path.name):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode) and status.st_uid == user:
                    yield path


def clear(place: pathlib.Path, target: pathlib.Path, flag: str) -> None:
    """Remove the place of a killed export, or raise ArtifactError if the export is running.

    If the export was killed between two renames, the previous artifact is restored.
    """
    try:
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(place / MARKER, flags)
    except FileNotFoundError:
        with contextlib.suppress(OSError):  # killed before it wrote the marker: empty, or not ours
            place.rmdir()
        return
    except OSError:
        return
    try:
        # Without locks, a running export cannot be told from a killed one.
        if not locks.AVAILABLE or not is_marker(descriptor, target):
            return
        if not locks.lock(descriptor):
            raise ArtifactError(
                f"Another export is writing {target}, in {place}. Wait for it to finish, or name "
                f"another {flag}."
            )
        if (place / PREVIOUS).is_dir() and not os.path.lexists(target):
            (place / PREVIOUS).rename(target)
        remove(place)
    finally:
        os.close(descriptor)


def is_marker(descriptor: int, target: pathlib.Path) -> bool:
    """Return whether an open file is the marker of a target's place, even if still empty."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    content = os.read(descriptor, 4096)
    try:
        marker = json.loads(content or b"{}")
    except ValueError:
        return False
    return isinstance(marker, dict) and marker.get("target", target.name) == target.name


def remove(place: pathlib.Path) -> None:
    """Remove a place, its marker last, so that anything left over can be identified."""
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.name != MARKER:
                discard(path)
        (place / MARKER).unlink(missing_ok=True)
        place.rmdir()


def discard(path: pathlib.Path) -> None:
    """Remove a file or directory, its manifest first, so that no partial artifact remains."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def exchange(new: pathlib.Path, old: pathlib.Path) -> None:
    """Swap two directories atomically if the system can, otherwise with renames.

    A process that is killed between the renames leaves the old directory as `PREVIOUS`.
    """
    call = EXCHANGES.get(sys.platform)
    library = ctypes.CDLL(None, use_errno=True) if call else None
    if call and library and hasattr(library, call[0]):
        name, current, flag = call
        paths = os.fsencode(new), os.fsencode(old)
        if getattr(library, name)(current, paths[0], current, paths[1], flag) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    previous = new.with_name(PREVIOUS)
    old.rename(previous)
    try:
        new.rename(old)
    except OSError:
        previous.rename(old)
        raise
    previous.rename(new)


# The system call that swaps two paths, its "current directory" argument, and its flag.
EXCHANGES = {
    "linux": ("renameat2", -100, 2),  # AT_FDCWD, RENAME_EXCHANGE
    "darwin": ("renameatx_np", -2, 2),  # AT_FDCWD, RENAME_SWAP
}
