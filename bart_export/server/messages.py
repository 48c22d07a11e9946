"""The messages of TensorFlow Serving's interface, without TensorFlow or its serving API.

The `.proto` files under protos/ declare what a server needs of the official ones, with the same
names and field numbers. They live in a pool of their own, `POOL`: generated modules would register
them a second time beside TensorFlow's in the same process, which protobuf refuses.

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

# A message of protobuf, its class, its descriptor or their pool: what has which fields is known at
# run time.
Message: TypeAlias = Any
# Of a text: many times what one for a server needs.
MAX_TEXT_BYTES = 1 << 20
# The library takes time by the square of backslashes in a row.
BACKSLASHES = b"\\" * 64
MAX_REASON = 300
PACKAGES = ("tensorflow", "tensorflow.serving", "google.protobuf")
DESCRIPTORS = pathlib.Path(__file__).parent / "protos" / "descriptors.binpb"


POOL: Message = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
    POOL.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Message:
    """Return the class of a message by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def enumeration(name: str) -> Message:
    """Return an enum by its full name: it has `Name`, `Value` and an attribute for each value."""
    return enum_type_wrapper.EnumTypeWrapper(POOL.FindEnumTypeByName(name))


def read_text(path: pathlib.Path, kind: Message) -> Message:
    """Return the message that a file holds as text.

    Raises:
        ConfigurationError: for a file that cannot be read, or that holds no such text.
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
    """Return a message as JSON, with every field under the name it has in its `.proto` file."""
    named: dict[str, object] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=POOL,
    )
    return named


def __getattr__(name: str) -> Message:
    """Return the class of a message, or an enum, by its own name."""
    for package in PACKAGES:
        for find in (message, enumeration):
            try:
                found = globals()[name] = find(f"{package}.{name}")
            except KeyError:
                continue
            return found
    raise AttributeError(f"No message or enum is called {name}")
