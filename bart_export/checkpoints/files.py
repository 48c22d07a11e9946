"""Safe reading of a checkpoint's files.

A file may be a pipe without a writer, an endless device, a Git LFS pointer, or JSON nested deeper
than the parser's stack. Every fault becomes a one-line error that names the file.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from bart_export import documents
from bart_export.errors import BartExportError, CheckpointError, named, printable, shown

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
LARGEST_TEXT = 1 << 26  # bytes; a tokenizer.json of 50,000 tokens has 1.4 million
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

CARD, LICENCE_FILES = "README.md", ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
LONGEST_LICENCE = 200  # characters kept of a licence's name
# A Hugging Face model card begins with YAML between two rules, with the key `license`, and with
# `license_name` if that is "other" (huggingface.co/docs/hub/model-cards).
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
KEY = re.compile(r"^(license_name|license):(.*)$", re.MULTILINE)
HEADING = re.compile(r"^#+ ([^\n]*\blicen[cs]es?\b[^\n]*)$", re.MULTILINE | re.IGNORECASE)

JsonObject = dict[str, Any]  # parsed and not validated


def require_file(
    path: Path, error: type[BartExportError] = CheckpointError, max_bytes: float = float("inf")
) -> None:
    """Raise `error` unless a path is a regular file of at most `max_bytes`, not an LFS pointer."""
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, documents.FLAGS)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path} must be a regular file, received a pipe or a device.")
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise error(
                    f"{path} is a Git LFS pointer, not the file itself: it was cloned without "
                    "git-lfs. Install git-lfs and run `git lfs pull` in the clone, or download "
                    "the file."
                )
    except OSError as reason:
        raise error(f"Cannot read {path}: {reason.strerror}.") from reason
    if status.st_size > max_bytes:
        raise error(f"{path} must have at most {max_bytes:,} bytes, received {status.st_size:,}.")


def read_text(path: Path, error: type[BartExportError] = CheckpointError) -> str:
    """Return a file's UTF-8 text without a byte order mark; anything else raises `error`."""
    if not path.exists():
        raise error(f"{path.parent} has no {path.name}, which the checkpoint needs.")
    require_file(path, error, LARGEST_TEXT)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(
            f"{path} must be UTF-8, received an invalid byte at offset {reason.start}: it is "
            "damaged or in a different encoding. Download it again, or save it as UTF-8."
        ) from reason


def read_json(path: Path, error: type[BartExportError] = CheckpointError) -> JsonObject:
    """Return the JSON object in a file; anything else raises `error`."""
    text = read_text(path, error)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        fault = documents.fault_of(reason) if text.strip() else "empty"
        raise error(
            f"{path} is not valid JSON ({fault}); it is damaged or incomplete. Download it again."
        ) from reason
    if not isinstance(value, dict):
        raise error(f"{path} must be a JSON object, received {shown(value)}.")
    return value


def indexed_files(index: Path) -> tuple[Path, ...]:
    """Return the weight files that an index lists, sorted by name, or raise CheckpointError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} must have a weight_map, received {shown(weight_map)}.")
    files = set()
    for value in weight_map.values():
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
                raise CheckpointError(
                    f"{index} must name files in its own directory, received {shown(name)}."
                )
            files.add(name)
    for name in files:
        if not os.path.isfile(index.parent / name):  # unlike pathlib's, false for invalid names
            raise CheckpointError(
                f"{index} lists the weight file {named(name)}, which does not exist. Download the "
                "complete checkpoint."
            )
    return tuple(index.parent / name for name in sorted(files))


def licence(directory: Path) -> str | None:
    """Return the name of a checkpoint's licence, or where it is stated, or None."""
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
