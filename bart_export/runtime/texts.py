"""Batch files: rows, each a dictionary with a "text", are read and written as lines.

A line that cannot be used keeps its place, with an "error" that says why.
"""

import contextlib
import itertools
import json
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from bart_export.documents import finite, object_of, refuse_number
from bart_export.errors import InputError, shown
from bart_export.runtime.results import GeneratedSequence, Result

Row = dict[str, Any]

STANDARD = "-"  # standard input or output, in the place of a path
OBJECTS = (".jsonl", ".ndjson")
LINES = ".txt"
ACCEPTED = f'{LINES}, a text a line, or {" or ".join(OBJECTS)}, an object with a "text" a line'
# How files of other kinds become one of objects.
CONVERSIONS = {
    ".json": "python3 -c 'import json, sys; "
    "[print(json.dumps(row)) for row in json.load(sys.stdin)]' < {0} > {1}.jsonl",
    ".csv": "python3 -c 'import csv, json, sys; "
    "[print(json.dumps(row)) for row in csv.DictReader(sys.stdin)]' < {0} > {1}.jsonl",
}
LONGEST = 1 << 24  # bytes of a line; no model reads a text of a hundredth of that
# What a result row adds.
MADE = ("generated_text", "score", "token_ids", "sequences", "truncated", "error")


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yield a row for each line of a file, or of standard input for "-".

    Names that end in `.jsonl` or `.ndjson`, in capitals or not, have JSON objects, those in `.txt`
    plain text. Without an ending, the first line tells.

    Raises:
        InputError: now for a file that cannot be read or is of another kind; later for one that can
            be read no further.
    """
    ending = path.suffix.lower()
    if ending not in ("", LINES, *OBJECTS):
        raise InputError(f"{path} must be {ACCEPTED}; {ending} is not read.{conversion(path)}")
    lines = whole_lines(path)
    first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
    if b"\0" in first or first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            f"{path} must be text in UTF-8, but is binary or UTF-16. Save it as UTF-8."
        )
    begins = first.lstrip()
    objects = isinstance(parsed(begins), dict) if ending in ("", LINES) else True
    if objects and ending == LINES:
        raise InputError(f"{path} has a JSON object in its first line. Name it {OBJECTS[0]}.")
    if ending != LINES and (begins.startswith(b"[{") or begins.rstrip() == b"["):
        raise InputError(
            f"{path} must have an object a line, but is a JSON array.{conversion(path, '.json')}"
        )
    make = row_of_object if objects else row_of_line
    return (make(line) for line in itertools.chain([first] if first else [], lines))


def read_standard_input() -> str:
    """Return standard input as one text, without white space around it, or raise InputError."""
    content = sys.stdin.buffer.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise InputError(
            f"A text must have at most {LONGEST} bytes, standard input has more. Texts that stand "
            "one a line are read with --input -."
        )
    row = row_of_line(content)
    if "error" in row:
        raise InputError(row["error"])
    text: str = row["text"]
    return text.removeprefix("\ufeff").strip()


def line_count(path: pathlib.Path) -> int | None:
    """Return how many lines a file has, None for what cannot be read twice."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        counts = [(part.count(b"\n"), part[-1:]) for part in iter(lambda: file.read(1 << 20), b"")]
    return sum(count for count, _ in counts) + (counts[-1][1] != b"\n" if counts else 0)


def conversion(path: pathlib.Path, ending: str = "") -> str:
    """Return how to make a file of objects of a file of another kind, "" where we do not know."""
    command = CONVERSIONS.get(ending or path.suffix.lower())
    return "" if command is None else f" Convert it: {command.format(path, path.stem)}"


def whole_lines(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the lines of a file; of one beyond `LONGEST` one byte more, the rest is passed over."""
    standard = contextlib.nullcontext(sys.stdin.buffer)
    try:
        with standard if str(path) == STANDARD else path.open("rb") as file:
            while line := file.readline(LONGEST + 1):
                yield line
                while len(line) > LONGEST and not line.endswith(b"\n"):
                    line = file.readline(LONGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def parsed(line: bytes) -> object:
    """Return what a line is in JSON, None for what is none."""
    try:
        return json.loads(
            line, object_pairs_hook=object_of, parse_constant=refuse_number, parse_float=finite
        )
    except (ValueError, RecursionError):
        return None


def row_of_object(line: bytes) -> Row:
    """Return the row of a line with a JSON object; keys that a result has are not taken over."""
    row = parsed(line)
    if len(line) > LONGEST or not isinstance(row, dict):
        plain = row_of_line(line)
        plain.setdefault(
            "error",
            'The line must be a JSON object with a string "text", each name once, numbers finite.',
        )
        return plain
    row = {name: value for name, value in row.items() if name not in MADE}
    if isinstance(row.get("text"), str):
        return row
    received = f"received {shown(row['text'])}" if "text" in row else f"has {shown(list(row))}"
    return {**row, "error": f'The object must have a string "text", {received}.'}


def row_of_line(line: bytes) -> Row:
    """Return the row of a line of text."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if len(line) > LONGEST:
        shown = line[:1000].decode("utf-8", "replace")
        return {"text": shown, "error": f"The line, here its start, exceeds {LONGEST} bytes."}
    try:
        return {"text": line.decode("utf-8")}
    except UnicodeDecodeError as error:
        shown = line.decode("utf-8", "replace")
        wrong = f"byte 0x{line[error.start]:02x} at position {error.start}"
        return {"text": shown, "error": f"A text must be UTF-8, received {wrong}."}


def result_row(row: Row, result: Result) -> Row:
    """Return a row with what was generated; `sequences` where there are several texts."""
    made = {**row, **sequence_fields(result.sequences[0])}
    if len(result.sequences) > 1:
        made["sequences"] = list(map(sequence_fields, result.sequences))
    if result.truncated:
        made["truncated"] = True
    return made


def sequence_fields(sequence: GeneratedSequence) -> Row:
    """Return a generated text as it stands in a row."""
    return {
        "generated_text": sequence.text,
        "score": round(sequence.score, 6),
        "token_ids": list(sequence.token_ids),
    }


@contextlib.contextmanager
def results(path: pathlib.Path) -> Iterator[Callable[[Row], None]]:
    """Open a file for results, or standard output for "-", and yield what writes a row to it.

    A row is in the file, whole, when the function returns: JSON Lines in UTF-8.
    """
    file = contextlib.nullcontext(sys.stdout.buffer)

    def write(row: Row) -> None:
        opened.write(as_line(row))
        opened.flush()

    try:
        with file if str(path) == STANDARD else path.open("wb") as opened:
            yield write
    except BrokenPipeError:  # whoever reads has seen enough
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: pathlib.Path, error: OSError) -> InputError:
    """Return the error of a file of --output."""
    return InputError(f"Cannot write {path}: {error.strerror}. Name another file with --output.")


def as_line(row: Row) -> bytes:
    """Return a row as a line of JSON."""
    try:
        line = json.dumps(row, ensure_ascii=False)
    except RecursionError:  # a row that could just be read
        line = json.dumps({"text": row["text"], "error": "The object is nested too deeply."})
    # A lone surrogate has no UTF-8; escaped with a backslash it is what JSON writes for it.
    return line.encode("utf-8", "backslashreplace") + b"\n"


def check_output(path: pathlib.Path | None, source: pathlib.Path | None, overwrite: bool) -> None:
    """Refuse a name for results that says they are something else, or a file that would be lost.

    `path` is "-" or None for standard output, `source` "-" for standard input and None for none.

    Raises:
        InputError: saying what to do instead.
    """
    if path is not None and path.suffix.lower() not in ("", *OBJECTS):
        raise InputError(
            f"Results are objects, one a line: name them {' or '.join(OBJECTS)}, received {path}."
        )
    check_loss(path, source, overwrite)


def check_loss(path: pathlib.Path | None, source: pathlib.Path | None, overwrite: bool) -> None:
    """Refuse to write to the file that is read, or over another; see `check_output`."""
    written = regular_file(path, sys.stdout)
    read = None if source is None else regular_file(source, sys.stdin)
    standard = path is None or str(path) == STANDARD
    if written and read and os.path.samestat(written, read):
        name = "Standard output" if standard else path
        raise InputError(f"{name} is the input as well. Name another file with --output.")
    if written and written.st_size and not standard and not overwrite:
        raise InputError(
            f"{path} exists and is not empty. Name another file with --output, or replace it with "
            "--overwrite."
        )


def regular_file(path: pathlib.Path | None, standard: TextIO) -> os.stat_result | None:
    """Return the status of the regular file that a path, or else a standard stream, leads to."""
    try:
        status = (
            os.fstat(standard.fileno()) if path is None or str(path) == STANDARD else os.stat(path)
        )
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
