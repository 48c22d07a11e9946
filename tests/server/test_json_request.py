"""Bodies of REST requests: what is JSON, which tensors it becomes, what is refused."""

import json
import math

import numpy as np
import pytest

from bart_export.server import json_body
from bart_export.server.messages import DataType, TensorInfo
from bart_export.server.status import Code, StatusError

F16, F32, F64 = DataType.DT_HALF, DataType.DT_FLOAT, DataType.DT_DOUBLE
I8, I16, I32, I64 = DataType.DT_INT8, DataType.DT_INT16, DataType.DT_INT32, DataType.DT_INT64
U8, U32, U64 = DataType.DT_UINT8, DataType.DT_UINT32, DataType.DT_UINT64
BOOL, STRING, BFLOAT16 = DataType.DT_BOOL, DataType.DT_STRING, DataType.DT_BFLOAT16
MOST_ROWS = 1 << 21


def read(body, most_rows=MOST_ROWS, **data_types):
    inputs = {name: TensorInfo(dtype=data_type) for name, data_type in data_types.items()}
    body = body if isinstance(body, bytes) else body.encode()
    parsed = json_body.parse(body)
    return json_body.tensors(parsed, inputs, most_rows), parsed.by_row


def refusal(body, most_rows=MOST_ROWS, **data_types):
    with pytest.raises(StatusError) as raised:
        read(body, most_rows, **data_types)
    message = raised.value.message
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return raised.value.code, message


NAN, INFINITY = float("nan"), float("inf")
DOCUMENTS = [
    (b'{"a": [1, -2.5, true, null, "x"]}', {"a": [1, -2.5, True, None, "x"]}),
    (b"\xef\xbb\xbf {}", {}),
    (b" \t\r\n[] ", []),
    (b"[NaN, Infinity, -Infinity]", [NAN, INFINITY, -INFINITY]),
    (b'["\\ud83d\\ude00", "\\u00e9", "\xc3\xa9"]', ["\U0001f600", "é", "é"]),
    (b'["\\u0000\x7f", "\\\\ud800"]', ["\0\x7f", "\\ud800"]),
    (b"[1e-400, -0, 1E+2, 1e308]", [0.0, 0, 100.0, 1e308]),
    (b"[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
    (b"[184467440737095516160, 1" + b"0" * 300 + b"]", [2.0**64 * 10, 1e300]),
    (b"[0." + b"1" * 5000 + b"]", [1 / 9]),
]  # fmt: skip


def same(value, expected):
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, float) and math.isnan(expected):
        return math.isnan(value)
    return value == expected and type(value) is type(expected)


@pytest.mark.parametrize(("body", "expected"), DOCUMENTS)
def test_documents(body, expected):
    assert same(json_body.document(body), expected)


NO_DOCUMENTS = [
    (b"", "The document is empty"),
    (b" \n ", "The document is empty"),
    (b"trailing", "Expecting value: line 1 column 1 (char 0)"),
    (b"[1, nan]", "Expecting value: line 1 column 5 (char 4)"),
    (b"[1] and more", "Extra data: line 1 column 5 (char 4)"),
    (b"[1,]", "Expecting value: line 1 column 4 (char 3)"),
    (b"[01]", "Expecting ',' delimiter: line 1 column 3 (char 2)"),
    (b"{'a': 1}", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    (b'["a', "Unterminated string starting at: line 1 column 2 (char 1)"),
    (b'["a\nb"]', "Invalid control character at: line 1 column 4 (char 3)"),
    (b'["\\q"]', "Invalid \\escape: line 1 column 3 (char 2)"),
    (b'["\xff"]', "expected UTF-8, received the byte 0xff"),
    (b'\xef\xbb\xbf["a\xc3"]', "expected UTF-8, received the byte 0xc3"),
    (b"[1e400]", '"1e400" is beyond the numbers of 64 bits'),
    (b"[1" + b"0" * 5000 + b"]", f'"1{"0" * 59}" ... (5001 characters) is beyond the numbers of '
     "64 bits"),
    (b'{"a": 1, "b": 2, "a": 3}', 'the name "a" stands twice in an object'),
    (b'{"a": [{"b": 1, "b": 1}]}', 'the name "b" stands twice in an object'),
    (b"[" * 65_536, "the document is nested too deeply"),
    (b'{"a":' * 65_536 + b"1" + b"}" * 65_536, "the document is nested too deeply"),
    (b"[" * 65_537, "expected at most 65536 lists and objects, received 65537"),
    (b"[" + b"{}," * 65_536 + b"1]", "expected at most 65536 lists and objects, received 65537"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "reason"),
    NO_DOCUMENTS,
    ids=[f"{body[:12]!r}: {why[:20]}" for body, why in NO_DOCUMENTS],
)
def test_what_is_no_document(body, reason):
    with pytest.raises(StatusError) as raised:
        json_body.document(body)
    expected = (Code.INVALID_ARGUMENT, f"JSON Parse error: {reason}")
    assert (raised.value.code, raised.value.message) == expected


# Every row: the value, its type, and what `{"inputs": value}` is as an array.
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
    ("[-32768]", I16, np.array([-32768], np.int16)),
    ("[0, 255]", U8, np.array([0, 255], np.uint8)),
    ("[-9223372036854775808]", I64, np.array([-(2**63)], np.int64)),
    ("[9007199254740993]", I64, np.array([2**53 + 1], np.int64)),
    ("[4294967295]", U32, np.array([2**32 - 1], np.uint32)),
    ("[18446744073709551615, 0]", U64, np.array([2**64 - 1, 0], np.uint64)),
    ("[true, false]", BOOL, np.array([True, False])),
    ('["a", "", "\\u00e9", "\\u0000"]', STRING, np.array([b"a", b"", b"\xc3\xa9", b"\0"], object)),
    ('["a", {"b64": "/w"}, {"b64": "AAA="}]', STRING, np.array([b"a", b"\xff", b"\0\0"], object)),
    ("3", I32, np.array(3, np.int32)),
    ('"a"', STRING, np.array(b"a", object)),
    ("[[1, 2], [3, 4], [5, 6]]", I32, np.array([[1, 2], [3, 4], [5, 6]], np.int32)),
    ("[]", F32, np.zeros((0,), np.float32)),
    ("[[], []]", I64, np.zeros((2, 0), np.int64)),
    ("[[[]], [[]]]", STRING, np.zeros((2, 1, 0), object)),
    ("[" * 31 + "1" + "]" * 31, I32, np.ones([1] * 31, np.int32)),
]  # fmt: skip


@pytest.mark.parametrize(("value", "data_type", "expected"), VALUES)
def test_a_column_is_the_value_itself(value, data_type, expected):
    for body in (f'{{"inputs": {value}}}', f'{{"inputs": {{"x": {value}, "surplus": []}}}}'):
        inputs, row_format = read(body, x=data_type)
        assert not row_format
        assert list(inputs) == ["x"]
        np.testing.assert_array_equal(inputs["x"], expected, strict=True)


@pytest.mark.parametrize(("value", "data_type", "expected"), VALUES)
def test_rows_are_put_together(value, data_type, expected):
    for row in (value, f'{{"x": {value}}}'):
        inputs, row_format = read(f'{{"instances": [{row}, {row}]}}', x=data_type)
        assert row_format
        assert list(inputs) == ["x"]
        np.testing.assert_array_equal(inputs["x"], np.stack([expected] * 2), strict=True)


def test_base64_stands_alone_where_there_is_one_input():
    for body in ('{"inputs": {"b64": "YQ=="}}', '{"instances": [{"b64": "YQ=="}]}'):
        inputs, _ = read(body, x=STRING)
        assert inputs["x"].reshape(-1).tolist() == [b"a"]


def test_several_inputs_come_by_name():
    rows = '{"instances": [{"a": [1], "b": "x"}, {"b": "y", "a": [2]}]}'
    columns = '{"inputs": {"b": ["x", "y"], "a": [[1], [2]], "c": null}}'
    for body in (rows, columns):
        inputs, _ = read(body, a=I32, b=STRING)
        assert {name: array.tolist() for name, array in inputs.items()} == {
            "a": [[1], [2]],
            "b": [b"x", b"y"],
        }


def test_columns_need_not_have_equal_lengths():
    inputs, _ = read('{"inputs": {"a": 1, "b": [1, 2]}}', a=I32, b=I32)
    assert [inputs[name].shape for name in "ab"] == [(), (2,)]


@pytest.mark.parametrize(("body", "name"), [(b"{}", ""), (b'{"signature_name": "a"}', "a")])
def test_a_body_names_a_signature(body, name):
    assert json_body.parse(body).signature_name == name


# Checked before a model is looked up.
UNREADABLE = [
    ("", "JSON Parse error: The document is empty"),
    ("[]", "Expected the body to be a JSON object, received a list of 0"),
    ('"{}"', 'Expected the body to be a JSON object, received "{}"'),
    ('{"signature_name": 5}', "Expected 'signature_name' to be a string, received 5"),
    ('{"signature_name": null}', "Expected 'signature_name' to be a string, received null"),
]


@pytest.mark.parametrize(("body", "message"), UNREADABLE)
def test_what_cannot_be_read_is_refused_without_a_model(body, message):
    with pytest.raises(StatusError) as raised:
        json_body.parse(body.encode())
    assert (raised.value.code, raised.value.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(("body", "named"), [("{}", "DEFAULT"), ('{"signature_name": "s"}', "s")])
def test_a_signature_without_inputs_is_refused(body, named):
    message = f"Failed to get input map for signature: {named}"
    assert refusal(body) == (Code.INVALID_ARGUMENT, message)


X, TEXT, AB = {"x": F32}, {"x": STRING}, {"b": F32, "a": F32}
ROWS = "Expected 'instances' to be a list of rows, received "
SEVERAL = "to name the inputs a, b: the signature has several"
KEYS = "to be an object with the keys "
# Every row: the body, the inputs of the signature, and a part of the message.
REFUSED = [
    ("{}", X, "Missing 'inputs' or 'instances' key"),
    ('{"Instances": [1]}', X, "Missing 'inputs' or 'instances' key"),
    ('{"instances": [], "inputs": 1}', X, "Expected either 'instances' or 'inputs', received both"),
    ('{"instances": {}}', X, f"{ROWS}an object of 0 members"),
    ('{"instances": "abc"}', X, f'{ROWS}"abc"'),
    ('{"instances": null}', X, f"{ROWS}null"),
    ('{"instances": []}', X, f"{ROWS}a list of 0"),
    ('{"instances": [1]}', AB, SEVERAL),
    ('{"instances": [{"b64": "YQ"}]}', AB, SEVERAL),
    ('{"instances": [{"x": 1}, 2]}', X, f"instances[1] {KEYS}x, received 2"),
    ('{"instances": [{"x": "a"}, {"b64": "YQ"}]}', TEXT, f"instances[1] {KEYS}x, received an"),
    ('{"instances": [{"z": 1}]}', X, f"instances[0] {KEYS}x, received an object of 1 members"),
    ('{"instances": [{"x": 1, "z": 1}]}', X, f"instances[0] {KEYS}x, received an object of 2"),
    ('{"instances": [{"b": 1}]}', AB, f"instances[0] {KEYS}a, b"),
    ('{"instances": [{"a": 1, "b": 1}, {}]}', AB, f"instances[1] {KEYS}a, b"),
    ('{"instances": [1, {"x": 2}]}', X, "instances[1] to be a number, received an object of 1"),
    ('{"instances": ["a", {"x": 2}]}', TEXT, "instances[1] to be a string"),
    ('{"instances": [[1, 2], [1, 2, 3]]}', X, "instances[1] to be a list of 2, as the first one "
     "is, received a list of 3"),
    ('{"instances": [[1, 2], [[1, 2], 3]]}', X, "instances[1][0] to be a number, received a list"),
    ('{"instances": [1, [1]]}', X, "instances[1] to be a number, received a list of 1"),
    ('{"instances": [[1], 1]}', X, "instances[1] to be a list of 1, as the first one is"),
    ('{"instances": [[], [[]]]}', X, "instances[1] to be a list of 0, as the first one is"),
    ('{"instances": [{"a": 1, "b": [1]}, {"a": 1, "b": [1, 2]}]}', AB,
     "instances[1].b to be a list of 1"),
    ('{"instances": [{"a": 1, "b": [[1, "-"]]}]}', AB,
     'instances[0].b[0][1] to be a number, received "-"'),
    ('{"inputs": 1}', AB, SEVERAL),
    ('{"inputs": {"b64": "YQ"}}', AB, SEVERAL),
    ('{"inputs": {"a": 1}}', AB, "Missing named input: b in 'inputs' object."),
    ('{"inputs": {}}', X, "Missing named input: x in 'inputs' object."),
    ('{"inputs": [[1, 2], [3]]}', X, "inputs[1] to be a list of 2, as the first one is"),
    ('{"inputs": {"x": [[[1, 2]], [[3]]]}}', X, "inputs.x[1][0] to be a list of 2"),
    ('{"inputs": "1"}', X, 'inputs to be a number, received "1"'),
    ('{"inputs": [' + "[" * 40 + "1" + "]" * 41 + "}", X, "lists may be nested 32 deep, not more"),
    ('{"inputs": ["a", "\\ud800"]}', TEXT, 'inputs[1] to be a string or {"b64": "..."}, received '
     '"\\ud800": \'utf-8\' codec can\'t encode'),
    ('{"inputs": [{"b64": "_w=="}]}', TEXT, "inputs[0] to be a string"),
    ('{"inputs": [{"b64": "Y"}]}', TEXT, "inputs[0] to be a string"),
    ('{"inputs": [{"b64": "YQ==YQ=="}]}', TEXT, "inputs[0] to be a string"),
    ('{"inputs": [{"b64": "Y\\u00e9=="}]}', TEXT, "inputs[0] to be a string"),
    ('{"inputs": [{"b64": 1}]}', TEXT, "inputs[0] to be a string"),
    ('{"inputs": [{"b64": "YQ", "a": 1}]}', TEXT, "inputs[0] to be a string"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "inputs", "message"), REFUSED)
def test_what_a_signature_cannot_take_is_refused(body, inputs, message):
    code, received = refusal(body, **inputs)
    assert code is Code.INVALID_ARGUMENT
    assert message in received


WRONG_TYPES = [
    ('"1"', F32, "a number"),
    ("true", F32, "a number"),
    ("null", F64, "a number"),
    ("1.0", I32, "an integer"),
    ("1e2", I64, "an integer"),
    ("NaN", I32, "an integer"),
    ("false", I32, "an integer"),
    ("2147483648", I32, "an integer of -2147483648 to 2147483647"),
    ("128", I8, "an integer of -128 to 127"),
    ("-1", U8, "an integer of 0 to 255"),
    ("9223372036854775808", I64, "an integer of -9223372036854775808 to 9223372036854775807"),
    ("4294967296", U32, "an integer of 0 to 4294967295"),
    ("18446744073709551616", U64, "an integer of 0 to 18446744073709551615"),
    ("184467440737095516160", U64, "an integer"),
    ("0", BOOL, "true or false"),
    ('"true"', BOOL, "true or false"),
    ("1", STRING, 'a string or {"b64": "..."}'),
    ("null", STRING, 'a string or {"b64": "..."}'),
    ('{"b64": "YQ=="}', F32, "a number"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "data_type", "wanted"), WRONG_TYPES)
def test_a_value_of_another_type_is_refused(value, data_type, wanted):
    right = json.dumps({F32: 1.5, F64: 1.5, BOOL: True, STRING: "a"}.get(data_type, 1))
    code, message = refusal(f'{{"inputs": {{"x": [{right}, {value}]}}}}', x=data_type)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith(f"Expected inputs.x[1] to be {wanted}, received ")
    rows = f'{{"instances": [{{"x": {right}}}, {{"x": {value}}}]}}'
    assert refusal(rows, x=data_type)[1].startswith(f"Expected instances[1].x to be {wanted}, ")


@pytest.mark.parametrize("name", ["DT_BFLOAT16", "DT_COMPLEX64", "DT_QINT8"])
def test_types_that_json_has_no_values_for(name):
    for key in ("inputs", "instances"):
        assert refusal(f'{{"{key}": [1]}}', x=DataType.Value(name))[0] is Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    "body", ['{"instances": [%s]}', '{"inputs": [%s]}', '{"inputs": {"x": [%s]}}']
)
def test_rows_are_counted_before_they_are_read(body):
    assert len(read(body % ", ".join("1" * 64), 64, x=F32)[0]["x"]) == 64
    for row in ("1", '"wrong"', '{"x": 1}'):
        code, message = refusal(body % ", ".join([row] * 65), 64, x=F32)
        assert code is Code.INVALID_ARGUMENT
        assert "at most 64 rows, received 65" in message
        assert "--max-request-rows" in message
