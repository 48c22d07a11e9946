"""The body of a REST predict request → the inputs of a signature.

`parse` reads the body as far as it can be read before the model is known; `tensors` reads the rest
by the signature's inputs. What is accepted, which error wins and what it says are TensorFlow
Serving's. Whole lists are converted at once; where that is not possible, because something in them
is wrong or unusual, element by element. Nothing here knows models, signatures by name or HTTP.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bart_export.server import json_document
from bart_export.server.json_document import as_bytes, is_base64, shown
from bart_export.server.messages import DataType
from bart_export.server.status import Code, StatusError
from bart_export.server.tensors import MAX_RANK, Array, numpy_dtype, string_array, type_name


@dataclasses.dataclass(frozen=True)
class ParsedBody:
    """A body that is a JSON object; `signature_name` is "" if it names none."""

    signature_name: str
    document: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What elements of a DataType may be in JSON: the Python types, and bounds of integers.

    Integers in bounds that the dtype itself does not hold lose their upper bits.
    """

    types: frozenset[type]
    bounds: tuple[int, int] | None = None

    def holds(self, values: list[Any]) -> bool:
        """Say whether all values are of this kind."""
        if set(map(type, values)) - self.types:
            return False
        if self.bounds is None or not values:
            return True
        return bool(self.bounds[0] <= min(values) and max(values) <= self.bounds[1])


def integers(bits: int, *, signed: bool) -> Kind:
    """Return the kind of integers of a number of bits."""
    low = -(1 << bits - 1) if signed else 0
    return Kind(frozenset({int}), (low, low + (1 << bits) - 1))


NUMBERS = Kind(frozenset({int, float}))
KINDS: dict[int, Kind] = {
    DataType.DT_FLOAT: NUMBERS,
    DataType.DT_DOUBLE: NUMBERS,
    DataType.DT_INT32: integers(32, signed=True),
    DataType.DT_INT16: integers(32, signed=True),
    DataType.DT_INT8: integers(32, signed=True),
    DataType.DT_UINT8: integers(32, signed=True),
    DataType.DT_INT64: integers(64, signed=True),
    DataType.DT_UINT32: integers(32, signed=False),
    DataType.DT_UINT64: integers(64, signed=False),
    DataType.DT_BOOL: Kind(frozenset({bool})),
    DataType.DT_STRING: Kind(frozenset({str})),
}
# Rows that are converted at once. Where one is wrong, so many are looked at one by one.
CHUNK = 4096


def invalid(message: str) -> StatusError:
    """Return the error for a body that no signature, or not this one, can take."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def parse(body: bytes) -> ParsedBody:
    """Return a body as an object and the signature it names.

    Raises:
        StatusError: INVALID_ARGUMENT for a body that is no JSON, no object, or that names the
            signature by something other than a string.
    """
    document = json_document.parse(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {shown(document)} Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {shown(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return ParsedBody(name, document)


def tensors(parsed: ParsedBody, inputs: Mapping[str, Any]) -> tuple[dict[str, Array], bool]:
    """Return an array for each input, and whether the answer is to be in rows.

    Args:
        parsed: the body.
        inputs: the TensorInfo of each input of the signature.

    Raises:
        StatusError: INVALID_ARGUMENT for values that do not fit the inputs; UNIMPLEMENTED for
            inputs, given by columns, of a type that JSON has no values for.
    """
    document = parsed.document
    if not inputs:
        raise invalid(
            f"Failed to get input map for signature: {parsed.signature_name or 'DEFAULT'}"
        )
    by_row, by_column = "instances" in document, "inputs" in document
    if by_row and by_column:
        raise invalid(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    data_types = {name: inputs[name].dtype for name in sorted(inputs)}
    if by_row:
        return from_rows(document, data_types), True
    if by_column:
        return from_columns(document["inputs"], data_types), False
    raise invalid("Missing 'inputs' or 'instances' key")


def from_columns(value: Any, data_types: Mapping[str, int]) -> dict[str, Array]:
    """Return the inputs of `"inputs": value`: an object of all of them, or the only one itself."""
    if not isinstance(value, dict) or is_base64(value):
        if len(data_types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {name: tensor(value, data_type) for name, data_type in data_types.items()}
    for name in data_types:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: tensor(value[name], data_type) for name, data_type in data_types.items()}


def from_rows(document: dict[str, Any], data_types: Mapping[str, int]) -> dict[str, Array]:
    """Return the inputs of `"instances": [...]`, one element a row."""
    rows = document["instances"]
    if not isinstance(rows, list):
        raise invalid(f"JSON Value: {shown(document)} Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid(f"JSON Value: {shown(document)} No values in 'instances' array")
    named = is_object(rows[0])
    if not named and len(data_types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    parts: list[dict[str, Array]] = []
    shapes: dict[str, tuple[int, ...]] = {}  # of the first row
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        part = rows_at_once(chunk, data_types, named)
        if part is None or any(part[name].shape[1:] != shape for name, shape in shapes.items()):
            part = row_by_row(chunk, data_types, named, start, shapes)
        shapes = {name: array.shape[1:] for name, array in part.items()}
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in data_types}


def is_object(row: Any) -> bool:
    """Say whether a row names its inputs, rather than being the only one."""
    return isinstance(row, dict) and not is_base64(row)


def rows_at_once(
    rows: list[Any], data_types: Mapping[str, int], named: bool
) -> dict[str, Array] | None:
    """Return the inputs of rows, quickly, or None where that takes a closer look."""
    if named and not all(is_object(row) and row.keys() == data_types.keys() for row in rows):
        return None
    arrays = {}
    for name, data_type in data_types.items():
        array = at_once([row[name] for row in rows] if named else rows, data_type)
        if array is None:
            return None
        arrays[name] = array
    return arrays


def row_by_row(
    rows: list[Any],
    data_types: Mapping[str, int],
    named: bool,
    start: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Array]:
    """Return the inputs of rows, the first of which has number `start`.

    Raises:
        StatusError: INVALID_ARGUMENT for the first row that is wrong, or whose inputs do not have
            the shapes, where they are known, or else those of the first of these rows.
    """
    shapes = dict(shapes)
    arrays: dict[str, list[Array]] = {name: [] for name in data_types}
    for number, row in enumerate(rows, start):
        if is_object(row) != named:
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {got} at item {number} of input list")
        for name, value in row.items() if named else ((next(iter(data_types)), row),):
            try:
                if name not in data_types:
                    raise invalid(f"JSON object: does not have named input: {name}")
                array = tensor(value, data_types[name])
                check_shape(array, shapes.setdefault(name, array.shape))
            except StatusError as error:
                key = f" key: {name}" if named else ""
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. "
                    f"Error: {error.code.name}: {error.message}"
                ) from None
            arrays[name].append(array)
        if named and row.keys() != data_types.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{shown(row)} keys must be equal to: {','.join(data_types)}"
            )
    return {name: np.stack(values) for name, values in arrays.items()}


def check_shape(array: Array, shape: tuple[int, ...]) -> None:
    """Refuse an input that is not of the shape it had in the first row."""
    if array.size != math.prod(shape):
        raise invalid(f"Expecting tensor size: {math.prod(shape)} but got: {array.size}")
    if array.shape != shape:
        raise invalid(f"Expecting shape {listed(shape)} but got: {listed(array.shape)}")


def listed(shape: tuple[int, ...]) -> str:
    """Return a shape as it stands in messages, without spaces."""
    return f"[{','.join(map(str, shape))}]"


def tensor(value: Any, data_type: int) -> Array:
    """Return a value, or lists of values that are nested evenly, as an array.

    Raises:
        StatusError: for lists that are not, or the first value that is not of the type.
    """
    array = at_once(value, data_type)
    if array is not None:
        return array
    shape = first_shape(value)
    if len(shape) >= MAX_RANK:
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {MAX_RANK}")
    flat = [element(leaf, data_type) for leaf in leaves(value, shape, 0)]
    return converted(flat, data_type).reshape(shape)


def at_once(value: Any, data_type: int) -> Array | None:
    """Return what `tensor` returns, quickly, or None where that takes a closer look."""
    if data_type not in KINDS:
        return None
    shape = first_shape(value)
    if len(shape) >= MAX_RANK:
        return None
    flat = [value]
    for size in shape:
        if set(map(type, flat)) - {list} or set(map(len, flat)) - {size}:
            return None
        flat = list(itertools.chain.from_iterable(flat))
    try:
        if data_type == DataType.DT_STRING:
            flat = [element(leaf, data_type) for leaf in flat]
        elif not KINDS[data_type].holds(flat):
            return None
        return converted(flat, data_type).reshape(shape)
    except (OverflowError, StatusError):
        return None


def first_shape(value: Any) -> tuple[int, ...]:
    """Return the shape that the first elements of nested lists suggest."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def leaves(value: Any, shape: tuple[int, ...], level: int) -> Iterator[Any]:
    """Yield the values of lists nested evenly, up to the first place where they are not."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        yield value
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        yield from leaves(item, shape, level + 1)


def element(value: Any, data_type: int) -> Any:
    """Return one value of a type, bytes for `{"b64": ...}` where the type is string.

    Raises:
        StatusError: INVALID_ARGUMENT for a value of another type or beyond its bounds,
            UNIMPLEMENTED for a type that JSON has no values for.
    """
    if isinstance(value, dict):
        if data_type == DataType.DT_STRING:
            return json_document.base64_bytes(value)
    elif data_type not in KINDS:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {shown(value)} to type: {type_name(data_type)}",
        )
    elif KINDS[data_type].holds([value]):
        return json_document.double(value) if KINDS[data_type] is NUMBERS else value
    raise invalid(
        f"JSON Value: {shown(value)} Type: {json_document.type_name(value)} "
        f"is not of expected type: {type_name(data_type)}"
    )


def converted(flat: list[Any], data_type: int) -> Array:
    """Return values of a DataType's kind as an array (number of values,)."""
    if data_type == DataType.DT_STRING:
        return string_array(as_bytes(item) if isinstance(item, str) else item for item in flat)
    dtype = numpy_dtype(data_type)
    if KINDS.get(data_type) is NUMBERS:
        with np.errstate(over="ignore", under="ignore"):
            return np.array(flat, np.float64).astype(dtype)
    if KINDS.get(data_type) == KINDS[DataType.DT_INT32]:
        return np.array(flat, np.int32).astype(dtype)
    return np.array(flat, dtype)
