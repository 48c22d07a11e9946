"""Bodies of REST responses, read back and as they are written."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bart_export.server import json_body
from bart_export.server.messages import (
    DataType,
    GetModelMetadataResponse,
    GetModelStatusResponse,
    SignatureDefMap,
)
from bart_export.server.status import Code, StatusError


def rows(**outputs):
    return json_body.predictions(outputs, row_format=True)


def columns(**outputs):
    return json_body.predictions(outputs, row_format=False)


# The fewest digits that give a number of its width back; the words are TensorFlow Serving's.
FLOATS = [
    ("float32", 0.0, "0.0"),
    ("float32", -0.0, "-0.0"),
    ("float32", 1.0, "1.0"),
    ("float32", 0.2, "0.2"),
    ("float32", 1 / 3, "0.33333334"),
    ("float32", 9e6, "9000000.0"),
    ("float32", 3e-5, "3e-05"),
    ("float32", 3.4028235e38, "3.4028235e+38"),
    ("float32", 1e-45, "1e-45"),
    ("float32", np.nan, "NaN"),
    ("float32", np.inf, "Infinity"),
    ("float32", -np.inf, "-Infinity"),
    ("float16", 0.1, "0.1"),
    ("float64", 0.1, "0.1"),
    ("float64", 1 / 3, "0.3333333333333333"),
    ("float64", 1e300, "1e+300"),
    ("float64", np.nan, "NaN"),
    ("float64", -np.inf, "-Infinity"),
]


@pytest.mark.parametrize(("dtype", "value", "text"), FLOATS)
def test_a_float_is_written_with_its_digits(dtype, value, text):
    assert columns(x=np.array(value, dtype)) == f'{{"outputs": {text}}}'.encode()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_float_is_read_back(dtype):
    bits = np.random.default_rng(0).integers(0, 2**63, 20_000, np.uint64)
    array = bits.view(dtype)
    read = json.loads(rows(x=array))["predictions"]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.array(read).astype(dtype), array)


VALUES = [
    ("int64", [-(2**63), 2**63 - 1], "[-9223372036854775808, 9223372036854775807]"),
    ("uint64", [2**64 - 1], "[18446744073709551615]"),
    ("int8", [-128], "[-128]"),
    ("uint8", [255], "[255]"),
    ("uint32", [2**32 - 1], "[4294967295]"),
    ("int32", [[1, 2], [3, 4]], "[[1, 2], [3, 4]]"),
    ("bool", [True, False], "[true, false]"),
    ("object", [b"a", b""], '["a", ""]'),
    ("object", [b'"\\/\n\x01\x7f'], '["\\"\\\\/\\n\\u0001\x7f"]'),
    ("object", ["é".encode(), b"\xf0\x9f\x98\x80"], '["é", "😀"]'),
    ("float32", [], "[]"),
    ("float16", [], "[]"),
    ("int32", [[], []], "[[], []]"),
    ("float32", [[[1.5], [2.0]]], "[[[1.5], [2.0]]]"),
]


@pytest.mark.parametrize(("dtype", "value", "text"), VALUES)
def test_one_output_is_a_list(dtype, value, text):
    array = np.array(value, dtype)
    assert rows(x=array) == f'{{"predictions": {text}}}'.encode()
    assert columns(x=array) == f'{{"outputs": {text}}}'.encode()


def test_empty_axes_are_empty_lists():
    assert rows(x=np.zeros((0, 3), np.float32)) == b'{"predictions": []}'
    assert rows(x=np.zeros((2, 0, 3), np.float32)) == b'{"predictions": [[], []]}'
    assert rows(x=np.zeros((1, 2, 0), np.float32)) == b'{"predictions": [[[], []]]}'


def test_strings_are_text():
    array = np.array([b"\xff\xc3\xa9", b"a\0"], object)
    assert json.loads(columns(x=array)) == {"outputs": ["\ufffd\u00e9", "a\0"]}
    assert json.loads(rows(x=array, y=array)) == {
        "predictions": [{"x": "\ufffd\u00e9", "y": "\ufffd\u00e9"}, {"x": "a\0", "y": "a\0"}]
    }


def test_strings_of_outputs_named_bytes_are_base64():
    array = np.array([b"\xff\xef", b"a", b""], object)
    expected = [{"b64": "/+8="}, {"b64": "YQ=="}, {"b64": ""}]
    assert json.loads(rows(x_bytes=array)) == {"predictions": expected}
    assert json.loads(columns(x_bytes=array)) == {"outputs": expected}
    assert json.loads(rows(x_bytes=np.array([1]))) == {"predictions": [1]}


def test_several_outputs_are_objects():
    outputs = {"a": np.array([1, 2]), 'b"': np.array([[b"x"], [b"y"]], object)}
    assert json.loads(json_body.predictions(outputs, row_format=True)) == {
        "predictions": [{"a": 1, 'b"': ["x"]}, {"a": 2, 'b"': ["y"]}]
    }
    assert json.loads(json_body.predictions(outputs, row_format=False)) == {
        "outputs": {"a": [1, 2], 'b"': [["x"], ["y"]]}
    }


def test_columns_may_be_scalars_and_of_different_lengths():
    body = columns(a=np.array(1), b=np.array([1, 2]))
    assert json.loads(body) == {"outputs": {"a": 1, "b": [1, 2]}}


ROWS, COLUMNS = True, False
REFUSED = [
    ({}, ROWS, "Cannot convert empty tensor map to JSON"),
    ({}, COLUMNS, "Cannot convert empty tensor map to JSON"),
    ({"t": np.array(1)}, ROWS, "Tensor name: t has no shape information "),
    ({"a": np.zeros(2), "t": np.array(1)}, ROWS, "Tensor name: t has no shape information "),
    ({"a": np.zeros(2), "t": np.zeros(1)}, ROWS,
     "Tensor name: t has inconsistent batch size: 1 expecting: 2"),
    ({"a": np.zeros(0), "t": np.zeros(1)}, ROWS,
     "Tensor name: t has inconsistent batch size: 1 expecting: 0"),
    ({"t": np.zeros(1, np.complex64)}, COLUMNS,
     "Failed to write JSON value for tensor type: complex64"),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "row_format", "message"), REFUSED)
def test_outputs_that_cannot_be_written_are_refused(outputs, row_format, message):
    with pytest.raises(StatusError) as raised:
        json_body.predictions(outputs, row_format=row_format)
    assert (raised.value.code, raised.value.message) == (Code.INVALID_ARGUMENT, message)


def test_an_error_is_a_message():
    assert json.loads(json_body.error('a "b"\né')) == {"error": 'a "b"\né'}
    assert json.loads(json_body.error("é\udcff")) == {"error": "é?"}
    assert json_body.error("x" * 10_000) == b'{"error": "' + b"x" * 1024 + b' ..."}'


def test_a_model_without_versions_has_an_empty_status():
    assert json.loads(json_body.model_status(GetModelStatusResponse())) == {
        "model_version_status": []
    }


def test_metadata_has_every_field_under_its_own_name():
    response = GetModelMetadataResponse()
    response.model_spec.name = "bart"
    response.model_spec.version.value = 123
    signatures = SignatureDefMap()
    signature = signatures.signature_def["serving_default"]
    signature.inputs["text"].name = "text:0"
    signature.inputs["text"].dtype = DataType.DT_STRING
    signature.inputs["text"].tensor_shape.dim.add(size=-1)
    signature.outputs["y"].dtype = DataType.DT_FLOAT
    signature.outputs["y"].tensor_shape.unknown_rank = True
    signature.method_name = "tensorflow/serving/predict"
    response.metadata["signature_def"].Pack(signatures)
    assert json.loads(json_body.model_metadata(response)) == {
        "model_spec": {"name": "bart", "signature_name": "", "version": "123"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": {
            "inputs": {"text": {
                "name": "text:0",
                "dtype": "DT_STRING",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            }},
            "outputs": {"y": {
                "dtype": "DT_FLOAT", "tensor_shape": {"dim": [], "unknown_rank": True},
            }},
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }}}},
    }  # fmt: skip


def test_an_answer_has_its_bounds():
    most = json_body.MAX_JSON_VALUES
    assert rows(x=np.zeros((most // 1024, 1024), bool)).count(b"false") == most
    for shape in ((most + 1,), (most + 1, 0), (most // 2, 3)):
        with pytest.raises(StatusError, match=f"over REST at most {most} are sent") as raised:
            rows(x=np.zeros(shape, bool))
        assert raised.value.code is Code.INVALID_ARGUMENT


def test_other_threads_have_their_turn_while_a_large_answer_is_written():
    array = np.random.default_rng(0).normal(size=(500, 1000)).astype(np.float32)
    with ThreadPoolExecutor(1) as thread:
        body, turns = thread.submit(rows, x=array), 0
        while not body.done():
            time.sleep(0.001)
            turns += 1
    assert body.result().count(b",") == 499_999
    # Written at once it would be one turn, or two.
    assert turns > 10
