"""The JSON bodies of REST responses: outputs, errors, status and metadata.

Standard JSON, but for the words NaN, Infinity and -Infinity, which TensorFlow Serving writes for
floats, too. A float32 has the fewest digits that give it back. Strings are text, with U+FFFD for
bytes that are not UTF-8, or base64 if the output's name ends in `_bytes`.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format

from bart_export.server.messages import POOL, SignatureDefMap
from bart_export.server.options import MAX_JSON_VALUES
from bart_export.server.status import Code, StatusError
from bart_export.server.tensors import Array, data_type, type_name

# Values that are written at once: other threads have their turn in between.
CHUNK = 4096
ERROR_CHARACTERS = 1024


def predictions(outputs: Mapping[str, Array], *, row_format: bool) -> bytes:
    """Return the outputs of a signature: by rows as `predictions`, or by columns as `outputs`.

    Raises:
        StatusError: INVALID_ARGUMENT for no outputs, for rows of outputs that have none or not
            equally many, for types that JSON has no values for, and for more values than are
            written.
    """
    if not outputs:
        raise StatusError(Code.INVALID_ARGUMENT, "Cannot convert empty tensor map to JSON")
    # An empty axis saves no brackets.
    values = sum(math.prod(max(1, size) for size in array.shape) for array in outputs.values())
    if values > MAX_JSON_VALUES:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"The answer has {values} values, and over REST at most {MAX_JSON_VALUES} are sent. "
            "Ask for fewer rows at once, or over gRPC.",
        )
    if row_format:
        return document("predictions", by_rows(outputs))
    texts = {name: written(array, name) for name, array in outputs.items()}
    return document("outputs", next(iter(texts.values())) if len(texts) == 1 else members(texts))


def by_rows(outputs: Mapping[str, Array]) -> str:
    """Return a list of rows: the only output's values, or objects of all outputs."""
    count = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"Tensor name: {name} has no shape information "
            )
        if count not in (None, len(array)):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {count}",
            )
        count = len(array)
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return written(array, name)
    return listed(
        members(
            {
                name: written(array[row : row + 1].reshape(array.shape[1:]), name)
                for name, array in outputs.items()
            }
        )
        for row in range(count or 0)
    )


def written(array: Array, name: str) -> str:
    """Return an array, the output `name` or a part of it, as nested lists.

    Raises:
        StatusError: INVALID_ARGUMENT for an array of a type that JSON has no values for.
    """
    if array.ndim == 0:
        return written(array.reshape(1), name)[1:-1]
    if array.ndim > 1:
        return listed(written(part, name) for part in array)
    starts = range(0, len(array), CHUNK)
    return listed(json_text(values(array[start : start + CHUNK], name))[1:-1] for start in starts)


def values(flat: Array, name: str) -> list[Any]:
    """Return the values of an output, (number,), as Python has them for JSON."""
    kind = flat.dtype.kind
    if kind in "OSU":
        items = [item if isinstance(item, bytes) else str(item).encode() for item in flat.tolist()]
        if name.endswith("_bytes"):
            return [{"b64": base64.b64encode(item).decode()} for item in items]
        return [item.decode("utf-8", "replace") for item in items]
    if kind not in "biuf":
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"Failed to write JSON value for tensor type: {type_name(data_type(flat))}",
        )
    # Text has the fewest digits of a float of its own width.
    short = kind == "f" and flat.dtype.itemsize < 8
    listed_values: list[Any] = (flat.astype("U32").astype(np.float64) if short else flat).tolist()
    return listed_values


def json_text(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def listed(texts: Iterable[str]) -> str:
    """Return JSON values as an array."""
    return f"[{', '.join(texts)}]"


def members(texts: Mapping[str, str]) -> str:
    """Return named JSON values as an object."""
    return f"{{{', '.join(f'{json_text(name)}: {text}' for name, text in texts.items())}}}"


def document(key: str, text: str) -> bytes:
    """Return an object of one member as a body."""
    return members({key: text}).encode("utf-8", "replace")


def error(message: str) -> bytes:
    """Return the body of an error; a message that quotes much is cut."""
    cut = message if len(message) <= ERROR_CHARACTERS else f"{message[:ERROR_CHARACTERS]} ..."
    return document("error", json_text(cut))


def model_status(response: Any) -> bytes:
    """Return a GetModelStatusResponse as a body, the latest version first."""
    ordered = type(response)()
    for version in sorted(response.model_version_status, key=lambda status: -status.version):
        ordered.model_version_status.add().CopyFrom(version)
        ordered.model_version_status[-1].status.SetInParent()
    return json_text(fields(ordered)).encode()


def model_metadata(response: Any) -> bytes:
    """Return a GetModelMetadataResponse as a body; each metadata field is a SignatureDefMap."""
    metadata = {}
    for name, packed in response.metadata.items():
        signatures = SignatureDefMap()
        packed.Unpack(signatures)
        metadata[name] = fields(signatures)
    return json_text({"model_spec": fields(response.model_spec), "metadata": metadata}).encode()


def fields(message: Any) -> dict[str, Any]:
    """Return a message as JSON, with every field under the name it has in its `.proto` file."""
    named: dict[str, Any] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=POOL,
    )
    return named
