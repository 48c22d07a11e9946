"""JSON as TensorFlow Serving's parser takes it: a body of bytes in, a Python value out.

RapidJSON stops after the first value, accepts NaN and infinities, keeps the first of equal keys,
and does not look whether strings are UTF-8. Strings here carry bytes that are not as surrogate
escapes; `as_bytes` gives the bytes back. Nothing here knows what a document is about.
"""

import base64
import json
import math
import re
from typing import Any

from bart_export.server.status import Code, StatusError

# Numbers that RapidJSON knows beside those of Python's scanner, and strings, which are passed over.
EXTRA_NUMBER = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|(-?)(Inf|Infinity|NaN)(?![A-Za-z])', re.DOTALL)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# One escape; `alone` is half of a surrogate pair without the other half.
ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<alone>u[dD][89a-fA-F])"
    r"|.)",
    re.DOTALL,
)
TOO_BIG = "Number too big to be stored in double."
EMPTY, ALONE = "The document is empty.", "The surrogate pair in string is invalid."
# What Python's scanner says → what RapidJSON says.
PARSE_ERRORS = {
    EMPTY: EMPTY,
    ALONE: ALONE,
    "Expecting property name": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Expecting ','": "Missing a comma or a closing bracket after a value.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX": "Incorrect hex digit after \\u escape in string.",
}
TYPE_NAMES = {str: "String", int: "Number", float: "Number", list: "Array", dict: "Object"}
LITERAL_NAMES = {None: "Null", False: "False", True: "True"}
# As much of a value as an error message shows, in bytes.
SHOWN_BYTES = 256


def parse_error(reason: str) -> StatusError:
    """Return the error for a body that is not JSON."""
    return StatusError(Code.INVALID_ARGUMENT, f"JSON Parse error: {reason}")


def first_of_equal_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of its members, of which the first with a name counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        members.update(reversed(pairs))
    return members


def finite(digits: str) -> float:
    """Return the number that digits with a fraction or an exponent stand for.

    Raises:
        OverflowError: for a number beyond the range of a double.
    """
    number = float(digits)
    if math.isinf(number):
        raise OverflowError(digits)
    return number


DECODER = json.JSONDecoder(object_pairs_hook=first_of_equal_keys, parse_float=finite)
PRINTER = json.JSONEncoder(ensure_ascii=False, indent=4)


def parse(body: bytes) -> Any:
    """Return the value that a body begins with.

    Raises:
        StatusError: INVALID_ARGUMENT if it begins with none, or with one that is nested too deeply
            or has a number that no double holds.
    """
    if not body:
        raise parse_error("The document is empty")
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    try:
        try:
            return scanned(text)
        except json.JSONDecodeError as error:
            if not text.startswith(("Inf", "-Inf", "-NaN"), error.pos):
                raise
            return scanned(EXTRA_NUMBER.sub(known_number, text))
    except json.JSONDecodeError as error:
        said = (ours for theirs, ours in PARSE_ERRORS.items() if error.msg.startswith(theirs))
        offset = len(as_bytes(text[: error.pos]))
        raise parse_error(f"{next(said, 'Invalid value.')} at offset: {offset}") from None
    except RecursionError:
        raise parse_error("The document is nested too deeply.") from None
    except (OverflowError, ValueError):  # ValueError: Python's limit on the digits of an integer
        raise parse_error(TOO_BIG) from None


def scanned(text: str) -> Any:
    """Return the value that a text begins with; errors are those of Python's scanner."""
    start = len(text) - len(text.lstrip(" \t\n\r"))
    if start == len(text):
        raise json.JSONDecodeError(EMPTY, text, start)
    value, end = DECODER.raw_decode(text, start)
    if SURROGATE.search(text, start, end):
        for escape in ESCAPE.finditer(text, start, end):
            if escape["alone"]:
                raise json.JSONDecodeError(ALONE, text, escape.start())
    return value


def known_number(match: re.Match[str]) -> str:
    """Return a number as Python's scanner knows it, anything else as it is."""
    sign, number = match.groups()
    if number is None:
        return match[0]
    return "NaN" if number == "NaN" else f"{sign}Infinity"


def double(number: float) -> float:
    """Return a number of a document, which may be an integer of any size, as a double.

    Raises:
        StatusError: INVALID_ARGUMENT for an integer that no double holds.
    """
    try:
        return float(number)
    except OverflowError:
        raise parse_error(TOO_BIG) from None


def as_bytes(text: str) -> bytes:
    """Return the bytes that a string of a document stood for."""
    return text.encode("utf-8", "surrogateescape")


def type_name(value: Any) -> str:
    """Return what RapidJSON calls the type of a value."""
    if value is None or isinstance(value, bool):
        return LITERAL_NAMES[value]
    return TYPE_NAMES[type(value)]


def shown(value: Any) -> str:
    """Return the beginning of a value as text, for an error message."""
    length = 0
    parts = []
    for part in PRINTER.iterencode(value):
        parts.append(as_bytes(part))
        length += len(parts[-1])
        if length >= SHOWN_BYTES:
            break
    return b"".join(parts)[:SHOWN_BYTES].decode("utf-8", "replace")


def is_base64(value: Any) -> bool:
    """Say whether a value is an object that stands for bytes: `{"b64": "..."}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def base64_bytes(value: Any) -> bytes:
    """Return what `{"b64": "..."}` stands for: the standard alphabet, padded or not.

    Raises:
        StatusError: INVALID_ARGUMENT for any other object or text.
    """
    if not is_base64(value):
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"JSON Value: {shown(value)} not formatted correctly for base64 data",
        )
    text = "".join(value["b64"].split())
    digits = text.rstrip("=")
    padding = "=" * (-len(digits) % 4)
    try:
        if text not in (digits, digits + padding):
            raise ValueError(text)
        return base64.b64decode(digits + padding, validate=True)
    except ValueError:
        raise StatusError(Code.INVALID_ARGUMENT, "Unable to base64 decode") from None
