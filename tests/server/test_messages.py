"""Our messages against the official ones, field by field: so their bytes, text and JSON agree."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from support.command import python
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_service_pb2,
    prediction_log_pb2,
    prediction_service_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from bart_export.server import messages

OFFICIAL_FILES = (
    saved_model_pb2,
    get_model_metadata_pb2,
    model_service_pb2,
    prediction_log_pb2,
    prediction_service_pb2,
    model_server_config_pb2,
)
# The official Python package has no module for these.
UNPUBLISHED = {"BatchingParameters", "MonitoringConfig", "PrometheusConfig", "SSLConfig"}


def committed():
    data = messages.DESCRIPTORS.read_bytes()
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(data).file}


def ours():
    """Return the descriptors of our files, without those that come with protobuf."""
    names = [name for name in committed() if not name.startswith("google/")]
    return [messages.POOL.FindFileByName(name) for name in names]


def with_nested(message):
    yield message
    for nested in message.nested_types:
        yield from with_nested(nested)


MESSAGES = sorted(
    message.full_name
    for file in ours()
    for top in file.message_types_by_name.values()
    if top.name not in UNPUBLISHED
    for message in with_nested(top)
)


def enums():
    for file in ours():
        yield from file.enum_types_by_name.values()
        for top in file.message_types_by_name.values():
            for message in with_nested(top):
                yield from message.enum_types


ENUMS = {enum.full_name: enum for enum in enums()}


def traits(field):
    """Return what must agree for the bytes, text and JSON of a field to agree."""
    target = field.message_type or field.enum_type
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "json_name": field.json_name,
        "oneof": field.containing_oneof and field.containing_oneof.name,
        "target": target and target.full_name,
    }


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_only_official_fields(name):
    assert len(OFFICIAL_FILES) > 0  # importing them has filled the default pool
    official = descriptor_pool.Default().FindMessageTypeByName(name)
    mine = messages.POOL.FindMessageTypeByName(name)
    for field in mine.fields:
        assert traits(field) == traits(official.fields_by_name[field.name]), field.name
    assert mine.GetOptions().map_entry == official.GetOptions().map_entry


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_official_numbers(name):
    official = descriptor_pool.Default().FindEnumTypeByName(name)
    numbers = {value.name: value.number for value in official.values}
    assert {value.name: value.number for value in ENUMS[name].values}.items() <= numbers.items()


@pytest.mark.parametrize("name", ["PredictionService", "ModelService"])
def test_a_service_has_the_official_methods(name):
    full_name = f"tensorflow.serving.{name}"
    mine, official = (
        pool.FindServiceByName(full_name) for pool in (messages.POOL, descriptor_pool.Default())
    )

    def methods(service):
        return {
            method.name: (method.input_type.full_name, method.output_type.full_name)
            for method in service.methods
        }

    assert methods(mine).items() <= methods(official).items()


def test_the_committed_descriptors_are_those_of_the_proto_files(tmp_path):
    protos = messages.DESCRIPTORS.parent
    target = tmp_path / "descriptors.binpb"
    sources = ["google/protobuf/timestamp.proto", *map(str, sorted(protos.glob("*.proto")))]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", "--include_imports",
         f"--descriptor_set_out={target}", *sources],
        check=True,
    )  # fmt: skip
    compiled = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    # Another protoc may bring other options of the files that come with it.
    assert {file.name for file in compiled.file} == set(committed())
    for file in compiled.file:
        if not file.name.startswith("google/"):
            assert file == committed()[file.name]


def test_importing_the_messages_imports_no_tensorflow():
    program = (
        "import sys; from bart_export.server import messages; messages.PredictRequest();"
        "sys.exit(any(name.split('.')[0].startswith('tensorflow') for name in sys.modules))"
    )
    assert python(program).returncode == 0


def test_a_name_that_is_no_message_is_refused():
    with pytest.raises(AttributeError, match="There is no message or enum Example"):
        _ = messages.Example
