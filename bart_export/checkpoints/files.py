"""The files of a checkpoint, opened with care, and its small ones read.

A file may be a pipe that nobody writes to, a device without an end, the pointer that Git LFS leaves
in the place of a file, or JSON nested beyond a parser's stack. What is missing or wrong becomes one
line that names it.
"""

import importlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from bart_export import documents
from bart_export.errors import (
    BartExportError,
    CheckpointError,
    MissingExtra,
    named,
    printable,
    shown,
)

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
LARGEST_TEXT = 1 << 26  # bytes; a tokenizer.json of 50,000 tokens has 1.4 million
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

CARD, LICENCE_FILES = "README.md", ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
LONGEST_LICENCE = 200  # characters of what a card states
# The first lines of a Hugging Face card are YAML between two rules, with a key `license`
# (huggingface.co/docs/hub/model-cards); its name, where `license` is "other", is `license_name`.
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
KEY = re.compile(r"^(license_name|license):(.*)$", re.MULTILINE)
HEADING = re.compile(r"^#+ ([^\n]*\blicen[cs]es?\b[^\n]*)$", re.MULTILINE | re.IGNORECASE)

JsonObject = dict[str, Any]  # of a file whose values nobody has held to anything yet


def import_extra(package: str, what: str) -> Any:
    """Return a package of the extra `export`.

    Raises:
        MissingExtra: if it is not installed; `what` says what it is needed for.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(what, package, "export") from error


def one_line(error: Exception) -> str:
    """Return the beginning of what a library says is wrong, whatever its own layout."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def require_file(
    path: Path, error: type[BartExportError] = CheckpointError, most: float = float("inf")
) -> None:
    """Require that a path is a file with content of its own, of at most `most` bytes.

    Raises:
        BartExportError: of the class `error`, for a pipe, a device or the like, for the pointer of
            Git LFS, and for a file that is larger or cannot be opened.
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
    if status.st_size > most:
        raise error(
            f"{path} must have at most {most:,} bytes, as all its kind have, and has "
            f"{status.st_size:,}."
        )


def read_text(path: Path, error: type[BartExportError] = CheckpointError) -> str:
    """Return the UTF-8 text of a file without byte order mark.

    Raises:
        BartExportError: of the class `error`, for a file that is missing or cannot be read.
    """
    if not path.exists():
        raise error(f"{path.parent} holds no {path.name}, which the checkpoint needs.")
    require_file(path, error, LARGEST_TEXT)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(
            f"{path} must be UTF-8, and is not at byte {reason.start}: it is damaged or in another "
            "encoding. Fetch it again, or save it as UTF-8."
        ) from reason


def read_json(path: Path, error: type[BartExportError] = CheckpointError) -> JsonObject:
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


def indexed_files(index: Path) -> tuple[Path, ...]:
    """Return the weight files that an index names, in the order of their names.

    Raises:
        CheckpointError: for an index without names, a name that leads elsewhere, or a file that is
            not there.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} must hold a weight_map, received {shown(weight_map)}.")
    files = set()
    for value in weight_map.values():
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
                raise CheckpointError(f"{index} must name files beside it, received {shown(name)}.")
            files.add(name)
    for name in files:
        if not os.path.isfile(index.parent / name):  # of a name that no file can have as well
            raise CheckpointError(
                f"{index} names the weight file {named(name)}, which is not there. Fetch the whole "
                "checkpoint."
            )
    return tuple(index.parent / name for name in sorted(files))


def licence(directory: Path) -> str | None:
    """Return the name of a checkpoint's licence or where its directory has it, None for neither."""
    try:
        card = read_text(directory / CARD)
    except CheckpointError:
        card = ""
    if front := FRONT_MATTER.match(card):
        stated = {key: value.strip().strip("\"'") for key, value in KEY.findall(front[1])}
        if name := stated.get("license_name") or stated.get("license"):
            return printable(name.strip()[:LONGEST_LICENCE])
    if heading := HEADING.search(card):
        title = printable(heading[1].strip()[:LONGEST_LICENCE])
        return f'as the checkpoint\'s {CARD} says under "{title}"'
    for name in LICENCE_FILES:
        if (directory / name).is_file():
            return f"as the checkpoint's file {name} says"
    return None
