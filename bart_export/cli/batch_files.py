"""The files that `generate --input` reads: one row, a dictionary with a "text", per line.

An unusable line keeps its place, as a row with an "error".
"""

import contextlib
import io
import itertools
import os
import pathlib
import queue
import stat
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from bart_export.errors import InputError
from bart_export.runtime import lines
from bart_export.runtime.results import Row
from bart_export.runtime.scheduler import WINDOW

STANDARD = "-"  # a path that means standard input or output
OBJECTS = (".jsonl", ".ndjson")
LINES = ".txt"
ACCEPTED = (
    f'{LINES}, one text per line, or {" or ".join(OBJECTS)}, one object with a "text" per line'
)
# Commands that convert other formats to JSON Lines.
CONVERSIONS = {
    ".json": "python3 -c 'import json, sys; "
    "[print(json.dumps(row)) for row in json.load(sys.stdin)]' < {0} > {1}.jsonl",
    ".csv": "python3 -c 'import csv, json, sys; "
    "[print(json.dumps(row)) for row in csv.DictReader(sys.stdin)]' < {0} > {1}.jsonl",
}
PATIENCE = 0.1  # seconds to wait for the next line of a pipe or terminal


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yield a row for each line of a file, or of standard input for "-".

    The suffix decides the format: `.jsonl` or `.ndjson`, in any case, for JSON objects, `.txt` for
    plain text. Without a suffix, the first line decides.

    Raises:
        InputError: immediately if the file cannot be read or is in an unsupported format; while
        iterating if reading fails later.
    """
    ending = path.suffix.lower()
    if ending not in ("", LINES, *OBJECTS):
        raise InputError(f"{path} must be {ACCEPTED}; {ending} is not supported.{conversion(path)}")
    rest = bounded_lines(path)
    first = next(rest, b"").removeprefix(lines.BYTE_ORDER_MARK)
    if b"\0" in first or first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} must be UTF-8 text, but is binary or UTF-16. Save it as UTF-8.")
    begins = first.lstrip()
    objects = isinstance(lines.parsed(begins), dict) if ending in ("", LINES) else True
    if objects and ending == LINES:
        raise InputError(
            f"{path} has a JSON object in its first line. Rename it to end in {OBJECTS[0]}."
        )
    if ending != LINES and (begins.startswith(b"[{") or begins.rstrip() == b"["):
        raise InputError(
            f"{path} must have one object per line, but is a JSON array.{conversion(path, '.json')}"
        )
    make = lines.row_of_object if objects else lines.row_of_line
    return (make(line) for line in itertools.chain([first] if first else [], rest))


def windows(rows: Iterator[Row], source: pathlib.Path) -> Iterator[list[Row]]:
    """Yield the rows of a file, or of standard input for "-", in windows of `WINDOW`.

    A file's windows are the same in every run. A pipe's also end when no line arrives for a while,
    so that a program can read a line's result before it writes the next line.
    """
    if is_stream(source):
        return arriving(rows)
    return iter(lambda: list(itertools.islice(rows, WINDOW)), [])


def arriving(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield the rows that have arrived, at least one and at most `WINDOW` at a time."""
    arrived: queue.Queue[Row | Exception | None] = queue.Queue(WINDOW)

    def read() -> None:
        try:
            for row in rows:
                arrived.put(row)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    item: Row | Exception | None = {}
    while isinstance(item, dict):
        window = []
        with contextlib.suppress(queue.Empty):
            item = arrived.get()
            while isinstance(item, dict):
                window.append(item)
                if len(window) == WINDOW:
                    break
                item = arrived.get(timeout=PATIENCE)
        if window:
            yield window
    if item is not None:
        raise item


def is_stream(source: pathlib.Path) -> bool:
    """Return whether an input, such as a pipe, cannot be read twice."""
    return regular_file(source, sys.stdin) is None


def read_standard_input() -> str:
    """Return standard input as one stripped text, or raise InputError."""
    content = sys.stdin.buffer.read(lines.LONGEST + 1)
    if len(content) > lines.LONGEST:
        raise InputError(
            f"A text must have at most {lines.LONGEST} bytes, but standard input has more. To read "
            "one text per line, use --input -."
        )
    row = lines.row_of_line(content)
    if "error" in row:
        raise InputError(row["error"])
    text: str = row["text"]
    return text.strip()


def line_count(path: pathlib.Path) -> int | None:
    """Return the number of lines in a file, or None for input that cannot be read twice."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        counts = [(part.count(b"\n"), part[-1:]) for part in iter(lambda: file.read(1 << 20), b"")]
    return sum(count for count, _ in counts) + (counts[-1][1] != b"\n" if counts else 0)


def conversion(path: pathlib.Path, ending: str = "") -> str:
    """Return a hint for converting another format to JSON Lines, or "" if unknown."""
    command = CONVERSIONS.get(ending or path.suffix.lower())
    return "" if command is None else f" Convert it: {command.format(path, path.stem)}"


def bounded_lines(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the lines of a file, each truncated to `LONGEST` + 1 bytes."""
    try:
        with standard_input() if str(path) == STANDARD else path.open("rb") as file:
            while line := file.readline(lines.LONGEST + 1):
                yield line
                while len(line) > lines.LONGEST and not line.endswith(b"\n"):
                    line = file.readline(lines.LONGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def standard_input() -> BinaryIO:
    """Return a reader of standard input.

    It is not `sys.stdin`, because a thread that waits for that would block Python's exit.
    """
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:  # not a file
        return sys.stdin.buffer


def regular_file(path: pathlib.Path | None, standard: TextIO) -> os.stat_result | None:
    """Return the status of a path or standard stream if it is a regular file, or None."""
    try:
        status = (
            os.fstat(standard.fileno()) if path is None or str(path) == STANDARD else os.stat(path)
        )
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
