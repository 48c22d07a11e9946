"""The messages of TensorFlow Serving's API, and their tensors as NumPy arrays.

The `.proto` files under protos/ declare the parts of the official ones that a server needs, with
the same names and field numbers. They have their own descriptor pool, `POOL`, because protobuf
refuses to register them beside TensorFlow's in the default pool. Neither TensorFlow nor
tensorflow-serving-api is imported. Strings are arrays of `bytes` with dtype object.

After a change of a `.proto` file:

    python -m grpc_tools.protoc -Ibart_export/server/protos --include_imports \\
        --descriptor_set_out=bart_export/server/protos/descriptors.binpb \\
        google/protobuf/timestamp.proto bart_export/server/protos/*.proto
"""

import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    text_format,
)
from google.protobuf.internal import enum_type_wrapper

from bart_export import documents
from bart_export.errors import ConfigurationError
from bart_export.server.options import MAX_AXES, MAX_FILLED_ELEMENTS
from bart_export.server.status import Code, StatusError, invalid

# A protobuf message, class, descriptor or pool, whose fields are known only at run time.
Message: TypeAlias = Any
# Configuration files are far smaller.
MAX_TEXT_BYTES = 1 << 20
# The time to parse n backslashes in a row is quadratic in n.
BACKSLASHES = b"\\" * 64
MAX_REASON = 300
PACKAGES = ("tensorflow", "tensorflow.serving", "google.protobuf")
DESCRIPTORS = pathlib.Path(__file__).parent / "protos" / "descriptors.binpb"


POOL: Message = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
    POOL.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Message:
    """Return a message class by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def enumeration(name: str) -> Message:
    """Return an enum by its full name, with `Name`, `Value` and an attribute for each value."""
    return enum_type_wrapper.EnumTypeWrapper(POOL.FindEnumTypeByName(name))


def read_text(path: pathlib.Path, kind: Message) -> Message:
    """Return the message in a file of protobuf text.

    Raises:
        ConfigurationError: for a file that cannot be read or parsed.
    """
    try:
        text = documents.read_bounded(path, MAX_TEXT_BYTES)
        if BACKSLASHES in text:
            raise ValueError(f"it has {len(BACKSLASHES)} backslashes in a row")
        return text_format.Parse(text.decode(), kind(), descriptor_pool=POOL)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except (text_format.ParseError, ValueError) as error:
        reason = str(error)[:MAX_REASON]
    except RecursionError:
        reason = "it is nested too deeply"
    raise ConfigurationError(f"{path} must hold a {kind.DESCRIPTOR.full_name} as text: {reason}")


def to_dict(message: Message) -> dict[str, object]:
    """Return a message as a JSON object with all its fields, named as in the `.proto` file."""
    named: dict[str, object] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=POOL,
    )
    return named


Array: TypeAlias = npt.NDArray[Any]
DataType: Message = enumeration("tensorflow.DataType")
TensorProto: Message = message("tensorflow.TensorProto")
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


def data_type_of(array: Array) -> int:
    """Return the DataType of an array; object, bytes and str arrays are strings."""
    name = "object" if array.dtype.kind in "OSU" else array.dtype.name
    if name not in DATA_TYPES:
        raise StatusError(Code.INTERNAL, f"Expected a dtype of TensorFlow, received {name}")
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


def to_array(proto: Message, name: str) -> Array:
    """Return a TensorProto as an array, which may be read-only.

    As in TensorFlow, `tensor_content` overrides the dtype's field. The field's last value fills
    missing elements, and surplus values are ignored.

    Raises:
        StatusError: INVALID_ARGUMENT if shape, dtype and content do not match, or if more than
            `MAX_FILLED_ELEMENTS` elements would be filled.
    """
    shape = tuple(axis.size for axis in proto.tensor_shape.dim[: MAX_AXES + 1])
    try:
        if len(shape) <= MAX_AXES and min(shape, default=0) >= 0 and proto.dtype in ELEMENTS:
            return elements(proto, math.prod(shape)).reshape(shape)
    except ValueError:  # the content does not match the shape, or NumPy does not allow it
        pass
    raise invalid(f"tensor parsing error: {name}")


def elements(proto: Message, size: int) -> Array:
    """Return the elements (size,) of a TensorProto; `tensor_content` may hold more or fewer."""
    dtype, (_, field) = numpy_dtype(proto.dtype), ELEMENTS[proto.dtype]
    if size == 0:
        return np.empty(0, dtype)
    if proto.tensor_content:
        is_bool = dtype.kind == "b"  # as a bool, a byte such as 2 equals neither value
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


def check_rows(name: str, rows: int, most: float) -> None:
    """Raise StatusError for an input with too many rows."""
    if rows > most:
        raise invalid(
            f"Expected {name} to have at most {most} rows, received {rows}. Send several requests, "
            "or start the server with a larger --max-request-rows."
        )


def tensor_proto(array: Array, *, as_content: bool = False) -> Message:
    """Return an array as a TensorProto.

    Values are in the dtype's field, as clients expect, or with `as_content` in `tensor_content`.
    Strings are always in `string_val`.
    """
    dims = [{"size": size} for size in array.shape]
    proto = TensorProto(dtype=data_type_of(array), tensor_shape={"dim": dims})
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


def __getattr__(name: str) -> Message:
    """Return a message class or an enum by its short name."""
    for package in PACKAGES:
        for find in (message, enumeration):
            try:
                found = globals()[name] = find(f"{package}.{name}")
            except KeyError:
                continue
            return found
    raise AttributeError(f"There is no message or enum {name}")
