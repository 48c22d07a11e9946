"""The files that `generate --output` writes: a row with its result or an "error" per line.

An interrupted output has the first of these lines, perhaps with a part of the next one.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from bart_export.cli.batch_files import OBJECTS, STANDARD, regular_file
from bart_export.errors import InputError
from bart_export.runtime.results import Row


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
                lines = list(itertools.islice(file, len(window)))
                for number, (row, line) in enumerate(zip(window, lines, strict=False), count + 1):
                    if not any(begin[: len(line)] == line[: len(begin)] for begin in prefixes(row)):
                        raise InputError(
                            f"Line {number} of {path} is not a result for line {number} of "
                            f"{source}. Use the same --input, or start over with --overwrite."
                        )
                complete = tuple(line for line in lines if line.endswith(b"\n"))
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

    The format is JSON Lines in UTF-8; each row is flushed. Rows in `kept.unfinished` are
    compared, not written.
    """
    unfinished = collections.deque(kept.unfinished)
    number = kept.rows + len(unfinished)

    def write(row: Row) -> None:
        line = as_line(row)
        if not unfinished:
            with writing(path):
                opened.write(line)
                opened.flush()
        elif line != unfinished.popleft():
            raise InputError(
                f"Line {number - len(unfinished)} of {path} is from another model or other "
                "settings. Use the same ones, or start over with --overwrite."
            )

    with contextlib.ExitStack() as stack:
        with writing(path):
            opened: BinaryIO = sys.stdout.buffer
            if str(path) != STANDARD:
                opened = stack.enter_context(path.open("r+b" if kept.size else "wb"))
            if kept.size:
                opened.truncate(kept.size)
                opened.seek(kept.size)
        yield write


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
