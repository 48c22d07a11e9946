"""Outputs, errors, status and metadata → the bodies of REST responses, as TensorFlow Serving writes
them.

Floats have 6 digits where those give the number back, else as many as it takes, and always a point
or an exponent; NaN and infinities stand as bare words. Strings go out byte by byte, or as base64 if
the output's name ends in `_bytes`. Nothing here knows HTTP, models or signatures.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format

from bart_export.server.json_document import as_bytes
from bart_export.server.messages import POOL, SignatureDefMap
from bart_export.server.status import Code, StatusError
from bart_export.server.tensors import Array, data_type, type_name

# Digits of every number that give it back; %.6g is tried first.
ALL_DIGITS = {"float32": "%.9g", "float64": "%.17g"}
WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"}
quoted: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode


def predictions(outputs: Mapping[str, Array], *, row_format: bool) -> bytes:
    """Return the outputs of a signature: by rows as `predictions`, or by columns as `outputs`.

    Raises:
        StatusError: INVALID_ARGUMENT for no outputs, for rows of outputs that have none or not
            equally many, and for types that JSON has no values for.
    """
    if not outputs:
        raise StatusError(Code.INVALID_ARGUMENT, "Cannot convert empty tensor map to JSON")
    if row_format:
        return document("predictions", listed(row_texts(outputs)))
    texts = {name: nested(array, name, 0)[0] for name, array in outputs.items()}
    return document("outputs", next(iter(texts.values())) if len(texts) == 1 else members(texts))


def row_texts(outputs: Mapping[str, Array]) -> list[str]:
    """Return each row as JSON: the only output's value, or an object of all outputs."""
    rows = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"Tensor name: {name} has no shape information "
            )
        if rows is not None and len(array) != rows:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}",
            )
        rows = len(array)
    columns = {name: nested(array, name, 1) for name, array in outputs.items()}
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [
        members(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
    ]


def nested(array: Array, name: str, axis: int) -> list[str]:
    """Return what lies behind each index of the axes before `axis`, as JSON."""
    texts = values(array.reshape(-1), name)
    for depth in range(array.ndim - 1, axis - 1, -1):
        size = array.shape[depth]
        lists = range(math.prod(array.shape[:depth]))
        texts = [listed(texts[number * size : (number + 1) * size]) for number in lists]
    return texts


def values(flat: Array, name: str) -> list[str]:
    """Return the values of an output as JSON.

    Raises:
        StatusError: INVALID_ARGUMENT for a value of a type that JSON has none for.
    """
    kind = flat.dtype.name
    if kind in ALL_DIGITS:
        return decimals(flat)
    if kind in INTEGERS:
        return list(map(str, flat.tolist()))
    if kind == "bool":
        return ["true" if value else "false" for value in flat.tolist()]
    if flat.dtype.kind in "OSU":
        return strings(flat, as_base64=name.endswith("_bytes"))
    if not flat.size:
        return []
    raise StatusError(
        Code.INVALID_ARGUMENT,
        f"Failed to write JSON value for tensor type: {type_name(data_type(flat))}",
    )


def strings(flat: Array, *, as_base64: bool) -> list[str]:
    """Return strings as JSON strings, or as objects of their bytes in base64."""
    items = [item if isinstance(item, bytes) else str(item).encode() for item in flat.tolist()]
    if as_base64:
        return [f'{{"b64": "{base64.b64encode(item).decode()}"}}' for item in items]
    return [quoted(item.decode("utf-8", "surrogateescape")) for item in items]


def decimals(flat: Array) -> list[str]:
    """Return floats as JSON numbers."""
    texts = list(map("%g".__mod__, flat.tolist()))
    exact = np.array(list(map(float, texts)), np.float64)
    with np.errstate(over="ignore", under="ignore"):
        inexact = np.flatnonzero(exact.astype(flat.dtype) != flat)
    digits = ALL_DIGITS[flat.dtype.name]
    for place, value in zip(inexact.tolist(), flat[inexact].tolist(), strict=True):
        texts[place] = digits % value
    return [
        text if "." in text or "e" in text else WORDS.get(text) or f"{text}.0" for text in texts
    ]


def listed(texts: list[str]) -> str:
    """Return JSON values as an array."""
    return f"[{', '.join(texts)}]"


def members(texts: Mapping[str, str]) -> str:
    """Return named JSON values as an object."""
    return f"{{{', '.join(f'{quoted(name)}: {text}' for name, text in texts.items())}}}"


def document(key: str, text: str) -> bytes:
    """Return an object of one member as a body."""
    return as_bytes(members({key: text}))


def error(message: str) -> bytes:
    """Return the body of an error; it is valid UTF-8 whatever the message quotes."""
    return document("error", quoted(as_bytes(message).decode("utf-8", "replace")))


def model_status(response: Any) -> bytes:
    """Return a GetModelStatusResponse as a body, the latest version first."""
    ordered = type(response)()
    for version in sorted(response.model_version_status, key=lambda status: -status.version):
        ordered.model_version_status.add().CopyFrom(version)
        ordered.model_version_status[-1].status.SetInParent()
    return json.dumps(fields(ordered), ensure_ascii=False).encode()


def model_metadata(response: Any) -> bytes:
    """Return a GetModelMetadataResponse as a body; each metadata field is a SignatureDefMap."""
    metadata = {}
    for name, packed in response.metadata.items():
        signatures = SignatureDefMap()
        packed.Unpack(signatures)
        metadata[name] = fields(signatures)
    body = {"model_spec": fields(response.model_spec), "metadata": metadata}
    return json.dumps(body, ensure_ascii=False).encode()


def fields(message: Any) -> dict[str, Any]:
    """Return a message as JSON, with every field under the name it has in its `.proto` file."""
    named: dict[str, Any] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=POOL,
    )
    return named
