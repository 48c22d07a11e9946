"""REST bodies as tensors: JSON to NumPy arrays and arrays to JSON.

Strings are arrays of `bytes` with dtype object. Bodies come from clients and are not trusted:
memory and time are bounded by their size.
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import TypeGuard

import numpy as np

from bart_export.errors import shown
from bart_export.server import messages
from bart_export.server.messages import Array, Message
from bart_export.server.options import MAX_AXES, MAX_JSON_LISTS, MAX_JSON_VALUES
from bart_export.server.status import Code, StatusError, invalid

# Names of JSON values in errors, by the kind of NumPy dtype.
JSON_VALUES: Mapping[str, str] = {
    "b": "true or false",
    "i": "an integer of {low} to {high}",
    "u": "an integer of {low} to {high}",
    "f": "a number",
    "O": 'a string or {{"b64": "..."}}',
}


def parse(body: bytes) -> object:
    """Parse a body. NaN, Infinity and -Infinity are accepted as numbers."""
    # With more objects, Python's garbage collector would traverse everything in memory.
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


def to_inputs(
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
    messages.check_rows("instances", len(rows), most_rows)
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
    """Return whether a value is an object with named inputs, not base64."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: dict[str, object]) -> bool:
    """Return whether an object is base64: `{"b64": "..."}`."""
    return len(value) == 1 and isinstance(value.get("b64"), str)


def json_tensor(value: object, data_type: int, name: str, most_rows: int) -> Array:
    """Return a JSON value, or evenly nested lists, as an array."""
    dtype = messages.numpy_dtype(data_type)
    if dtype.kind not in JSON_VALUES:
        raise StatusError(Code.UNIMPLEMENTED, f"JSON has no values of type {dtype.name}")
    if isinstance(value, list):
        messages.check_rows(name, len(value), most_rows)
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
        return messages.object_array(values).reshape(leaves.shape)
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
    return f"an object with {len(value)} members" if isinstance(value, dict) else shown(value)


# Iterating over the encoder lets other threads run; `json.dumps` would hold the GIL.
ENCODER = json.JSONEncoder(ensure_ascii=False)
# Elements per conversion, for the same reason.
CHUNK = 4096


def from_outputs(outputs: Mapping[str, Array], *, by_row: bool) -> bytes:
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
        strings = messages.as_bytes(flat)
        if name.endswith("_bytes"):
            items: list[object] = [{"b64": base64.b64encode(item).decode()} for item in strings]
        else:
            items = [item.decode("utf-8", "replace") for item in strings]
    elif flat.dtype.kind not in "biuf":
        raise invalid(f"JSON has no values of type {flat.dtype.name}")
    elif flat.dtype.kind == "f" and flat.dtype.itemsize < 8:
        # Via text, to get the shortest digits at the float's own precision.
        items = []
        for start in range(0, len(flat), CHUNK):
            items += flat[start : start + CHUNK].astype("U32").astype(np.float64).tolist()
    else:
        items = flat.tolist()
    return messages.object_array(items).reshape(array.shape).tolist()


def encoded(value: object) -> bytes:
    """Return a value as JSON in UTF-8."""
    return "".join(ENCODER.iterencode(value)).encode("utf-8", "replace")
