"""The messages of TensorFlow Serving's API, without TensorFlow or tensorflow-serving-api.

The `.proto` files under protos/ declare the parts of the official ones that a server needs, with
the same names and field numbers. They have their own descriptor pool, `POOL`, because protobuf
refuses to register them beside TensorFlow's in the default pool.

After a change of a `.proto` file:

    python -m grpc_tools.protoc -Ibart_export/server/protos --include_imports \\
        --descriptor_set_out=bart_export/server/protos/descriptors.binpb \\
        google/protobuf/timestamp.proto bart_export/server/protos/*.proto
"""

import pathlib
from typing import Any, TypeAlias

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
        with documents.open_regular(path) as file:
            text = file.read(MAX_TEXT_BYTES + 1)
        if len(text) > MAX_TEXT_BYTES:
            raise ValueError(f"it has more than {MAX_TEXT_BYTES} bytes")
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
