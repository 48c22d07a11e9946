"""Files from outside, read whole: only regular ones, of a bounded size, and JSON of a known shape.

Whatever arrives with an artifact may be a pipe that nobody writes to, a device without an end, JSON
that is nested deeper than a parser's stack, or a number where a list was expected. All of it is an
`OSError` or a `ValueError` here, whose text says what is wrong. What is written for others is whole
or not there.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import stat
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, NoReturn

from bart_export.errors import shown

MEBIBYTE = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Opening a pipe for reading would wait for its writer; of files O_NONBLOCK changes nothing.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Open a file for reading; a link to one counts as one.

    Raises:
        OSError: if it cannot be opened, or is a directory, a pipe or a device.
    """
    descriptor = os.open(path, FLAGS)
    try:
        require_regular(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def require_regular(path: pathlib.Path, status: os.stat_result) -> None:
    """Raise OSError unless a status is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read(path: pathlib.Path, limit: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: if it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def replace(path: pathlib.Path, content: bytes) -> None:
    """Write a file in one rename, so that a failure leaves what was there; a link stays one.

    Raises:
        OSError: if it cannot be written.
    """
    target = pathlib.Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_directory() -> Iterator[pathlib.Path]:
    """Make a directory for the length of a block; a full disk is an error that names it."""
    with tempfile.TemporaryDirectory() as place:
        try:
            yield pathlib.Path(place)
        except OSError as error:
            if error.errno in FULL and error.filename is None:
                error.filename = place
            raise


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Beyond the grammar, names must not repeat within an object, integers must fit 64 bits, numbers
    must be finite and strings must be Unicode text, so that every reader understands the same.

    Raises:
        ValueError: if it is something else, or nested too deeply.
    """
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=object_of,
            parse_constant=refuse_number,
            parse_float=finite,
            parse_int=integer,
        )
        if b"\\ud" in content.lower():  # half of a surrogate pair can be written, but not printed
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def fault_of(error: Exception) -> str:
    """Return what is wrong with a JSON text that Python's parser refused with an error."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has too many digits" if "max_str_digits" in str(error) else str(error)


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose names are all different."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, _ in pairs:
            if found.pop(name, pairs) is pairs:
                raise ValueError(f"an object has the name {name[:60]!r} more than once")
    return found


def integer(digits: str) -> int:
    """Return a number of 64 bits: larger ones take long to read, and fit no float."""
    if len(digits) > 20 or abs(number := int(digits)) >> 64:
        raise ValueError(f"{digits[:20]}… is beyond 64 bits")
    return number


def finite(digits: str) -> float:
    """Return a number that is not beyond a float's range."""
    if not math.isfinite(number := float(digits)):
        refuse_number(digits)
    return number


def refuse_number(word: str) -> NoReturn:
    """Refuse NaN and infinities, which Python's parser takes for JSON."""
    raise ValueError(f"{word[:20]} is no finite number")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One value: what it is in words, and what holds of it."""

    words: str
    holds: Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number that every reader of JSON can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


@dataclasses.dataclass(frozen=True)
class OrNull:
    """A value of some shape, or null."""

    shape: "Shape"


def one_of(words: Collection[str]) -> Kind:
    """Return the kind of a value that is one of some words."""
    return Kind(f"one of {', '.join(words)}", lambda value: value in list(words))


ANYTHING = Kind("anything", lambda value: True)
TEXT = Kind("a text", lambda value: isinstance(value, str))
COUNT = Kind("a whole number from 0 to 2^53", is_count)
POSITIVE = Kind("a whole number from 1 to 2^53", lambda value: is_count(value) and value > 0)
NUMBER = Kind(
    "a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))

# What a value must be like: a `Kind` or `OrNull`; a list of one, for a list of any length; a tuple,
# for a list of exactly those; or a dictionary, for an object with those fields. A field whose name
# ends in "?" may be missing, and `EVERY` stands for all other fields.
Shape = Any
EVERY = "*"


def check(value: Any, shape: Shape, place: str = "") -> None:
    """Hold a value of a JSON text to a shape; `place` is where in the text it stands.

    Raises:
        ValueError: for the first part that is something else, with its place.
    """
    within = f"{place}." if place else ""
    if isinstance(shape, Kind):
        require(shape.holds(value), place, shape.words, value)
    elif isinstance(shape, dict):
        require(isinstance(value, dict), place, "an object", value)
        for field, inner in shape.items():
            name = field.removesuffix("?")
            if name in value and field != EVERY:
                check(value[name], inner, f"{within}{name}")
            elif name == field != EVERY:
                raise ValueError(f"{place or 'it'} lacks {name}")
        if EVERY in shape:
            named = {field.removesuffix("?") for field in shape}
            for name, inner in value.items():
                if name not in named:
                    check(inner, shape[EVERY], f"{within}{shown(name)}")
    elif isinstance(shape, OrNull):
        if value is not None:
            check(value, shape.shape, place)
    else:
        require(isinstance(value, list), place, "a list", value)
        if isinstance(shape, tuple):
            require(len(value) == len(shape), place, f"a list of {len(shape)}", value)
        shapes = shape if isinstance(shape, tuple) else shape * len(value)
        for number, (one, inner) in enumerate(zip(value, shapes, strict=True)):
            check(one, inner, f"{place}[{number}]")


def require(holds: bool, place: str, words: str, value: Any) -> None:
    """Raise ValueError unless something holds."""
    if not holds:
        raise ValueError(f"{place or 'it'} must be {words}, received {shown(value)}")
