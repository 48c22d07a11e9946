"""A line of a file as a row, a dictionary with a "text"; an unusable line as one with an "error".

A byte order mark at the beginning of a line is removed, by json.loads too: files that have one may
be concatenated.
"""

import json

from bart_export.documents import finite, object_of, refuse_number
from bart_export.errors import shown
from bart_export.runtime.results import RESULT_FIELDS, Row

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST = 1 << 20  # bytes per line, far more than any model reads


def parsed(line: bytes) -> object:
    """Return a line's JSON value, or None if it is not JSON."""
    try:
        return json.loads(
            line, object_pairs_hook=object_of, parse_constant=refuse_number, parse_float=finite
        )
    except (ValueError, RecursionError):
        return None


def row_of_object(line: bytes) -> Row:
    """Return the row for a JSON object, without the fields that a result sets."""
    row = parsed(line)
    if len(line) > LONGEST or not isinstance(row, dict):
        plain = row_of_line(line)
        plain.setdefault(
            "error",
            'The line must be a JSON object with a string "text", unique names, finite numbers.',
        )
        return plain
    row = {name: value for name, value in row.items() if name not in RESULT_FIELDS}
    if isinstance(row.get("text"), str):
        return row
    received = f"received {shown(row['text'])}" if "text" in row else f"has {shown(list(row))}"
    return {**row, "error": f'The object must have a string "text", {received}.'}


def row_of_line(line: bytes) -> Row:
    """Return the row for a line of plain text."""
    line = line.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n").removesuffix(b"\r")
    if len(line) > LONGEST:
        shown = line[:1000].decode("utf-8", "replace")
        return {"text": shown, "error": f"The line, truncated here, exceeds {LONGEST} bytes."}
    try:
        return {"text": line.decode("utf-8")}
    except UnicodeDecodeError as error:
        shown = line.decode("utf-8", "replace")
        wrong = f"byte 0x{line[error.start]:02x} at position {error.start}"
        return {"text": shown, "error": f"A text must be UTF-8, received {wrong}."}
