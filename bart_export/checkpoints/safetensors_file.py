"""The safetensors format: a length, a JSON header, raw little-endian values.

Flows in: a path. Flows out: the tensors its header announces, as lazily read entries. Every claim
of the header is checked against the file before anything is read.
Format: https://huggingface.co/docs/safetensors
"""

import json
import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bart_export.checkpoints.weights_check import Array, Entry
from bart_export.errors import CheckpointError, MissingExtra, shown

HEADER_LIMIT = 16_000_000  # bytes; a thousand layers have a quarter of it

# The format's word, NumPy's word, bytes a value.
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file, without reading any value.

    Raises:
        CheckpointError: when the file is truncated, is something else, or its header lies.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(size - 8, HEADER_LIMIT):
                raise damaged(path, f"{size} bytes, and no header of {length} bytes in them")
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    data = 8 + length
    entries = {}
    spans = []
    for name, described in header.items():
        entry, begin, end = read_description(path, name, described, data)
        entries[name] = entry
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise damaged(path, f"its tensors leave a gap or overlap at byte {data + position}")
        position = end
    if data + position != size:
        raise damaged(path, f"its header announces {data + position} bytes, and it has {size}")
    return entries


def read_description(path: Path, name: str, described: Any, data: int) -> tuple[Entry, int, int]:
    """Return one tensor of the header and where its values begin and end after byte `data`."""
    try:
        dtype, width = DTYPES[described["dtype"]]
        shape = tuple(described["shape"])
        begin, end = described["data_offsets"]
        sizes = (*shape, begin, end)
        sound = all(type(number) is int and number >= 0 for number in sizes)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"its header describes {shown(name)} as {shown(described)}") from error
    if not sound or end - begin != math.prod(shape) * width:
        raise damaged(path, f"its header describes {shown(name)} as {shown(described)}")
    return (
        Entry(path, shape, dtype, partial(read_values, path, shape, dtype, data + begin)),
        begin,
        end,
    )


def read_values(path: Path, shape: tuple[int, ...], dtype: str, offset: int) -> Array:
    """Read one tensor."""
    count = math.prod(shape)
    try:
        values = np.fromfile(path, numpy_dtype(dtype).newbyteorder("<"), count, offset=offset)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    if values.size != count:
        raise damaged(path, "it was cut short while being read")
    return values.reshape(shape)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype, with ml_dtypes for those it does not have."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtra("Reading bfloat16 weights", "ml_dtypes", "export") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def damaged(path: Path, fault: str) -> CheckpointError:
    """Return the error of a file that is no whole safetensors file."""
    return CheckpointError(
        f"{path} is not a whole safetensors file ({fault}); it is damaged or was not downloaded "
        "whole. Fetch it again."
    )
