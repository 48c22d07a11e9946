"""Tensors of requests and responses: TensorProto messages and JSON, converted to NumPy arrays.

Strings are arrays of `bytes` with dtype object. Shapes come from clients and are not trusted:
memory and time are bounded by the size of a request.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from bart_export.errors import shown
from bart_export.server.messages import DataType, Message, TensorProto
from bart_export.server.options import (
    MAX_AXES,
    MAX_FILLED_ELEMENTS,
    MAX_JSON_LISTS,
    MAX_JSON_VALUES,
)
from bart_export.server.status import Code, StatusError, invalid

Array = npt.NDArray[Any]

# NumPy dtype and TensorProto field by DataType.
ELEMENTS: Mapping[int, tuple[str, str]] = {
    DataType.DT_FLOAT: ("float32", "float_val"),
    DataType.DT_DOUBLE: ("float64", "double_val"),
    DataType.DT_INT32: ("int32", "int_val"),
    DataType.DT_INT16: ("int16", "int_val"),
    DataType.DT_INT8: ("int8", "int_val"),
    DataType.DT_UINT8: ("uint8", "int_val"),
    DataType.DT_UINT16: ("uint16", "int_val"),
    DataType.DT_INT64: ("int64", "int64_val"),
    DataType.DT_UINT32: ("uint32", "uint32_val"),
    DataType.DT_UINT64: ("uint64", "uint64_val"),
    DataType.DT_BOOL: ("bool", "bool_val"),
    DataType.DT_STRING: ("object", "string_val"),
    DataType.DT_HALF: ("float16", "half_val"),
    DataType.DT_BFLOAT16: ("bfloat16", "half_val"),
}
DATA_TYPES = {dtype: data_type for data_type, (dtype, _) in ELEMENTS.items()}


def type_name(data_type: int) -> str:
    """Return TensorFlow's name of a DataType, for example "float", "string" or "half"."""
    try:
        name: str = DataType.Name(data_type)
    except ValueError:
        return f"unknown dtype enum ({data_type})"
    return name.removeprefix("DT_") if data_type == DataType.DT_INVALID else name[3:].lower()


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """Return the NumPy dtype of a DataType; strings have dtype object."""
    try:
        return np.dtype(ELEMENTS[data_type][0])
    except (KeyError, TypeError):  # NumPy has bfloat16 only once TensorFlow is imported
        raise StatusError(Code.UNIMPLEMENTED, f"Tensors of type {type_name(data_type)}") from None


def data_type(array: Array) -> int:
    """Return the DataType of an array; object, bytes and str arrays are strings."""
    name = "object" if array.dtype.kind in "OSU" else array.dtype.name
    if name not in DATA_TYPES:
        raise StatusError(Code.INTERNAL, f"Expected a tensor of TensorFlow, received {name}")
    return DATA_TYPES[name]


def object_array(items: Iterable[object]) -> Array:
    """Return a one-dimensional object array of the items."""
    listed = list(items)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def as_bytes(strings: Array) -> list[bytes]:
    """Return the strings of an array, flattened, as bytes."""
    items = strings.reshape(-1).tolist()
    return [item if isinstance(item, bytes) else str(item).encode() for item in items]


def check_rows(name: str, rows: int, most: int) -> None:
    """Raise StatusError for an input with too many rows."""
    if rows > most:
        raise invalid(
            f"Expected {name} to have at most {most} rows, received {rows}. Send several requests, "
            "or start the server with a larger --max-request-rows."
        )


def from_proto(proto: Message, name: str) -> Array:
    """Return a TensorProto as an array, which may be read-only.

    As in TensorFlow, `tensor_content` comes before the dtype's field. The field's last value fills
    missing elements, and surplus values are ignored.

    Raises:
        StatusError: INVALID_ARGUMENT if shape, dtype and content do not match, or if more than
            `MAX_FILLED_ELEMENTS` elements would be filled.
    """
    shape = tuple(axis.size for axis in proto.tensor_shape.dim[: MAX_AXES + 1])
    try:
        if len(shape) <= MAX_AXES and min(shape, default=0) >= 0 and proto.dtype in ELEMENTS:
            return elements(proto, math.prod(shape)).reshape(shape)
    except ValueError:  # the content does not match the shape, or NumPy cannot have the shape
        pass
    raise invalid(f"tensor parsing error: {name}")


def elements(proto: Message, size: int) -> Array:
    """Return the elements (size,) of a TensorProto; `tensor_content` may have another size."""
    dtype, (_, field) = numpy_dtype(proto.dtype), ELEMENTS[proto.dtype]
    if size == 0:
        return np.empty(0, dtype)
    if proto.tensor_content:
        is_bool = dtype.kind == "b"  # bytes other than 0 and 1 equal neither
        content = np.frombuffer(proto.tensor_content, np.uint8 if is_bool else dtype)
        return content.astype(bool) if is_bool else content
    values = getattr(proto, field)
    if size > max(MAX_FILLED_ELEMENTS, len(values)):
        raise ValueError("too few values to fill a tensor from")
    flat: Array
    if dtype.kind == "O":
        flat = object_array(values[:size])
    elif field == "half_val":
        flat = np.array(values[:size], np.int32).astype(np.uint16).view(dtype)
    else:
        flat = np.array(values[:size], np.int32 if field == "int_val" else dtype).astype(dtype)
    last = flat[-1:] if len(flat) else np.full(1, b"" if dtype.kind == "O" else 0, dtype)
    return np.concatenate([flat, np.repeat(last, size - len(flat))])


def to_proto(array: Array, *, as_content: bool = False) -> Message:
    """Return an array as a TensorProto.

    Values are in the dtype's field, as clients expect, or with `as_content` in `tensor_content`.
    Strings are always in `string_val`.
    """
    dims = [{"size": size} for size in array.shape]
    proto = TensorProto(dtype=data_type(array), tensor_shape={"dim": dims})
    _, field = ELEMENTS[proto.dtype]
    flat = array.reshape(-1)
    if field == "string_val":
        proto.string_val.extend(as_bytes(flat))
    elif as_content:
        proto.tensor_content = flat.tobytes()
    else:
        flat = flat.view(np.uint16) if field == "half_val" else flat
        getattr(proto, field).extend(flat.tolist())
    return proto


# Names of JSON values in errors, by the kind of NumPy dtype.
JSON_VALUES: Mapping[str, str] = {
    "b": "true or false",
    "i": "an integer of {low} to {high}",
    "u": "an integer of {low} to {high}",
    "f": "a number",
    "O": 'a string or {{"b64": "..."}}',
}


def parse_json(body: bytes) -> object:
    """Parse a body. NaN, Infinity and -Infinity are numbers."""
    # More objects would make Python's collector traverse everything loaded.
    lists = body.count(b"[") + body.count(b"{")
    reason = f"expected at most {MAX_JSON_LISTS} lists and objects, received {lists}"
    if lists <= MAX_JSON_LISTS:
        try:
            return json.loads(body)
        except RecursionError:
            reason = "the document is nested too deeply"
        except ValueError as error:
            reason = str(error)
    raise invalid(f"JSON Parse error: {reason}")


def from_json(
    document: Mapping[str, object], inputs: Mapping[str, Message], most_rows: int
) -> dict[str, Array]:
    """Return the inputs of a REST Predict request, in rows (`instances`) or columns (`inputs`).

    Args:
        document: the request's body.
        inputs: the TensorInfo of each input of the signature. A single input may be unnamed.
        most_rows: maximum rows of an input.
    """
    by_row = "instances" in document
    if by_row == ("inputs" in document):
        received = "both" if by_row else "neither"
        raise invalid(f"Expected either 'instances' or 'inputs', received {received}")
    if not inputs:
        raise invalid("Expected a signature with inputs: this one has none; call it over gRPC")
    value, names = document["instances" if by_row else "inputs"], sorted(inputs)
    if by_row and not (isinstance(value, list) and value):
        raise invalid(f"Expected 'instances' to be a list of rows, received {described(value)}")
    columns: Mapping[str, object]
    if isinstance(value, list) and by_row and is_named(value[0]):
        columns = columns_of_rows(value, names, most_rows)
    elif not by_row and is_named(value):
        columns = value
    elif len(names) == 1:
        columns = {names[0]: value}
    else:
        raise invalid(
            f"Expected the inputs {', '.join(names)} by name: the signature has several, and a "
            "plain value could be any of them"
        )
    if missing := [name for name in names if name not in columns]:
        raise invalid(f"Missing named input: {missing[0]} in 'inputs' object.")
    return {name: json_tensor(columns[name], inputs[name].dtype, name, most_rows) for name in names}


def columns_of_rows(
    rows: list[object], names: list[str], most_rows: int
) -> dict[str, list[object]]:
    """Return the columns of rows that are objects with every input."""
    check_rows("instances", len(rows), most_rows)
    columns: dict[str, list[object]] = {name: [] for name in names}
    for number, row in enumerate(rows):
        if not is_named(row) or row.keys() != columns.keys():
            raise invalid(
                f"Expected instances[{number}] to be an object with the keys {', '.join(names)}, "
                f"received {described(row)}"
            )
        for name, values in columns.items():
            values.append(row[name])
    return columns


def is_named(value: object) -> TypeGuard[dict[str, object]]:
    """Return whether a value is an object of named inputs and not base64."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: dict[str, object]) -> bool:
    """Return whether an object is base64: `{"b64": "..."}`."""
    return len(value) == 1 and isinstance(value.get("b64"), str)


def json_tensor(value: object, data_type: int, name: str, most_rows: int) -> Array:
    """Return a JSON value, or evenly nested lists, as an array."""
    dtype = numpy_dtype(data_type)
    if dtype.kind not in JSON_VALUES:
        raise StatusError(Code.UNIMPLEMENTED, f"JSON has no values of type {dtype.name}")
    if isinstance(value, list):
        check_rows(name, len(value), most_rows)
    # NumPy keeps lists of different lengths as elements.
    leaves = np.array(value, object)
    if leaves.ndim > MAX_AXES:
        raise invalid(f"Expected {name} to have at most {MAX_AXES} levels of lists, received more")
    flat: list[object] = leaves.reshape(-1).tolist()
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(np.float64)
    low, high = int(limits.min), int(limits.max)

    def converted(leaf: object) -> object:
        if dtype.kind == "O":
            return json_bytes(leaf)
        if dtype.kind == "b":
            return leaf if isinstance(leaf, bool) else None
        if isinstance(leaf, float) and dtype.kind == "f":
            return leaf
        return leaf if type(leaf) is int and low <= leaf <= high else None

    values = [converted(leaf) for leaf in flat]
    if None in values:
        place = values.index(None)
        indices = "".join(f"[{index}]" for index in np.unravel_index(place, leaves.shape))
        wanted = JSON_VALUES[dtype.kind].format(low=low, high=high)
        if isinstance(flat[place], list):
            wanted += " in lists of equal length"
        raise invalid(f"Expected {name}{indices} to be {wanted}, received {described(flat[place])}")
    if dtype.kind == "O":
        return object_array(values).reshape(leaves.shape)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.array(values, np.float64 if dtype.kind == "f" else dtype)
        return exact.astype(dtype, copy=False).reshape(leaves.shape)


def json_bytes(value: object) -> bytes | None:
    """Return the bytes of a string or of base64, padded or not, or None for other values."""
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and is_base64(value):
            text: str = value["b64"]
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:  # a lone surrogate, or invalid base64
        pass
    return None


def described(value: object) -> str:
    """Return a short description of a value of any size, for an error message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"an object of {len(value)} members" if isinstance(value, dict) else shown(value)


# Iterating over the encoder lets other threads run; `json.dumps` would hold Python's lock.
ENCODER = json.JSONEncoder(ensure_ascii=False)
# Elements per conversion, for the same reason.
CHUNK = 4096


def to_json(outputs: Mapping[str, Array], *, by_row: bool) -> bytes:
    """Return a signature's outputs as JSON, in rows (`predictions`) or columns (`outputs`).

    Strings are text, with U+FFFD for bytes that are not UTF-8, or base64 if the output's name ends
    in `_bytes`.
    """
    # An empty axis still has brackets.
    size = sum(math.prod(max(1, axis) for axis in array.shape) for array in outputs.values())
    if size > MAX_JSON_VALUES:
        raise invalid(
            f"Expected a response of at most {MAX_JSON_VALUES} values over REST, received {size}. "
            "Send fewer rows per request, or use gRPC."
        )
    if by_row:
        lengths = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
        if None in lengths.values() or len(set(lengths.values())) > 1:
            raise invalid(
                "Expected outputs with equal numbers of rows for a response in row form, received "
                f"{', '.join(f'{name} {list(array.shape)}' for name, array in outputs.items())}. "
                "Use the column form, with 'inputs'."
            )
    columns = {name: nested(array, name) for name, array in outputs.items()}
    if len(columns) == 1:
        (value,) = columns.values()
    elif by_row:
        rows = zip(*columns.values(), strict=True)
        value = [dict(zip(columns, row, strict=True)) for row in rows]
    else:
        value = columns
    return encoded({"predictions" if by_row else "outputs": value})


def nested(array: Array, name: str) -> object:
    """Return an output as a JSON value or nested lists."""
    flat = array.reshape(-1)
    if flat.dtype.kind in "OSU":
        strings = as_bytes(flat)
        if name.endswith("_bytes"):
            items: list[object] = [{"b64": base64.b64encode(item).decode()} for item in strings]
        else:
            items = [item.decode("utf-8", "replace") for item in strings]
    elif flat.dtype.kind not in "biuf":
        raise invalid(f"JSON has no values of type {type_name(data_type(flat))}")
    elif flat.dtype.kind == "f" and flat.dtype.itemsize < 8:
        # Through text, for the shortest digits of the float's own width.
        items = []
        for start in range(0, len(flat), CHUNK):
            items += flat[start : start + CHUNK].astype("U32").astype(np.float64).tolist()
    else:
        items = flat.tolist()
    return object_array(items).reshape(array.shape).tolist()


def encoded(value: object) -> bytes:
    """Return a value as JSON in UTF-8."""
    return "".join(ENCODER.iterencode(value)).encode("utf-8", "replace")
