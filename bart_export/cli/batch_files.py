"""The files of `generate --input` and `--output`: JSON Lines, with a row for each text.

An input row is a dictionary with a "text". An unusable line keeps its place, as a row with an
"error". An output row is an input row with its result or an "error". An interrupted output has the
first of these lines, perhaps with a part of the next one.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import queue
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, TextIO

from bart_export.artifact import locks
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
        except Exception as error:  # raised again in the thread that takes the rows
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


@dataclasses.dataclass(frozen=True)
class Kept:
    """The complete rows of an interrupted output.

    Attributes:
        rows, failed: the number of rows in complete windows, and how many have an error.
        unfinished: the complete lines of an incomplete window. Their rows are computed again,
            because rounding depends on which texts are decoded together.
        size: the size of all complete lines in bytes.
    """

    rows: int = 0
    failed: int = 0
    unfinished: tuple[bytes, ...] = ()
    size: int = 0


NOTHING = Kept()


def resumed(
    path: pathlib.Path, rows: Iterator[list[Row]], source: pathlib.Path
) -> tuple[Kept, Iterator[list[Row]]]:
    """Return what is kept of an output, and the remaining windows of its input.

    Raises:
        InputError: if the output cannot be read or is not the beginning of the input's results.
    """
    if regular_file(path, sys.stdout) is None:
        return NOTHING, rows
    count = failed = size = 0
    try:
        with path.open("rb") as file:
            for window in rows:
                found = list(itertools.islice(file, len(window)))
                for number, (row, line) in enumerate(zip(window, found, strict=False), count + 1):
                    if not any(begin[: len(line)] == line[: len(begin)] for begin in prefixes(row)):
                        raise InputError(
                            f"Line {number} of {path} is not a result for line {number} of "
                            f"{source}. Use the same --input, or start over with --overwrite."
                        )
                complete = tuple(line for line in found if line.endswith(b"\n"))
                size += sum(map(len, complete))
                if len(complete) < len(window):
                    return Kept(count, failed, complete, size), itertools.chain([window], rows)
                count += len(window)
                failed += sum(
                    line.startswith(prefixes(row)[-1])
                    for row, line in zip(window, complete, strict=True)
                )
            if file.readline():
                raise InputError(
                    f"{path} has more lines than {source}. Use the same --input, or start over "
                    "with --overwrite."
                )
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    return Kept(count, failed, (), size), rows


def prefixes(row: Row) -> tuple[bytes, ...]:
    """Return the possible beginnings of a row's line in the output; the last is an error's."""
    if "error" in row:
        return (as_line(row),)
    return tuple(
        as_line({**row, name: ""}).removesuffix(b'""}\n') for name in ("generated_text", "error")
    )


@contextlib.contextmanager
def results(path: pathlib.Path, kept: Kept = NOTHING) -> Iterator[Callable[[Row], None]]:
    """Open a file, or standard output for "-", and yield a function that writes a row to it.

    The format is JSON Lines in UTF-8; rows are not buffered, and no other process may write the
    file. Rows in `kept.unfinished` are compared, not written.
    """
    unfinished = collections.deque(kept.unfinished)
    number = kept.rows + len(unfinished)

    def write(row: Row) -> None:
        line = as_line(row)
        if not unfinished:
            with writing(path):
                write_all(opened, line)
        elif line != unfinished.popleft():
            raise InputError(
                f"Line {number - len(unfinished)} of {path} is from another model or other "
                "settings. Use the same ones, or start over with --overwrite."
            )

    with contextlib.ExitStack() as stack:
        with writing(path):
            opened: BinaryIO | io.FileIO = sys.stdout.buffer
            if str(path) != STANDARD:
                # Without a buffer, which closing the file would write again after an error.
                opened = stack.enter_context(path.open("ab", buffering=0))
                if regular_file(path, sys.stdout) is not None:
                    lock(opened, path)
                    opened.truncate(kept.size)
        yield write


def lock(file: io.FileIO, path: pathlib.Path) -> None:
    """Lock an output, or raise InputError if another process is writing it."""
    with contextlib.suppress(OSError):  # of a file system without locks
        if not locks.lock(file.fileno()):
            raise InputError(
                f"Another process is writing {path}. Wait for it to finish, or name another file "
                "with --output."
            )


def write_all(file: BinaryIO | io.FileIO, content: bytes) -> None:
    """Write to a file, or to a buffered stream, which is flushed."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]  # a full disk may take a part
    file.flush()


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Raise InputError if an --output cannot be written; BrokenPipeError passes through."""
    try:
        yield
    except BrokenPipeError:  # the reader stopped
        raise
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror}. Name another file with --output."
        ) from error


def as_line(row: Row) -> bytes:
    """Return a row as a JSON line."""
    try:
        line = json.dumps(row, ensure_ascii=False)
    except RecursionError:  # a row nested as deeply as the parser allows
        line = json.dumps({"text": row["text"], "error": "The object is nested too deeply."})
    # Lone surrogates cannot be encoded; "backslashreplace" turns them into JSON escapes.
    return line.encode("utf-8", "backslashreplace") + b"\n"


def check_output(path: pathlib.Path | None, source: pathlib.Path | None, overwrite: bool) -> None:
    """Raise InputError if an output has an unsupported suffix or would overwrite a file.

    `path` is "-" or None for standard output; `source` is "-" for standard input, None for none.
    """
    if path is not None and path.suffix.lower() not in ("", *OBJECTS):
        raise InputError(
            f"Results are JSON Lines: the output must end in {' or '.join(OBJECTS)}, received "
            f"{path}."
        )
    check_loss(path, source, overwrite, " If it is incomplete, continue with --resume.")


def check_loss(
    path: pathlib.Path | None, source: pathlib.Path | None, overwrite: bool, remedy: str = ""
) -> None:
    """Raise InputError if the output is the input or an existing file; see `check_output`.

    `remedy` ends the message about an existing file.
    """
    written = regular_file(path, sys.stdout)
    read = None if source is None else regular_file(source, sys.stdin)
    standard = path is None or str(path) == STANDARD
    if written and read and os.path.samestat(written, read):
        name = "Standard output" if standard else path
        raise InputError(f"{name} is also the input. Name another file with --output.")
    if written and written.st_size and not standard and not overwrite:
        raise InputError(
            f"{path} exists and is not empty. Name another file with --output, or replace it with "
            f"--overwrite.{remedy}"
        )
