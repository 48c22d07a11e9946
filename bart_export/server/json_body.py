"""The JSON bodies of REST: requests become tensors, outputs and what is told of models become JSON.

JSON is Python's: standard, and with the words NaN, Infinity and -Infinity, which TensorFlow
Serving reads and writes for floats. A name that stands twice in an object is refused. Inputs are in
TensorFlow Serving's row form (`instances`) or column form (`inputs`). A float32 is written with the
fewest digits that give it back; strings are text, with U+FFFD for bytes that are not UTF-8, or
base64 if the output's name ends in `_bytes`. Everything takes time in proportion to the body.
"""

import base64
import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format

from bart_export.server import messages
from bart_export.server.options import MAX_AXES, MAX_JSON_LISTS, MAX_JSON_VALUES
from bart_export.server.status import Code, StatusError, invalid
from bart_export.server.tensors import (
    Array,
    check_rows,
    data_type,
    numpy_dtype,
    string_array,
    type_name,
)

# An integer of more characters than any of 64 bits becomes a float without being converted first,
# which would take the square of its digits.
LONGEST_INTEGER = 20
SHOWN_CHARACTERS = 60
# By the kind of a NumPy dtype: the Python types that its elements may have, and what errors say.
WANTED: Mapping[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "i": (frozenset({int}), "an integer"),
    "u": (frozenset({int}), "an integer"),
    "f": (frozenset({int, float}), "a number"),
    "O": (frozenset({str, dict}), 'a string or {"b64": "..."}'),
}


@dataclasses.dataclass(frozen=True)
class ParsedBody:
    """A body that is a JSON object.

    `signature_name` is "" if it names none; `by_row` says whether inputs and answer are in rows.
    """

    signature_name: str
    document: dict[str, Any]
    by_row: bool


def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of its members, each of which has a name of its own."""
    named = dict(pairs)
    if len(named) < len(pairs):
        name, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {shown(name)} stands twice in an object")
    return named


def integer(digits: str) -> float:
    """Return the number that an integer stands for."""
    return int(digits) if len(digits) <= LONGEST_INTEGER else number(digits)


def number(digits: str) -> float:
    """Return the number that digits with a fraction or an exponent stand for."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{shown(digits)} is beyond the numbers of 64 bits")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=members, parse_int=integer, parse_float=number)


def document(body: bytes) -> Any:
    """Return the value that a body holds."""
    try:
        if not body.strip():
            raise ValueError("The document is empty")
        # So many at once would have Python's collector walk all that is loaded.
        if (lists := body.count(b"[") + body.count(b"{")) > MAX_JSON_LISTS:
            raise ValueError(
                f"expected at most {MAX_JSON_LISTS} lists and objects, received {lists}"
            )
        return DECODER.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        reason = f"expected UTF-8, received the byte 0x{error.object[error.start]:02x}"
    except RecursionError:
        reason = "the document is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise invalid(f"JSON Parse error: {reason}")


def parse(body: bytes) -> ParsedBody:
    """Return a body as an object and the signature it names."""
    parsed = document(body)
    if not isinstance(parsed, dict):
        raise invalid(f"Expected the body to be a JSON object, received {shown(parsed)}")
    name = parsed.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"Expected 'signature_name' to be a string, received {shown(name)}")
    return ParsedBody(name, parsed, "instances" in parsed)


def tensors(parsed: ParsedBody, inputs: Mapping[str, Any], most_rows: int) -> dict[str, Array]:
    """Return an array for each input."""
    if not inputs:
        raise invalid(
            f"Failed to get input map for signature: {parsed.signature_name or 'DEFAULT'}"
        )
    data_types = {name: inputs[name].dtype for name in sorted(inputs)}
    document = parsed.document
    if parsed.by_row and "inputs" in document:
        raise invalid("Expected either 'instances' or 'inputs', received both")
    if parsed.by_row:
        return from_rows(document["instances"], data_types, most_rows)
    if "inputs" in document:
        return from_columns(document["inputs"], data_types, most_rows)
    raise invalid("Missing 'inputs' or 'instances' key")


def from_columns(value: Any, data_types: Mapping[str, int], most_rows: int) -> dict[str, Array]:
    """Return the inputs of `"inputs": value`: an object of all of them, or the only one itself."""
    if not is_object(value):
        only = only_input(data_types, "inputs")
        return {only: tensor(value, data_types[only], ("inputs", ""), most_rows)}
    for name in data_types:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {
        name: tensor(value[name], data_type, (f"inputs.{name}", ""), most_rows)
        for name, data_type in data_types.items()
    }


def from_rows(rows: Any, data_types: Mapping[str, int], most_rows: int) -> dict[str, Array]:
    """Return the inputs of `"instances": [...]`, one element a row."""
    if not isinstance(rows, list) or not rows:
        raise invalid(f"Expected 'instances' to be a list of rows, received {shown(rows)}")
    if not is_object(rows[0]):
        only = only_input(data_types, "instances")
        return {only: tensor(rows, data_types[only], ("instances", ""), most_rows)}
    check_rows("instances", len(rows), most_rows)
    for place, row in enumerate(rows):
        if not is_object(row) or row.keys() != data_types.keys():
            raise invalid(
                f"Expected instances[{place}] to be an object with the keys "
                f"{', '.join(data_types)}, received {shown(row)}"
            )
    return {
        name: tensor([row[name] for row in rows], data_type, ("instances", f".{name}"), most_rows)
        for name, data_type in data_types.items()
    }


def only_input(data_types: Mapping[str, int], key: str) -> str:
    """Return the name of the only input, whose values need not be named."""
    if len(data_types) > 1:
        raise invalid(
            f"Expected '{key}' to name the inputs {', '.join(data_types)}: the signature has "
            f"several, and a plain value would not say which it is"
        )
    return next(iter(data_types))


def is_object(value: Any) -> bool:
    """Say whether a value names inputs, rather than being the value of one."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    """Say whether a value is an object that stands for bytes: `{"b64": "..."}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def tensor(value: Any, data_type: int, where: tuple[str, str], most_rows: int) -> Array:
    """Return a value, or lists of values that are nested evenly, as an array."""
    dtype = numpy_dtype(data_type)
    if dtype.kind not in WANTED:
        raise StatusError(Code.UNIMPLEMENTED, f"JSON has no values of type {dtype.name}")
    if isinstance(value, list):
        check_rows("".join(where), len(value), most_rows)
    shape, flat = flattened(value, where)
    types, wanted = WANTED[dtype.kind]
    if set(map(type, flat)) - types:
        wrong = next(place for place, leaf in enumerate(flat) if type(leaf) not in types)
        raise misfit(where, shape, wrong, wanted, flat[wrong])
    if dtype.kind == "O":
        return string_array(strings(flat, where, shape)).reshape(shape)
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if flat and not low <= min(flat) <= max(flat) <= high:
            wrong = next(place for place, leaf in enumerate(flat) if not low <= leaf <= high)
            raise misfit(where, shape, wrong, f"an integer of {low} to {high}", flat[wrong])
    exact = np.array(flat, np.float64 if dtype.kind == "f" else dtype)
    with np.errstate(over="ignore", under="ignore"):
        return exact.astype(dtype, copy=False).reshape(shape)


def flattened(value: Any, where: tuple[str, str]) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of lists that are nested evenly, and the values in them."""
    shape: list[int] = []
    flat = [value]
    while flat and isinstance(flat[0], list):
        if len(shape) == MAX_AXES:
            raise invalid(f"{''.join(where)}: lists may be nested {MAX_AXES} deep, not more")
        size = len(flat[0])
        for place, item in enumerate(flat):
            if not isinstance(item, list) or len(item) != size:
                raise misfit(where, shape, place, f"a list of {size}, as the first one is", item)
        shape.append(size)
        flat = list(itertools.chain.from_iterable(flat))
    return tuple(shape), flat


def strings(flat: list[Any], where: tuple[str, str], shape: tuple[int, ...]) -> list[bytes]:
    """Return the bytes that strings, or base64 in their place, stand for."""
    found = []
    for place, leaf in enumerate(flat):
        try:
            found.append(leaf.encode() if isinstance(leaf, str) else base64_bytes(leaf))
        except ValueError as error:
            raise misfit(where, shape, place, WANTED["O"][1], leaf, f": {error}") from None
    return found


def base64_bytes(value: dict[str, Any]) -> bytes:
    """Return what `{"b64": "..."}` stands for: the standard alphabet, padded or not."""
    if not is_base64(value):
        raise ValueError("any other object is none")
    text: str = value["b64"]
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def misfit(
    where: tuple[str, str],
    shape: tuple[int, ...] | list[int],
    place: int,
    wanted: str,
    value: Any,
    reason: str = "",
) -> StatusError:
    """Return the error for a value, number `place` of those under `shape`, that does not fit."""
    first, *rest = [f"[{number}]" for number in np.unravel_index(place, shape)] or [""]
    name = f"{where[0]}{first}{where[1]}{''.join(rest)}"
    return invalid(f"Expected {name} to be {wanted}, received {shown(value)}{reason}")


def shown(value: Any) -> str:
    """Return a value for an error message, in a few characters whatever its size."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        names = ", ".join(shown(name) for name in itertools.islice(value, 3))
        return f"an object of {len(value)} members" + (f": {names} ..." if names else "")
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{json.dumps(value[:SHOWN_CHARACTERS])} ... ({len(value)} characters)"
    return json.dumps(value)


# Values that are written at once: other threads have their turn in between.
CHUNK = 4096
ERROR_CHARACTERS = 1024


def predictions(outputs: Mapping[str, Array], *, row_format: bool) -> bytes:
    """Return the outputs of a signature: by rows as `predictions`, or by columns as `outputs`."""
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    # An empty axis saves no brackets.
    values = sum(math.prod(max(1, size) for size in array.shape) for array in outputs.values())
    if values > MAX_JSON_VALUES:
        raise invalid(
            f"The answer has {values} values, and over REST at most {MAX_JSON_VALUES} are sent. "
            "Ask for fewer rows at once, or over gRPC."
        )
    if row_format:
        return body_of("predictions", by_rows(outputs))
    texts = {name: written(array, name) for name, array in outputs.items()}
    return body_of("outputs", next(iter(texts.values())) if len(texts) == 1 else an_object(texts))


def by_rows(outputs: Mapping[str, Array]) -> str:
    """Return a list of rows: the only output's values, or objects of all outputs."""
    count = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if count not in (None, len(array)):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {count}"
            )
        count = len(array)
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return written(array, name)
    return a_list(
        an_object(
            {
                name: written(array[row : row + 1].reshape(array.shape[1:]), name)
                for name, array in outputs.items()
            }
        )
        for row in range(count or 0)
    )


def written(array: Array, name: str) -> str:
    """Return an array, the output `name` or a part of it, as nested lists."""
    if array.ndim == 0:
        return written(array.reshape(1), name)[1:-1]
    if array.ndim > 1:
        return a_list(written(part, name) for part in array)
    starts = range(0, len(array), CHUNK)
    return a_list(json_text(values(array[start : start + CHUNK], name))[1:-1] for start in starts)


def values(flat: Array, name: str) -> list[Any]:
    """Return the values of an output, (number,), as Python has them for JSON."""
    kind = flat.dtype.kind
    if kind in "OSU":
        items = [item if isinstance(item, bytes) else str(item).encode() for item in flat.tolist()]
        if name.endswith("_bytes"):
            return [{"b64": base64.b64encode(item).decode()} for item in items]
        return [item.decode("utf-8", "replace") for item in items]
    if kind not in "biuf":
        raise invalid(f"Failed to write JSON value for tensor type: {type_name(data_type(flat))}")
    # Text has the fewest digits of a float of its own width.
    short = kind == "f" and flat.dtype.itemsize < 8
    listed_values: list[Any] = (flat.astype("U32").astype(np.float64) if short else flat).tolist()
    return listed_values


def json_text(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def a_list(texts: Iterable[str]) -> str:
    """Return JSON values as an array."""
    return f"[{', '.join(texts)}]"


def an_object(texts: Mapping[str, str]) -> str:
    """Return named JSON values as an object."""
    return f"{{{', '.join(f'{json_text(name)}: {text}' for name, text in texts.items())}}}"


def body_of(key: str, text: str) -> bytes:
    """Return an object of one member as a body."""
    return an_object({key: text}).encode("utf-8", "replace")


def error(message: str) -> bytes:
    """Return the body of an error; a message that quotes much is cut."""
    cut = message if len(message) <= ERROR_CHARACTERS else f"{message[:ERROR_CHARACTERS]} ..."
    return body_of("error", json_text(cut))


def model_status(response: Any) -> bytes:
    """Return a GetModelStatusResponse as a body."""
    return json_text(fields(response)).encode()


def model_metadata(response: Any) -> bytes:
    """Return a GetModelMetadataResponse as a body; each metadata field is a SignatureDefMap."""
    metadata = {}
    for name, packed in response.metadata.items():
        signatures = messages.SignatureDefMap()
        packed.Unpack(signatures)
        metadata[name] = fields(signatures)
    return json_text({"model_spec": fields(response.model_spec), "metadata": metadata}).encode()


def fields(message: Any) -> dict[str, Any]:
    """Return a message as JSON, with every field under the name it has in its `.proto` file."""
    named: dict[str, Any] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=messages.POOL,
    )
    return named
