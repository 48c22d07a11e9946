"""Files of texts in, files of results out.

A path goes in and rows come out, one a text: a line of a `.txt`, an object of a `.jsonl`. Results
are written as `.jsonl`, each row with what was generated from it, into a file that takes its place
only when it is whole. Nothing here generates.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from bart_export.errors import InputError
from bart_export.runtime.generator import GeneratedSequence

Row = dict[str, Any]


def read(path: pathlib.Path) -> list[Row]:
    """Return the rows of a file: each has a string "text".

    Raises:
        InputError: for a file that cannot be read, or a line that holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [{"text": line} for _, line in numbered]
    rows = []
    for number, line in numbered:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(
                f'{path} line {number} must be a JSON object with a string "text", '
                f"received {line[:60]!r}."
            )
        rows.append(row)
    return rows


def line(row: Row, sequence: GeneratedSequence) -> str:
    """Return a row with what was generated from it, as a line of `.jsonl`."""
    result = {
        **row,
        "generated_text": sequence.text,
        "score": round(sequence.score, 6),
        "token_ids": list(sequence.token_ids),
    }
    return json.dumps(result, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def results(path: pathlib.Path | None) -> Iterator[IO[str] | None]:
    """Open a file for results, or None for none; a block that fails leaves what was there.

    Raises:
        InputError: if the file cannot be written.
    """
    if path is None:
        yield None
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror}. Name another file with --output."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
