"""Messages against the official ones, and tensors against TensorFlow's own conversion."""

import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from support.command import python
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_service_pb2,
    prediction_log_pb2,
    prediction_service_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from bart_export.server import messages
from bart_export.server.messages import DataType, TensorProto
from bart_export.server.status import Code, StatusError

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


ARRAYS = {
    "float32": np.array([[1.5, -0.0, np.nan], [np.inf, 1e-45, 3e38]], np.float32),
    "float64": np.array([0.1, -np.inf], np.float64),
    "int32": np.array([-(2**31), 0, 2**31 - 1], np.int32),
    "int16": np.array([-(2**15), 5], np.int16),
    "int8": np.array([-128, 127], np.int8),
    "uint8": np.array([0, 255], np.uint8),
    "uint16": np.array([0, 65535], np.uint16),
    "int64": np.array([-(2**63), 2**63 - 1], np.int64),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 2**64 - 1], np.uint64),
    "bool": np.array([True, False, True]),
    "float16": np.array([1.5, -65504.0, np.inf], np.float16),
    "bfloat16": np.array([1.5, -3e38], ml_dtypes.bfloat16),
    "string": np.array([b"a", b"", b"\xff\x00" * 200], object),
    "scalar": np.array(7, np.int32),
    "empty": np.zeros((2, 0, 3), np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "no strings": np.zeros((0,), object),
}


def parsed_by_tensorflow(proto):
    """Return a TensorProto parsed by TensorFlow."""
    return tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype)).numpy()


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_what_tensorflow_reads_and_what_it_was(name, as_content):
    array = ARRAYS[name]
    proto = messages.tensor_proto(array, as_content=as_content)
    assert (proto.tensor_content != b"") == (
        as_content and array.dtype.kind != "O" and array.size > 0
    )
    for read in (parsed_by_tensorflow(proto), messages.to_array(proto, "x")):
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(read), array)


@pytest.mark.parametrize("name", ARRAYS)
def test_what_tensorflow_writes_is_read(name):
    array = ARRAYS[name]
    written = [tf.make_tensor_proto(array)]  # content, but for strings
    with_content = tensor_pb2.TensorProto.FromString(
        tf.io.serialize_tensor(tf.constant(array)).numpy()
    )
    for proto in [*written, with_content]:
        read = messages.to_array(TensorProto.FromString(proto.SerializeToString()), "x")
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_every_dtype_is_in_the_cases_above():
    read = {messages.data_type_of(array) for array in ARRAYS.values()}
    assert read == set(messages.ELEMENTS)


def test_strings_of_numpy_are_strings():
    for array in (np.array(["ä", "b"]), np.array([b"\xc3\xa4", b"b"]), np.array(["ä", b"b"], "O")):
        proto = messages.tensor_proto(array)
        assert list(proto.string_val) == ["ä".encode(), b"b"]


# Fewer or more values than the shape has.
LENIENT = [
    "dtype: DT_FLOAT tensor_shape { dim { size: 4 } } float_val: [1, 2]",
    "dtype: DT_FLOAT tensor_shape { dim { size: 2 } }",
    "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: [1, 2, 3]",
    "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } int_val: [1, 2]",
    "dtype: DT_FLOAT float_val: 3",
    "dtype: DT_FLOAT tensor_shape { unknown_rank: true } float_val: 1",
    "dtype: DT_STRING tensor_shape { dim { size: 3 } } string_val: 'a' string_val: 'b'",
    "dtype: DT_STRING tensor_shape { dim { size: 2 } }",
    "dtype: DT_STRING tensor_shape { dim { size: 1 } } string_val: 'a' string_val: 'b'",
    "dtype: DT_INT8 tensor_shape { dim { size: 2 } } int_val: [300, -129]",
    "dtype: DT_UINT16 tensor_shape { dim { size: 2 } } int_val: [-1, 65536]",
    "dtype: DT_BOOL tensor_shape { dim { size: 2 } } bool_val: true",
    "dtype: DT_HALF tensor_shape { dim { size: 2 } } half_val: 15360",
    "dtype: DT_BFLOAT16 tensor_shape { dim { size: 2 } } half_val: [16256, 16320]",
    "dtype: DT_INT64 tensor_shape { dim { size: 0 } } int64_val: 3",
    "dtype: DT_INT64 tensor_shape { dim { size: 0 } } tensor_content: 'abc'",
    "dtype: DT_INT64 tensor_shape { dim { size: 2 } } tensor_content: "
    "'\\001\\000\\000\\000\\000\\000\\000\\000\\002\\000\\000\\000\\000\\000\\000\\000'",
]


@pytest.mark.parametrize("text", LENIENT)
def test_surplus_and_missing_values_are_taken_as_tensorflow_takes_them(text):
    proto = text_format.Parse(text, TensorProto())
    expected = parsed_by_tensorflow(proto)
    read = messages.to_array(proto, "x")
    np.testing.assert_array_equal(read, np.asarray(expected))
    assert read.dtype == np.asarray(expected).dtype
    assert read.shape == np.shape(expected)


# Refused by TensorFlow as well.
MALFORMED = [
    "tensor_shape { dim { size: 1 } }",
    "dtype: DT_FLOAT tensor_shape { dim { size: -1 } } float_val: 1",
    "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: 'abcdefg'",
    "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: 'abcdefghi'",
    "dtype: DT_FLOAT tensor_shape { dim { size: 4294967296 } dim { size: 4294967296 } }",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_tensorflow_refuses_a_malformed_tensor(text):
    proto = text_format.Parse(text, TensorProto())
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError, TypeError)):
        tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype or 1))


# Small messages with huge shapes or with shapes and types that NumPy lacks.
HOSTILE = [
    "dtype: DT_FLOAT tensor_shape { dim { size: 1000000000 } } float_val: 1",
    "dtype: DT_STRING tensor_shape { dim { size: 1000000000 } }",
    "dtype: DT_STRING tensor_shape { dim { size: 1000000000 } } tensor_content: 'abc'",
    "dtype: DT_FLOAT tensor_shape { dim { size: 9223372036854775807 } } tensor_content: 'abc'",
    "dtype: DT_FLOAT tensor_shape { dim { size: 0 } dim { size: 9223372036854775807 } }",
    "dtype: DT_QINT8 tensor_shape { dim { size: 1 } } int_val: 1",
    "dtype: DT_RESOURCE tensor_shape { dim { size: 1 } }",
    "dtype: 101 tensor_shape { dim { size: 1 } }",
    "dtype: DT_FLOAT float_val: 1 tensor_shape { " + "dim { size: 1 }" * 65 + " }",
]


@pytest.mark.parametrize("text", MALFORMED + HOSTILE)
def test_a_tensor_is_refused_by_name_without_much_work(text):
    proto = TensorProto()
    if "101" in text:
        proto.dtype = 101
    else:
        text_format.Parse(text, proto)
    begun = time.process_time()
    with pytest.raises(StatusError, match="^tensor parsing error: ids$") as raised:
        messages.to_array(proto, "ids")
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert time.process_time() - begun < 0.5


def test_a_tensor_is_filled_up_to_a_bound():
    proto = TensorProto(dtype=DataType.DT_INT8, int_val=[3])
    proto.tensor_shape.dim.add(size=messages.MAX_FILLED_ELEMENTS)
    assert (messages.to_array(proto, "x") == 3).all()
    proto.tensor_shape.dim[0].size += 1
    with pytest.raises(StatusError):
        messages.to_array(proto, "x")
    array = np.zeros(messages.MAX_FILLED_ELEMENTS + 1, np.float32)  # which is not filled
    assert messages.to_array(messages.tensor_proto(array), "x").shape == array.shape


def test_other_bytes_than_0_and_1_are_true():
    proto = TensorProto(dtype=DataType.DT_BOOL, tensor_content=b"\x00\x02\xff")
    proto.tensor_shape.dim.add(size=3)
    read = messages.to_array(proto, "x")
    assert read.view(np.uint8).tolist() == [0, 1, 1]


def test_types_that_tensors_cannot_have_are_named():
    assert messages.type_name(DataType.DT_INVALID) == "INVALID"
    assert messages.type_name(DataType.DT_RESOURCE) == "resource"
    assert messages.type_name(101) == "unknown dtype enum (101)"
    with pytest.raises(StatusError, match="Tensors of type resource") as raised:
        messages.numpy_dtype(DataType.DT_RESOURCE)
    assert raised.value.code is Code.UNIMPLEMENTED


def test_an_array_that_tensorflow_cannot_have_is_an_error_of_ours():
    with pytest.raises(StatusError, match="datetime64") as raised:
        messages.tensor_proto(np.array(["2026-01-01"], "datetime64[D]"))
    assert raised.value.code is Code.INTERNAL


def test_bfloat16_without_tensorflow_is_refused():
    program = (
        "from bart_export.server import messages, status\n"
        "messages.to_array(messages.TensorProto(dtype=1), 'x')\n"
        "try: messages.to_array(messages.TensorProto(dtype=14), 'x')\n"
        "except status.StatusError as error: print(error)"
    )
    run = python(program)
    assert run.stdout == "Tensors of type bfloat16\n", run.stderr
