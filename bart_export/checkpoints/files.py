"""The files of a checkpoint, opened with care, and its small ones read.

A file may be a pipe that nobody writes to, a device without an end, the pointer that Git LFS leaves
in the place of a file, or JSON nested beyond a parser's stack. What is missing or wrong becomes one
line that names it.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from bart_export import documents
from bart_export.errors import BartExportError, CheckpointError, named, shown

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
LARGEST_TEXT = 1 << 26  # bytes; a tokenizer.json of 50,000 tokens has 1.4 million
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_file(path: Path, error: type[BartExportError] = CheckpointError) -> int:
    """Check that a path is a file with content of its own, and return its size in bytes.

    Raises:
        BartExportError: of the class `error`, for a pipe, a device or the like, for the pointer of
            Git LFS, and for a file that cannot be opened.
    """
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, documents.FLAGS)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path} must be a file, and is a pipe, a device or the like.")
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise error(
                    f"{path} is a Git LFS pointer, not the file itself: it was cloned without "
                    "git-lfs. Install git-lfs and run `git lfs pull` in the clone, or download "
                    "the file."
                )
    except OSError as reason:
        raise error(f"Cannot read {path}: {reason.strerror}.") from reason
    return status.st_size


def check_small_file(path: Path, error: type[BartExportError] = CheckpointError) -> None:
    """Check that a path is a file of a size that can be read whole; see `check_file`."""
    if (size := check_file(path, error)) > LARGEST_TEXT:
        raise error(
            f"{path} must have at most {LARGEST_TEXT:,} bytes, as all its kind have, and has "
            f"{size:,}."
        )


def read_text(path: Path, error: type[BartExportError] = CheckpointError) -> str:
    """Return the UTF-8 text of a file without byte order mark.

    Raises:
        BartExportError: of the class `error`, for a file that is missing or cannot be read.
    """
    if not path.exists():
        raise error(f"{path.parent} holds no {path.name}, which the checkpoint needs.")
    check_small_file(path, error)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(
            f"{path} must be UTF-8, and is not at byte {reason.start}: it is damaged or in another "
            "encoding. Fetch it again, or save it as UTF-8."
        ) from reason


def read_json(path: Path, error: type[BartExportError] = CheckpointError) -> dict[str, Any]:
    """Return the JSON object in a file; anything else raises `error` and says where."""
    text = read_text(path, error)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        fault = documents.fault_of(reason) if text.strip() else "empty"
        raise error(
            f"{path} is not valid JSON ({fault}); it is damaged or was not downloaded whole. "
            "Fetch it again."
        ) from reason
    if not isinstance(value, dict):
        raise error(f"{path} must hold a JSON object, received {shown(value)}.")
    return value


def member(directory: Path, index: Path, name: object) -> Path:
    """Return the file that an index names, which must be a plain name in the same directory.

    Raises:
        CheckpointError: for a name that leads elsewhere, or a file that is not there.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise CheckpointError(f"{index} must name files beside it, received {shown(name)}.")
    path = directory / name
    if "\0" in name or not is_file(path):
        raise CheckpointError(
            f"{index} names the weight file {named(name)}, which is not there. Fetch the whole "
            "checkpoint."
        )
    return path


def is_file(path: Path) -> bool:
    """Return whether a path is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False
