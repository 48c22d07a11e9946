"""TensorProto messages and NumPy arrays, one made of the other.

A message is read as TensorFlow reads it: `tensor_content`, or else the values of the dtype's field,
of which the last fills what is missing and those beyond the shape are ignored. Shapes come from
strangers: nothing is allocated before the message has been found to hold what it says. Strings are
arrays of dtype object that hold `bytes`.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export.server.messages import DataType, TensorProto
from bart_export.server.options import MAX_AXES, MAX_FILLED_ELEMENTS
from bart_export.server.status import Code, StatusError, invalid

Array = npt.NDArray[Any]

MAX_BYTES = np.iinfo(np.intp).max


@dataclasses.dataclass(frozen=True)
class ElementType:
    """How elements of one DataType are kept: their NumPy dtype and the field of their values.

    The field holds elements of `stored`, `width` of them to one element; where `bits` is set, their
    low bits are the element's own.
    """

    dtype: str
    field: str
    stored: str
    width: int = 1
    bits: bool = False


ELEMENT_TYPES: dict[int, ElementType] = {
    DataType.DT_FLOAT: ElementType("float32", "float_val", "float32"),
    DataType.DT_DOUBLE: ElementType("float64", "double_val", "float64"),
    DataType.DT_INT32: ElementType("int32", "int_val", "int32"),
    DataType.DT_INT16: ElementType("int16", "int_val", "int32"),
    DataType.DT_INT8: ElementType("int8", "int_val", "int32"),
    DataType.DT_UINT8: ElementType("uint8", "int_val", "int32"),
    DataType.DT_UINT16: ElementType("uint16", "int_val", "int32"),
    DataType.DT_INT64: ElementType("int64", "int64_val", "int64"),
    DataType.DT_UINT32: ElementType("uint32", "uint32_val", "uint32"),
    DataType.DT_UINT64: ElementType("uint64", "uint64_val", "uint64"),
    DataType.DT_BOOL: ElementType("bool", "bool_val", "bool"),
    DataType.DT_STRING: ElementType("object", "string_val", "object"),
    DataType.DT_HALF: ElementType("float16", "half_val", "int32", bits=True),
    DataType.DT_BFLOAT16: ElementType("bfloat16", "half_val", "int32", bits=True),
    DataType.DT_COMPLEX64: ElementType("complex64", "scomplex_val", "float32", width=2),
    DataType.DT_COMPLEX128: ElementType("complex128", "dcomplex_val", "float64", width=2),
}
DATA_TYPES = {element_type.dtype: data_type for data_type, element_type in ELEMENT_TYPES.items()}


def type_name(data_type: int) -> str:
    """Return TensorFlow's name of a DataType, as in its messages: "float", "string", "half"."""
    try:
        name: str = DataType.Name(data_type)
    except ValueError:
        return f"unknown dtype enum ({data_type})"
    return name.removeprefix("DT_") if data_type == DataType.DT_INVALID else name[3:].lower()


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """Return the NumPy dtype of a DataType; strings have dtype object."""
    if data_type not in ELEMENT_TYPES:
        raise StatusError(Code.UNIMPLEMENTED, f"Tensors of type {type_name(data_type)}")
    name = ELEMENT_TYPES[data_type].dtype
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise StatusError(
            Code.UNIMPLEMENTED, "Tensors of type bfloat16 need the package ml_dtypes"
        ) from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def data_type(array: Array) -> int:
    """Return the DataType of an array: object, bytes and str arrays are strings."""
    name = "object" if array.dtype.kind in "OSU" else array.dtype.name
    if name not in DATA_TYPES:
        raise StatusError(Code.INTERNAL, f"Expected a tensor of TensorFlow, received {name}")
    return DATA_TYPES[name]


def from_proto(proto: Any, name: str) -> Array:
    """Return a TensorProto as an array, which may be read-only.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the tensor, for a message whose shape, dtype and
            content do not fit together, or that fills more than `MAX_FILLED_ELEMENTS` from fewer.
    """
    axes = proto.tensor_shape.dim
    shape = tuple(axis.size for axis in axes[: MAX_AXES + 1])
    flat = None
    if proto.dtype in ELEMENT_TYPES:
        dtype = numpy_dtype(proto.dtype)
        if is_possible(shape, dtype):
            flat = elements(proto, dtype, math.prod(shape))
    if flat is None:
        raise invalid(f"tensor parsing error: {name}")
    return flat.reshape(shape)


def check_rows(name: str, rows: int, most: int) -> None:
    """Hold the rows of an input to what a request may have."""
    if rows > most:
        raise invalid(
            f"Expected {name} to have at most {most} rows, received {rows}. Send several requests, "
            "or start the server with a larger --max-request-rows."
        )


def is_possible(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Say whether NumPy can have an array of a shape; to it, an empty axis saves no others."""
    extent = math.prod(size for size in shape if size) * dtype.itemsize
    return len(shape) <= MAX_AXES and min(shape, default=0) >= 0 and extent <= MAX_BYTES


def elements(proto: Any, dtype: np.dtype[Any], size: int) -> Array | None:
    """Return the `size` elements of a TensorProto, or None if it does not hold them."""
    if size == 0:
        return np.empty(0, dtype)
    content: bytes = proto.tensor_content
    if content:
        return from_content(content, dtype, size)
    element_type = ELEMENT_TYPES[proto.dtype]
    values = getattr(proto, element_type.field)
    if size > max(MAX_FILLED_ELEMENTS, len(values)):
        return None
    return from_values(values, element_type, dtype, size)


def from_content(content: bytes, dtype: np.dtype[Any], size: int) -> Array | None:
    """Return the elements that `tensor_content` holds, or None if it is not of their size."""
    if dtype.kind == "O":
        return None  # strings stand in their own field
    if len(content) != size * dtype.itemsize:
        return None
    array: Array = np.frombuffer(content, np.uint8 if dtype.kind == "b" else dtype)
    # A byte beside 0 and 1 would make a bool that equals neither.
    return array.astype(bool) if dtype.kind == "b" else array


def from_values(values: Any, element_type: ElementType, dtype: np.dtype[Any], size: int) -> Array:
    """Return `size` elements from a field of values; the last one fills what is missing."""
    wanted = size * element_type.width
    flat: Array
    if dtype.kind == "O":
        flat = string_array(values[:wanted])
    else:
        flat = np.array(values, element_type.stored)[:wanted]
        if element_type.bits:
            flat = flat.astype(np.uint16).view(dtype)
        elif element_type.width > 1:
            flat = flat[: len(flat) // element_type.width * element_type.width].view(dtype)
        else:
            flat = flat.astype(dtype, copy=False)
    if len(flat) == size:
        return flat
    filled = np.full(size, b"", dtype) if dtype.kind == "O" else np.zeros(size, dtype)
    if len(flat):
        filled[: len(flat)] = flat
        filled[len(flat) :] = flat[-1]
    return filled


def string_array(strings: Iterable[bytes]) -> Array:
    """Return an array (number of strings,) of dtype object."""
    listed = list(strings)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def to_proto(array: Array, *, as_content: bool = False) -> Any:
    """Return an array as a TensorProto.

    Values go into the field of their dtype, where clients look for them, or with `as_content` into
    `tensor_content`; strings always into `string_val`.
    """
    proto = TensorProto(dtype=data_type(array))
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    element_type = ELEMENT_TYPES[proto.dtype]
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1)
    values = getattr(proto, element_type.field)
    if element_type.dtype == "object":
        values.extend(item if isinstance(item, bytes) else str(item).encode() for item in flat)
    elif as_content:
        proto.tensor_content = flat.tobytes()
    elif element_type.stored in ("float32", "float64"):
        proto.MergeFromString(packed(proto, element_type, flat))
    else:
        bits = flat.view(np.uint16) if element_type.bits else flat
        values.extend(bits.tolist())
    return proto


def packed(proto: Any, element_type: ElementType, flat: Array) -> bytes:
    """Return a field of floats as it stands in a message: as many bytes as the array, at once.

    `extend` would make a Python float of each: 45 ms for a million, this 3 ms.
    """
    number = proto.DESCRIPTOR.fields_by_name[element_type.field].number
    data = flat.view(element_type.stored).tobytes()
    length_delimited = 2  # https://protobuf.dev/programming-guides/encoding/#structure
    return varint(number << 3 | length_delimited) + varint(len(data)) + data


def varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
