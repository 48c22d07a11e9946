"""Data: files of texts, perhaps with references, that quality is measured or calibrated on.

A JSON Lines file goes in, one object a line with `text` and, where there is one, `reference`, the
text that a person would have wanted; other keys are ignored. Examples come out in the file's order.
What is done with them is not known here.
"""

import dataclasses
import pathlib

from bart_export import documents
from bart_export.artifact import artifact
from bart_export.errors import InputError, shown

# All of a file is held in memory, and every text is worth seconds of computing.
LARGEST, MOST_LINES = 64 * documents.MEBIBYTE, 100_000


@dataclasses.dataclass(frozen=True)
class Example:
    """A source text, and the text wanted for it, None where nobody said."""

    text: str
    reference: str | None = None


def read(path: pathlib.Path) -> list[Example]:
    """Read the examples of a file; empty lines count for nothing.

    Raises:
        InputError: for a file that cannot be read, is too large or has no text, or a line that is
            no example.
    """
    try:
        content = documents.read(path, LARGEST)
        lines = content.decode("utf-8-sig").split("\n", MOST_LINES)
    except OSError as error:
        raise InputError(f"Cannot read the data {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The data {path} must be UTF-8, but {error}.") from error
    if len(lines) > MOST_LINES and lines[-1]:
        raise InputError(
            f"The data {path} must have at most {MOST_LINES:,} lines, and has more. Take a part of "
            "them: every text is decoded several times."
        )
    examples = [
        example(f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not examples:
        raise InputError(f"The data {path} must have a text, but has no line.")
    return examples


def example(place: str, line: str) -> Example:
    """Return the example of one line; `place` says in an error where it stands."""
    wanted = 'must be an object as in {"text": "...", "reference": "..."}'
    try:
        row = documents.parse_json(line.encode())
    except ValueError as error:
        raise InputError(f"{place}, {wanted}, but is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}, {wanted}, received {shown(row)}.")
    text, reference = row.get("text"), row.get("reference")
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{place}, {wanted}, with a text that is not empty; received {shown(text)}."
        )
    if not isinstance(reference, str | None):
        raise InputError(f"{place}, {wanted}; received the reference {shown(reference)}.")
    return Example(text, reference)


def digest(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file's bytes, in lower case hexadecimal."""
    return artifact.sha256(path)
