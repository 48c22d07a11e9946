"""Bounded reading of files and JSON from outside, and dataclasses for JSON objects.

What arrives may be a pipe, an endless device, JSON nested deeper than a parser's stack, or a number
where a list was expected. All of it is an `OSError` or a `ValueError` that says what is wrong.
"""

import collections.abc
import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import pathlib
import stat
import tempfile
import types
import typing
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

from bart_export.errors import shown

if TYPE_CHECKING:
    import jinja2

Json = Any  # a value of a JSON text
Hint = Any  # a type as an annotation has it
MEBIBYTE = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Opening a pipe for reading would wait for its writer; of files O_NONBLOCK changes nothing.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Open a file for reading, or raise OSError for a directory, a pipe or a device."""
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


def read_bounded(path: pathlib.Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes, or raise OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def replace(path: pathlib.Path, content: bytes) -> None:
    """Write a file in one rename, so that a failure leaves what was there; a link stays one."""
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


def templates(module: str) -> "jinja2.Environment":
    """Return the templates beside a module, given by its `__file__`; jinja2 is of the export."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(module).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def parse_json(content: bytes) -> Json:
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


def object_of(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
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
    """What a value of some type must be beside that: `Annotated[int, POSITIVE]` in a declaration.

    `words` say it in an error.
    """

    words: str
    holds: Callable[[Json], bool]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of several classes, chosen by the value: `Annotated[Shape, Variant(shape_of)]`."""

    choose: Callable[[Mapping[str, Json]], type]


def is_count(value: Json) -> bool:
    """Return whether a value is a whole number that every reader of JSON can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def is_number(value: Json) -> bool:
    """Return whether a value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(words: Collection[str]) -> Kind:
    """Return the kind of a value that is one of some words."""
    return Kind(f"one of {', '.join(words)}", lambda value: value in list(words))


POSITIVE = Kind("a whole number from 1 to 2^53", lambda value: is_count(value) and value > 0)
# Types that JSON has, and what a value of each must be.
KINDS: dict[Hint, Kind] = {
    object: Kind("anything", lambda value: True),
    str: Kind("a text", lambda value: isinstance(value, str)),
    int: Kind("a whole number from 0 to 2^53", is_count),
    float: Kind("a number", is_number),
    bool: Kind("true or false", lambda value: isinstance(value, bool)),
}


def require(holds: bool, place: str, words: str, value: object) -> None:
    """Raise ValueError unless something holds."""
    if not holds:
        raise ValueError(f"{place or 'it'} must be {words}, received {shown(value)}")


Declared = TypeVar("Declared", bound="Record")
ABSENT = "absent"


def absent() -> Hint:
    """Return the default of a field that is left out of the JSON where it is None."""
    return dataclasses.field(default=None, metadata={ABSENT: True})


@dataclasses.dataclass(frozen=True)
class Record:
    """A JSON object whose fields are declared as those of a dataclass.

    A field with a default may be missing. `found` is the object that a record was read from: what
    nobody changed is written as it was found there, fields that are not declared included.
    """

    found: Mapping[str, Json] = dataclasses.field(
        default_factory=dict, kw_only=True, repr=False, compare=False
    )

    @classmethod
    def from_dict(cls: type[Declared], value: object) -> Declared:
        """Return the record of an object, or raise ValueError for the first field that is wrong."""
        record: Declared = read_as(cls, value)
        return record

    def to_dict(self) -> dict[str, Json]:
        """Return the object, as JSON has it."""
        written, kind = dict(self.found), typing.cast(Hint, type(self))
        for name, (hint, default, absent) in declared(kind).items():
            value = getattr(self, name)
            if name in self.found:
                changed = read_as(hint, self.found[name]) != value
            else:
                changed = value != default if self.found else value is not None or not absent
            if changed:
                written[name] = plain(value)
        return written


def plain(value: Json) -> Json:
    """Return a value as JSON has it: records as objects, tuples as lists."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {field.name: plain(vars(value)[field.name]) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else value


@functools.cache
def declared(record: Hint) -> dict[str, tuple[Hint, Json, bool]]:
    """Return the fields of a dataclass that JSON has: type, default, and whether None is absent."""
    hints, fields = typing.get_type_hints(record, include_extras=True), {}
    for field in dataclasses.fields(record):
        hint, absent = hints[field.name], ABSENT in field.metadata
        # What may be absent is not null either.
        hint = typing.get_args(hint)[0] if absent else hint
        fields[field.name] = hint, field.default, absent
    fields.pop("found", None)
    return fields


def read_as(hint: Any, value: Json, place: str = "") -> Json:
    """Return a value of a JSON text as a type, or raise ValueError for the first wrong part.

    Types are `str`, `int` (a count), `float`, `bool`, `object` for anything; tuples for lists,
    `Mapping[str, …]` and dataclasses for objects; `Annotated` with a `Kind` or a `Variant`; and
    "or None" of each. A class with a `from_dict` of its own checks its fields itself.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    within = f"{place}." if place else ""
    if origin in (typing.Union, types.UnionType):
        return None if value is None else read_as(arguments[0], value, place)
    kind = arguments[1] if origin is typing.Annotated else KINDS.get(hint)
    if isinstance(kind, Kind):
        require(kind.holds(value), place, kind.words, value)
        return value
    if origin is tuple:
        require(isinstance(value, list), place, "a list", value)
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        require(len(value) == len(hints), place, f"a list of {len(hints)}", value)
        return tuple(
            read_as(inner, part, f"{place}[{number}]")
            for number, (inner, part) in enumerate(zip(hints, value, strict=True))
        )
    require(isinstance(value, dict), place, "an object", value)
    if isinstance(kind, Variant):
        return read_as(kind.choose(value), value, place)
    if origin is collections.abc.Mapping:
        inner = arguments[1]
        return {
            name: read_as(inner, part, f"{within}{shown(name)}") for name, part in value.items()
        }
    if hasattr(hint, "from_dict") and not issubclass(hint, Record):
        return hint.from_dict(value)
    fields = {"found": value} if issubclass(hint, Record) else {}
    for name, (inner, default, _) in declared(hint).items():
        if name in value:
            fields[name] = read_as(inner, value[name], f"{within}{name}")
        elif default is dataclasses.MISSING:
            raise ValueError(f"{place or 'it'} lacks {name}")
    return hint(**fields)
