"""Bounded reading of untrusted files and JSON, and dataclasses for JSON objects.

Pipes, endless devices, deeply nested JSON and values of the wrong type raise an `OSError` or a
`ValueError` with the reason.
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

Json = Any  # a parsed JSON value
Hint = Any  # a type annotation
MEBIBYTE = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# O_NONBLOCK: do not wait for a pipe's writer. It has no effect on files.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: pathlib.Path) -> BinaryIO:
    """Open a file for reading, or raise OSError for a directory, a pipe or a device."""
    try:
        descriptor = os.open(path, FLAGS)
    except ValueError:  # a null character or a lone surrogate
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    try:
        require_regular(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def require_regular(path: pathlib.Path, status: os.stat_result) -> None:
    """Raise OSError unless a path with this status is a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_bounded(path: pathlib.Path, limit: int) -> bytes:
    """Return the content of a regular file, or raise OSError if it exceeds `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def replace(path: pathlib.Path, content: bytes) -> None:
    """Replace a file's content atomically; a symbolic link is followed."""
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


def synchronize(path: pathlib.Path) -> None:
    """Flush a file or directory to disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch_directory() -> Iterator[pathlib.Path]:
    """Yield a temporary directory; errors about a full disk name the directory."""
    with tempfile.TemporaryDirectory() as place:
        try:
            yield pathlib.Path(place)
        except OSError as error:
            if error.errno in FULL and error.filename is None:
                error.filename = place
            raise


def templates(module: str) -> "jinja2.Environment":
    """Return an environment with the templates next to a module, given as its `__file__`.

    jinja2 is not part of the base installation.
    """
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(module).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def parse_json(content: bytes) -> Json:
    """Parse UTF-8 JSON that every parser reads the same way.

    Names must be unique within an object, integers must fit 64 bits, numbers must be finite, and
    strings must be valid Unicode.

    Raises:
        ValueError: if the JSON is invalid or nested too deeply.
    """
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=object_of,
            parse_constant=refuse_number,
            parse_float=finite,
            parse_int=integer,
        )
        if b"\\ud" in content.lower():  # an escaped lone surrogate is not valid Unicode
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def fault_of(error: Exception) -> str:
    """Return the reason for an error from Python's JSON parser."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has too many digits" if "max_str_digits" in str(error) else str(error)


def object_of(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Return an object, or raise ValueError if a name is repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, _ in pairs:
            if found.pop(name, pairs) is pairs:
                raise ValueError(f"an object has the name {name[:60]!r} more than once")
    return found


def integer(digits: str) -> int:
    """Return an integer of at most 64 bits; longer ones parse slowly and do not fit a float."""
    if len(digits) > 20 or abs(number := int(digits)) >> 64:
        raise ValueError(f"{digits[:20]}… is beyond 64 bits")
    return number


def finite(digits: str) -> float:
    """Return a number that is within a float's range."""
    if not math.isfinite(number := float(digits)):
        refuse_number(digits)
    return number


def refuse_number(word: str) -> NoReturn:
    """Refuse NaN and infinities, which Python's parser accepts."""
    raise ValueError(f"{word[:20]} is not a finite number")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A condition on a value beyond its type, as in `Annotated[int, POSITIVE]`.

    `words` names the type and condition in errors; `holds` gets only values of the type.
    """

    words: str
    holds: Callable[[Json], bool]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A class that depends on the value, as in `Annotated[Shape, Variant(shape_of)]`."""

    choose: Callable[[Mapping[str, Json]], type]


def is_count(value: Json) -> bool:
    """Return whether a value is a non-negative integer that every JSON parser represents."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def is_number(value: Json) -> bool:
    """Return whether a value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(words: Collection[str]) -> Kind:
    """Return the condition that a value is one of the given strings."""
    return Kind(f"one of {', '.join(words)}", words.__contains__)


POSITIVE = Kind("a whole number from 1 to 2^53", lambda value: value > 0)
# The condition for each of JSON's scalar types.
KINDS: dict[Hint, Kind] = {
    object: Kind("anything", lambda value: True),
    str: Kind("a string", lambda value: isinstance(value, str)),
    int: Kind("a whole number from 0 to 2^53", is_count),
    float: Kind("a number", is_number),
    bool: Kind("true or false", lambda value: isinstance(value, bool)),
}


def require(holds: bool, place: str, words: str, value: object) -> None:
    """Raise ValueError unless a condition holds."""
    if not holds:
        raise ValueError(f"{place or 'it'} must be {words}, received {shown(value)}")


Declared = TypeVar("Declared", bound="Record")
ABSENT = "absent"


def absent() -> Hint:
    """Return the definition of a field that is omitted from the JSON if it is None."""
    return dataclasses.field(default=None, metadata={ABSENT: True})


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool, **options: bool) -> Callable[[type], type]:
        """Declare the fields of a `Record` without generating the methods that `Record` defines.

        Generating them would take a tenth of the import time of `bart_export.runtime`.
        """
        return dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False, **options)


@dataclass(frozen=True)
class Record:
    """A JSON object, declared as a frozen dataclass.

    Fields with a default may be missing. `found` is the object that a record was read from, or
    None: unchanged fields are written as they were found, including undeclared ones.
    """

    found: Mapping[str, Json] | None = dataclasses.field(default=None, kw_only=True)

    def __init__(self, *values: object, **named: object) -> None:
        positional, required, defaults = parameters(typing.cast(Hint, type(self)))
        passed = {**dict(zip(positional, values, strict=False)), **named}
        fields = {**defaults, **passed}
        few = len(values) <= len(positional) and len(fields) == len(defaults)
        if not (few and required <= passed.keys()):
            raise TypeError(
                f"{type(self).__name__} takes {', '.join(defaults)}, received {len(values)} values "
                f"and {', '.join(named)}"
            )
        vars(self).update(fields)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash(tuple(self.values().values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.values().items())
        return f"{type(self).__name__}({values})"

    def values(self) -> dict[str, object]:
        """Return the values of the declared fields by name."""
        return {name: value for name, value in vars(self).items() if name != "found"}

    @classmethod
    def from_dict(cls: type[Declared], value: object) -> Declared:
        """Return the record for a JSON object, or raise ValueError for its first invalid field."""
        record: Declared = read_as(cls, value)
        return record

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON object."""
        found, kind = self.found or {}, typing.cast(Hint, type(self))
        written = dict(found)
        for name, (hint, default, absent) in declared(kind).items():
            value = getattr(self, name)
            if name in found:
                changed = read_as(hint, found[name]) != value
            else:
                changed = value != default if found else value is not None or not absent
            if changed:
                written[name] = plain(value)
        return written


@functools.cache
def parameters(record: Hint) -> tuple[list[str], set[str], dict[str, Json]]:
    """Return a record's positional fields, required fields, and the default of every field."""
    fields = dataclasses.fields(record)
    return (
        [field.name for field in fields if not field.kw_only],
        {field.name for field in fields if field.default is dataclasses.MISSING},
        {field.name: field.default for field in fields},
    )


def plain(value: Json) -> Json:
    """Return a JSON value, with records as objects and tuples as lists."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {field.name: plain(vars(value)[field.name]) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else value


@functools.cache
def declared(record: Hint) -> dict[str, tuple[Hint, Json, bool]]:
    """Return each JSON field's type and default, and whether it is omitted if None."""
    hints, fields = typing.get_type_hints(record, include_extras=True), {}
    for field in dataclasses.fields(record):
        hint, absent = hints[field.name], ABSENT in field.metadata
        # A field that may be absent may not be null.
        hint = typing.get_args(hint)[0] if absent else hint
        fields[field.name] = hint, field.default, absent
    fields.pop("found", None)
    return fields


def read_as(hint: Any, value: Json, place: str = "") -> Json:
    """Return a JSON value converted to a type, or raise ValueError for the first invalid part.

    Types are `str`, `int` (non-negative), `float`, `bool`, and `object` for anything; tuples for
    lists; `Mapping[str, …]` and dataclasses for objects; `Annotated` with a `Kind` or a `Variant`;
    and any of these with `| None`. A class with its own `from_dict` checks its fields itself.
    """
    if isinstance(hint, type) and (kind := KINDS.get(hint)):
        require(kind.holds(value), place, kind.words, value)
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    prefix = f"{place}." if place else ""
    if origin in (typing.Union, types.UnionType):
        return None if value is None else read_as(arguments[0], value, place)
    condition = arguments[1] if origin is typing.Annotated else None
    if isinstance(condition, Kind):
        of_type = KINDS.get(arguments[0], condition)
        require(of_type.holds(value) and condition.holds(value), place, condition.words, value)
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
    if isinstance(condition, Variant):
        return read_as(condition.choose(value), value, place)
    if origin is collections.abc.Mapping:
        inner = arguments[1]
        return {
            name: read_as(inner, part, f"{prefix}{shown(name)}") for name, part in value.items()
        }
    if hasattr(hint, "from_dict") and not issubclass(hint, Record):
        return hint.from_dict(value)
    fields = {"found": value} if issubclass(hint, Record) else {}
    for name, (inner, default, _) in declared(hint).items():
        if name in value:
            fields[name] = read_as(inner, value[name], f"{prefix}{name}")
        elif default is dataclasses.MISSING:
            raise ValueError(f"{place or 'it'} lacks {name}")
    return hint(**fields)
