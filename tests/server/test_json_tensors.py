"""JSON to tensors, refusals, and outputs to JSON."""

import json
import time
import timeit
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bart_export.server import json_tensors, messages
from bart_export.server.messages import DataType, TensorInfo
from bart_export.server.status import Code, StatusError

F16, F32, F64 = DataType.DT_HALF, DataType.DT_FLOAT, DataType.DT_DOUBLE
I8, I16, I32, I64 = DataType.DT_INT8, DataType.DT_INT16, DataType.DT_INT32, DataType.DT_INT64
U8, U32, U64 = DataType.DT_UINT8, DataType.DT_UINT32, DataType.DT_UINT64
BOOL, STRING = DataType.DT_BOOL, DataType.DT_STRING


def read(body, most_rows=1 << 21, **data_types):
    inputs = {name: TensorInfo(dtype=data_type) for name, data_type in data_types.items()}
    return json_tensors.to_inputs(json_tensors.parse(body.encode()), inputs, most_rows)


def refusal(body, most_rows=1 << 21, **data_types):
    with pytest.raises(StatusError) as raised:
        read(body, most_rows, **data_types)
    message = raised.value.message
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return raised.value.code, message


NO_DOCUMENTS = [
    (b"", "Expecting value: line 1 column 1 (char 0)"),
    (b"[1, nan]", "Expecting value: line 1 column 5 (char 4)"),
    (b"[1] and more", "Extra data: line 1 column 5 (char 4)"),
    (b'["\xff"]', "'utf-8' codec can't decode byte 0xff in position 2: invalid start byte"),
    (b"[1" + b"0" * 5000 + b"]", "Exceeds the limit"),
    (b"[" * 65_536, "the document is nested too deeply"),
    (b'{"a":' * 65_536 + b"1" + b"}" * 65_536, "the document is nested too deeply"),
    (b"[" * 65_537, "expected at most 65536 lists and objects, received 65537"),
    (b"[" + b"{}," * 65_536 + b"1]", "expected at most 65536 lists and objects, received 65537"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), NO_DOCUMENTS, ids=range(len(NO_DOCUMENTS)))
def test_what_is_no_document_is_refused_in_a_line(body, reason):
    with pytest.raises(StatusError) as raised:
        json_tensors.parse(body)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert raised.value.message.startswith(f"JSON Parse error: {reason}")


# (value, DataType, array of `{"inputs": value}`)
VALUES = [
    ("[1.5, 2, -0.0]", F32, np.array([1.5, 2, -0.0], np.float32)),
    ("[NaN, Infinity, -Infinity]", F32, np.array([np.nan, np.inf, -np.inf], np.float32)),
    ("[1e39, -1e300, 1e-60]", F32, np.array([np.inf, -np.inf, 0], np.float32)),
    ("[16777217, 0.1]", F32, np.array([16777216, 0.1], np.float32)),
    ("[18446744073709551616, -1]", F32, np.array([2.0**64, -1], np.float32)),
    ("[0.1, 1e300, 9007199254740993]", F64, np.array([0.1, 1e300, 2.0**53], np.float64)),
    ("[0.1, 1e9]", F16, np.array([0.1, np.inf], np.float16)),
    ("[-2147483648, 2147483647, -0]", I32, np.array([-(2**31), 2**31 - 1, 0], np.int32)),
    ("[127, -128]", I8, np.array([127, -128], np.int8)),
    ("[0, 255]", U8, np.array([0, 255], np.uint8)),
    ("[9007199254740993]", I64, np.array([2**53 + 1], np.int64)),
    ("[18446744073709551615, 0]", U64, np.array([2**64 - 1, 0], np.uint64)),
    ("[true, false]", BOOL, np.array([True, False])),
    ('["a", "", "\\u00e9", "\\u0000"]', STRING, np.array([b"a", b"", b"\xc3\xa9", b"\0"], object)),
    ('["a", {"b64": "/w"}, {"b64": "AAA="}]', STRING, np.array([b"a", b"\xff", b"\0\0"], object)),
    ("3", I32, np.array(3, np.int32)),
    ('"a"', STRING, np.array(b"a", object)),
    ("[[1, 2], [3, 4], [5, 6]]", I32, np.array([[1, 2], [3, 4], [5, 6]], np.int32)),
    ("[]", F32, np.zeros((0,), np.float32)),
    ("[[[]], [[]]]", STRING, np.zeros((2, 1, 0), object)),
    ("[" * 31 + "1" + "]" * 31, I32, np.ones([1] * 31, np.int32)),
]  # fmt: skip


@pytest.mark.parametrize(("value", "data_type", "expected"), VALUES)
def test_a_column_is_the_value_itself_and_rows_are_put_together(value, data_type, expected):
    named = f'{{"x": {value}}}'
    rows = np.stack([expected] * 2)
    for body, array in (
        (f'{{"inputs": {value}}}', expected),
        (f'{{"inputs": {{"x": {value}, "surplus": []}}}}', expected),
        (f'{{"instances": [{value}, {value}]}}', rows),
        (f'{{"instances": [{named}, {named}]}}', rows),
    ):
        inputs = read(body, x=data_type)
        assert list(inputs) == ["x"]
        np.testing.assert_array_equal(inputs["x"], array, strict=True)


def test_base64_stands_alone_where_there_is_one_input():
    for body in ('{"inputs": {"b64": "YQ=="}}', '{"instances": [{"b64": "YQ=="}]}'):
        assert read(body, x=STRING)["x"].reshape(-1).tolist() == [b"a"]


def test_several_inputs_come_by_name():
    rows = '{"instances": [{"a": [1], "b": "x"}, {"b": "y", "a": [2]}]}'
    columns = '{"inputs": {"b": ["x", "y"], "a": [[1], [2]], "c": null}}'
    for body in (rows, columns):
        found = {name: array.tolist() for name, array in read(body, a=I32, b=STRING).items()}
        assert found == {"a": [[1], [2]], "b": [b"x", b"y"]}


X, TEXT, AB = {"x": F32}, {"x": STRING}, {"b": F32, "a": F32}
BOTH = "Expected either 'instances' or 'inputs', received "
ROWS = "Expected 'instances' to be a list of rows, received "
SEVERAL = "Expected the inputs a, b by name: the signature has several"
KEYS = "to be an object with the keys "
# (body, inputs of the signature, part of the message)
REFUSED = [
    ('{"Instances": [1]}', X, f"{BOTH}neither"),
    ('{"instances": [], "inputs": 1}', X, f"{BOTH}both"),
    ('{"inputs": {}}', {}, "Expected a signature with inputs"),
    ('{"instances": {}}', X, f"{ROWS}an object with 0 members"),
    ('{"instances": "abc"}', X, f'{ROWS}"abc"'),
    ('{"instances": []}', X, f"{ROWS}a list of 0"),
    ('{"instances": [1]}', AB, SEVERAL),
    ('{"instances": [{"b64": "YQ"}]}', AB, SEVERAL),
    ('{"inputs": 1}', AB, SEVERAL),
    ('{"instances": [{"x": 1}, 2]}', X, f"instances[1] {KEYS}x, received 2"),
    ('{"instances": [{"x": "a"}, {"b64": "YQ"}]}', TEXT, f"instances[1] {KEYS}x, received an"),
    ('{"instances": [{"x": 1, "z": 1}]}', X, f"instances[0] {KEYS}x, received an object with 2"),
    ('{"instances": [{"a": 1, "b": 1}, {}]}', AB, f"instances[1] {KEYS}a, b"),
    ('{"instances": [1, {"x": 2}]}', X, "x[1] to be a number, received an object with 1"),
    ('{"instances": ["a", {"x": 2}]}', TEXT, "x[1] to be a string"),
    ('{"instances": [[1, 2], [1]]}', X, "x[0] to be a number in lists of equal length, received "
     "a list of 2"),
    ('{"instances": [[1, 2], [[1, 2], 3]]}', X, "x[1][0] to be a number in lists"),
    ('{"instances": [1, [1]]}', X, "x[1] to be a number in lists of equal length"),
    ('{"instances": [{"a": 1, "b": [[1, "-"]]}]}', AB, 'b[0][0][1] to be a number, received "-"'),
    ('{"inputs": {"a": 1}}', AB, "Missing named input: b in 'inputs' object."),
    ('{"inputs": "1"}', X, 'Expected x to be a number, received "1"'),
    ('{"inputs": [1' + "0" * 400 + "]}", X, "x[0] to be a number, received 10000"),
    ('{"inputs": [' + "[" * 40 + "1" + "]" * 41 + "}", X, "at most 32 levels of lists"),
    ('{"inputs": ["a", "\\ud800"]}', TEXT, "x[1] to be a string"),
    ('{"inputs": [{"b64": "_w=="}]}', TEXT, "x[0] to be a string"),
    ('{"inputs": [{"b64": "Y"}]}', TEXT, "x[0] to be a string"),
    ('{"inputs": [{"b64": "Y\\u00e9=="}]}', TEXT, "x[0] to be a string"),
    ('{"inputs": [{"b64": 1}]}', TEXT, "x[0] to be a string"),
    ('{"inputs": [{"b64": "YQ", "a": 1}]}', TEXT, "x[0] to be a string"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "inputs", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_signature_cannot_take_is_refused(body, inputs, message):
    code, received = refusal(body, **inputs)
    assert code is Code.INVALID_ARGUMENT
    assert message in received


WRONG_TYPES = [
    ('"1"', F32, "a number"),
    ("true", F32, "a number"),
    ("null", F64, "a number"),
    ('{"b64": "YQ=="}', F32, "a number"),
    ("1.0", I32, "an integer"),
    ("NaN", I32, "an integer"),
    ("false", I32, "an integer"),
    ("2147483648", I32, "an integer of -2147483648 to 2147483647"),
    ("-32769", I16, "an integer of -32768 to 32767"),
    ("-1", U32, "an integer of 0 to 4294967295"),
    ("9223372036854775808", I64, "an integer of -9223372036854775808 to 9223372036854775807"),
    ("18446744073709551616", U64, "an integer of 0 to 18446744073709551615"),
    ("0", BOOL, "true or false"),
    ("1", STRING, 'a string or {"b64": "..."}'),
    ("null", STRING, 'a string or {"b64": "..."}'),
]  # fmt: skip


@pytest.mark.parametrize(("value", "data_type", "wanted"), WRONG_TYPES)
def test_a_value_of_another_type_is_refused(value, data_type, wanted):
    right = json.dumps({F32: 1.5, F64: 1.5, BOOL: True, STRING: "a"}.get(data_type, 1))
    for body in (
        f'{{"inputs": {{"x": [{right}, {value}]}}}}',
        f'{{"instances": [{{"x": {right}}}, {{"x": {value}}}]}}',
    ):
        code, message = refusal(body, x=data_type)
        assert code is Code.INVALID_ARGUMENT
        assert message.startswith(f"Expected x[1] to be {wanted}")


@pytest.mark.parametrize("name", ["DT_BFLOAT16", "DT_COMPLEX64", "DT_QINT8"])
def test_types_that_json_has_no_values_for(name):
    assert refusal('{"inputs": [1]}', x=DataType.Value(name))[0] is Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    "body", ['{"instances": [%s]}', '{"inputs": [%s]}', '{"inputs": {"x": [%s]}}']
)
def test_rows_are_counted_before_they_are_read(body):
    assert len(read(body % ", ".join("1" * 64), 64, x=F32)["x"]) == 64
    for row in ("1", '"wrong"', '{"x": 1}'):
        code, message = refusal(body % ", ".join([row] * 65), 64, x=F32)
        assert code is Code.INVALID_ARGUMENT
        assert "at most 64 rows, received 65" in message
        assert "--max-request-rows" in message


def rows(**outputs):
    return json_tensors.from_outputs(outputs, by_row=True)


def columns(**outputs):
    return json_tensors.from_outputs(outputs, by_row=False)


# Shortest digits of the float's width; NaN and Infinity as in TensorFlow Serving.
WRITTEN = [
    ("float32", [0.0, -0.0, 1.0, 0.2, 1 / 3], "[0.0, -0.0, 1.0, 0.2, 0.33333334]"),
    ("float32", [9e6, 3e-5, 3.4028235e38, 1e-45], "[9000000.0, 3e-05, 3.4028235e+38, 1e-45]"),
    ("float32", [np.nan, np.inf, -np.inf], "[NaN, Infinity, -Infinity]"),
    ("float16", [0.1], "[0.1]"),
    ("float64", [0.1, 1 / 3, 1e300, np.nan], "[0.1, 0.3333333333333333, 1e+300, NaN]"),
    ("int64", [-(2**63), 2**63 - 1], "[-9223372036854775808, 9223372036854775807]"),
    ("uint64", [2**64 - 1], "[18446744073709551615]"),
    ("int32", [[1, 2], [3, 4]], "[[1, 2], [3, 4]]"),
    ("bool", [True, False], "[true, false]"),
    ("object", [b'"\\/\n\x01\x7f', b""], '["\\"\\\\/\\n\\u0001\x7f", ""]'),
    ("object", ["é".encode(), b"\xf0\x9f\x98\x80", b"\xff"], '["é", "😀", "\ufffd"]'),
    ("float16", [], "[]"),
    ("int32", [[], []], "[[], []]"),
    ("float32", [[[1.5], [2.0]]], "[[[1.5], [2.0]]]"),
]


@pytest.mark.parametrize(("dtype", "value", "text"), WRITTEN)
def test_one_output_is_a_list(dtype, value, text):
    array = np.array(value, dtype)
    assert rows(x=array) == f'{{"predictions": {text}}}'.encode()
    assert columns(x=array) == f'{{"outputs": {text}}}'.encode()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_float_is_read_back(dtype):
    bits = np.random.default_rng(0).integers(0, 2**63, 20_000, np.uint64)
    array = bits.view(dtype)
    found = json.loads(rows(x=array))["predictions"]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.array(found).astype(dtype), array)


def test_strings_of_outputs_named_bytes_are_base64():
    array = np.array([b"\xff\xef", b"a", b""], object)
    expected = [{"b64": "/+8="}, {"b64": "YQ=="}, {"b64": ""}]
    assert json.loads(rows(x_bytes=array)) == {"predictions": expected}
    assert json.loads(rows(x_bytes=np.array([1]))) == {"predictions": [1]}


def test_several_outputs_are_objects():
    outputs = {"a": np.array([1, 2]), 'b"': np.array([[b"x"], [b"y"]], object)}
    found = json.loads(json_tensors.from_outputs(outputs, by_row=True))
    assert found == {"predictions": [{"a": 1, 'b"': ["x"]}, {"a": 2, 'b"': ["y"]}]}
    outputs["c"] = np.array(1)
    found = json.loads(json_tensors.from_outputs(outputs, by_row=False))
    assert found == {"outputs": {"a": [1, 2], 'b"': [["x"], ["y"]], "c": 1}}


@pytest.mark.parametrize(
    "outputs",
    [
        {"t": np.array(1)},
        {"a": np.zeros(2), "t": np.array(1)},
        {"a": np.zeros(0), "t": np.zeros(1)},
    ],
)
def test_outputs_without_common_rows_are_refused_in_row_form(outputs):
    with pytest.raises(StatusError, match="equal numbers of rows") as raised:
        rows(**outputs)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert json.loads(columns(**outputs))


def test_an_answer_has_its_bounds():
    most = json_tensors.MAX_JSON_VALUES
    assert rows(x=np.zeros((most // 1024, 1024), bool)).count(b"false") == most
    for shape in ((most + 1,), (most + 1, 0), (most // 2, 3)):
        with pytest.raises(StatusError, match=f"at most {most} values over REST") as raised:
            rows(x=np.zeros(shape, bool))
        assert raised.value.code is Code.INVALID_ARGUMENT


def longest_pause(array):
    """Return the longest pause of another thread while an array is written."""
    with ThreadPoolExecutor(1) as thread:
        body, pause, last = thread.submit(rows, x=array), 0.0, time.monotonic()
        while not body.done():
            time.sleep(0.001)
            now = time.monotonic()
            pause, last = max(pause, now - last), now
    return pause


@pytest.mark.parametrize(
    ("dtype", "at_once"),
    [
        ("float32", lambda array: array.astype("U32")),
        ("float64", lambda array: json.dumps(array.tolist())),
    ],
)
def test_other_threads_have_their_turn_while_a_large_answer_is_written(dtype, at_once):
    array = np.random.default_rng(0).normal(size=(150, 2000)).astype(dtype)
    seconds = min(timeit.repeat(lambda: at_once(array), number=1, repeat=3))
    # A busy machine makes pauses of its own, but not each time.
    assert any(longest_pause(array) < seconds / 3 for _ in range(20))


def test_a_message_has_every_field_under_its_own_name():
    info = TensorInfo(name="text:0", dtype=STRING, tensor_shape={"dim": [{"size": -1}]})
    assert messages.to_dict(messages.SignatureDef(inputs={"text": info})) == {
        "inputs": {"text": {
            "name": "text:0",
            "dtype": "DT_STRING",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        }},
        "outputs": {}, "method_name": "", "defaults": {},
    }  # fmt: skip
