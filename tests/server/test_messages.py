"""Our messages against the official ones: descriptors, bytes, text and JSON."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_service_pb2,
    predict_pb2,
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
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(
    "name", ["google.protobuf.Any", "google.protobuf.Int64Value", "google.protobuf.Timestamp"]
)
def test_what_comes_with_protobuf_is_in_the_pool(name):
    assert messages.POOL.FindMessageTypeByName(name).file.pool is messages.POOL


REQUEST = """
model_spec { name: "bart" version { value: 12 } signature_name: "generate" }
inputs { key: "text" value {
  dtype: DT_STRING tensor_shape { dim { size: 2 } } string_val: "a" string_val: "\\377" } }
inputs { key: "ids" value {
  dtype: DT_INT32 tensor_shape { dim { size: 3 name: "n" } } int_val: [1, -1, 7] } }
output_filter: "scores"
"""
LOG = """
predict_log { request { model_spec { version_label: "stable" } inputs { key: "x" value {
  dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: [0.5, 2] } } } }
"""
MODELS = """
model_config_list { config {
  name: "bart" base_path: "/models/bart" model_platform: "tensorflow"
  model_version_policy { specific { versions: 1 versions: 2 } }
  version_labels { key: "stable" value: 1 }
  logging_config { log_collector_config { type: "x" filename_prefix: "/log" }
    sampling_config { per_task_sampling_configs { task_index: 0 } } } } }
"""
ROUND_TRIPS = [
    (REQUEST, messages.PredictRequest, predict_pb2.PredictRequest),
    (LOG, messages.PredictionLog, prediction_log_pb2.PredictionLog),
    (MODELS, messages.ModelServerConfig, model_server_config_pb2.ModelServerConfig),
]


@pytest.mark.parametrize(("text", "mine", "official"), ROUND_TRIPS)
def test_bytes_text_and_json_are_those_of_the_official_message(text, mine, official):
    message, expected = text_format.Parse(text, mine()), text_format.Parse(text, official())
    assert message.ByteSize() > 0
    assert official.FromString(message.SerializeToString()) == expected
    assert mine.FromString(expected.SerializeToString()) == message
    assert text_format.MessageToString(message) == text_format.MessageToString(expected)
    assert json_format.MessageToDict(message, descriptor_pool=messages.POOL) == (
        json_format.MessageToDict(expected)
    )


def test_fields_we_do_not_declare_are_kept():
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.request.fetch.append("y:0")
    mine = messages.PredictionLog.FromString(log.SerializeToString())
    assert mine.WhichOneof("log_type") is None
    assert prediction_log_pb2.PredictionLog.FromString(mine.SerializeToString()) == log


def test_a_name_that_is_no_message_is_refused():
    with pytest.raises(AttributeError, match="No message or enum is called Example"):
        _ = messages.Example


def test_metadata_is_packed_under_the_official_type():
    response = messages.GetModelMetadataResponse()
    signatures = messages.SignatureDefMap()
    signatures.signature_def["generate"].method_name = "tensorflow/serving/predict"
    response.metadata["signature_def"].Pack(signatures)
    official = get_model_metadata_pb2.GetModelMetadataResponse.FromString(
        response.SerializeToString()
    )
    unpacked = get_model_metadata_pb2.SignatureDefMap()
    assert official.metadata["signature_def"].Unpack(unpacked)
    assert list(unpacked.signature_def) == ["generate"]


BATCHING = """
max_batch_size { value: 8 } batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 4 } num_batch_threads { value: 2 }
thread_pool_name { value: "batches" } allowed_batch_sizes: 1 allowed_batch_sizes: 8
pad_variable_length_inputs: true enable_large_batch_splitting { value: true }
max_execution_batch_size { value: 4 }
"""
MONITORING = 'prometheus_config { enable: true path: "/metrics" }'
SSL = 'server_key: "-----BEGIN" server_cert: "-----BEGIN" custom_ca: "" client_verify: true'


@pytest.mark.parametrize(
    ("text", "message", "fields"),
    [
        (BATCHING, messages.BatchingParameters, 9),
        (MONITORING, messages.MonitoringConfig, 1),
        (SSL, messages.SSLConfig, 4),
    ],
)
def test_files_of_unpublished_messages_are_read(text, message, fields):
    parsed = text_format.Parse(text, message())
    assert text_format.Parse(text_format.MessageToString(parsed), message()) == parsed
    assert len(message.DESCRIPTOR.fields) == fields
    assert {field.name for field, _ in parsed.ListFields()} >= {
        field.name for field in message.DESCRIPTOR.fields if field.name != "custom_ca"
    }
