"""Bodies of REST predict requests: what they become, and which error wins."""

import json
import random
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bart_export.server import json_request
from bart_export.server.messages import DataType, TensorInfo
from bart_export.server.status import Code, StatusError

F32, F64 = DataType.DT_FLOAT, DataType.DT_DOUBLE
I8, I16, I32, I64 = DataType.DT_INT8, DataType.DT_INT16, DataType.DT_INT32, DataType.DT_INT64
U8, U32, U64 = DataType.DT_UINT8, DataType.DT_UINT32, DataType.DT_UINT64
BOOL, STRING, HALF = DataType.DT_BOOL, DataType.DT_STRING, DataType.DT_HALF


def read(body, **data_types):
    inputs = {name: TensorInfo(dtype=data_type) for name, data_type in data_types.items()}
    body = body if isinstance(body, bytes) else body.encode()
    return json_request.tensors(json_request.parse(body), inputs)


def refusal(body, **data_types):
    with pytest.raises(StatusError) as raised:
        read(body, **data_types)
    return raised.value.code, raised.value.message


# Every row: the value, its type, and what `{"inputs": value}` is as an array.
VALUES = [
    ("[1.5, 2, -0.0]", F32, np.array([1.5, 2, -0.0], np.float32)),
    ("[NaN, Infinity, -Inf]", F32, np.array([np.nan, np.inf, -np.inf], np.float32)),
    ("[1e39, -1e300, 1e-60]", F32, np.array([np.inf, -np.inf, 0], np.float32)),
    ("[16777217, 0.1]", F32, np.array([16777216, 0.1], np.float32)),
    ("[18446744073709551616]", F32, np.array([2.0**64], np.float32)),
    ("[0.1, 1e300, 9007199254740993]", F64, np.array([0.1, 1e300, 2.0**53], np.float64)),
    ("[-2147483648, 2147483647, -0]", I32, np.array([-(2**31), 2**31 - 1, 0], np.int32)),
    ("[300, -129, 2147483647]", I8, np.array([44, 127, -1], np.int8)),
    ("[65537]", I16, np.array([1], np.int16)),
    ("[-1, 256]", U8, np.array([255, 0], np.uint8)),
    ("[-9223372036854775808]", I64, np.array([-(2**63)], np.int64)),
    ("[9007199254740993]", I64, np.array([2**53 + 1], np.int64)),
    ("[4294967295]", U32, np.array([2**32 - 1], np.uint32)),
    ("[18446744073709551615, 0]", U64, np.array([2**64 - 1, 0], np.uint64)),
    ("[true, false]", BOOL, np.array([True, False])),
    ('["a", "", "\\u00e9"]', STRING, np.array([b"a", b"", b"\xc3\xa9"], object)),
    ('["a", {"b64": "/w"}]', STRING, np.array([b"a", b"\xff"], object)),
    ("3", I32, np.array(3, np.int32)),
    ('"a"', STRING, np.array(b"a", object)),
    ("[[1, 2], [3, 4], [5, 6]]", I32, np.array([[1, 2], [3, 4], [5, 6]], np.int32)),
    ("[]", F32, np.zeros((0,), np.float32)),
    ("[[], []]", I64, np.zeros((2, 0), np.int64)),
    ("[[[]], [[]]]", STRING, np.zeros((2, 1, 0), object)),
    ("[]", HALF, np.zeros((0,), np.float16)),
]


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


def test_bytes_of_strings_pass_through():
    inputs, _ = read(b'{"instances": ["\xff\xfe\xc3\xa9"]}', x=STRING)
    assert inputs["x"].tolist() == [b"\xff\xfe\xc3\xa9"]


NAMES = [
    (b"{}", ""),
    (b'{"signature_name": ""}', ""),
    (b'{"signature_name": "a", "signature_name": "b"}', "a"),
]


@pytest.mark.parametrize(("body", "name"), NAMES)
def test_a_body_names_a_signature(body, name):
    assert json_request.parse(body).signature_name == name


# Checked before a model is looked up.
UNREADABLE = [
    ("", "JSON Parse error: The document is empty"),
    ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
    ("[]", "JSON Value: [] Is not object"),
    ('"{}"', 'JSON Value: "{}" Is not object'),
    ("5 garbage", "JSON Value: 5 Is not object"),
    ('{"signature_name": 5}', 'JSON Value: {\n    "signature_name": 5\n} not formatted correctly. '
     "'signature_name' key must be a string value."),
    ('{"signature_name": null}', 'JSON Value: {\n    "signature_name": null\n} not formatted '
     "correctly. 'signature_name' key must be a string value."),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), UNREADABLE)
def test_what_cannot_be_read_is_refused_without_a_model(body, message):
    with pytest.raises(StatusError) as raised:
        json_request.parse(body.encode())
    assert (raised.value.code, raised.value.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize(("body", "named"), [("{}", "DEFAULT"), ('{"signature_name": "s"}', "s")])
def test_a_signature_without_inputs_is_refused(body, named):
    message = f"Failed to get input map for signature: {named}"
    assert refusal(body) == (Code.INVALID_ARGUMENT, message)


X = {"x": F32}
AB = {"b": F32, "a": F32}
PLAIN = "as multiple input tensors required as per tensorinfo_map"
ELEMENT = "Failed to process element: "
LIST = " of 'instances' list. Error: INVALID_ARGUMENT: "
BOTH = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
# Every row: the body, the inputs of the signature, and the end of the message.
REFUSED = [
    ("{}", X, "Missing 'inputs' or 'instances' key"),
    ('{"Instances": [1]}', X, "Missing 'inputs' or 'instances' key"),
    ('{"instances": [], "inputs": 1}', X, BOTH),
    ('{"instances": {}}', X, "} Expecting 'instances' to be an list/array"),
    ('{"instances": "abc"}', X, "} Expecting 'instances' to be an list/array"),
    ('{"instances": null}', X, "} Expecting 'instances' to be an list/array"),
    ('{"instances": []}', X, "} No values in 'instances' array"),
    ('{"instances": [1]}', AB,
     f"instances is a plain list, but expecting list of objects {PLAIN}"),
    ('{"instances": [{"b64": "YQ"}]}', AB,
     f"instances is a plain list, but expecting list of objects {PLAIN}"),
    ('{"instances": [{"x": 1}, 2]}', X, "Expecting object but got list at item 1 of input list"),
    ('{"instances": [{"x": "a"}, {"b64": "YQ"}]}', {"x": STRING},
     "Expecting object but got list at item 1 of input list"),
    ('{"instances": [1, {"x": 2}]}', X,
     "Expecting value/list but got object at item 1 of input list"),
    ('{"instances": [{"z": 1}]}', X,
     f"{ELEMENT}0 key: z{LIST}JSON object: does not have named input: z"),
    ('{"instances": [{"x": 1, "z": 1}]}', X,
     f"{ELEMENT}0 key: z{LIST}JSON object: does not have named input: z"),
    ('{"instances": [{"b": 1}]}', AB, "0 of 'instances' list. JSON object: {\n    \"b\": 1\n} "
     "keys must be equal to: a,b"),
    ('{"instances": [{"a": 1, "b": 1}, {}]}', AB,
     "1 of 'instances' list. JSON object: {} keys must be equal to: a,b"),
    ('{"instances": [[1, 2], [1, 2, 3]]}', X,
     f"{ELEMENT}1{LIST}Expecting tensor size: 2 but got: 3"),
    ('{"instances": [[1, 2], [[1, 2]]]}', X,
     f"{ELEMENT}1{LIST}Expecting shape [2] but got: [1,2]"),
    ('{"instances": [1, [1]]}', X, f"{ELEMENT}1{LIST}Expecting shape [] but got: [1]"),
    ('{"instances": [[], [[]]]}', X, f"{ELEMENT}1{LIST}Expecting shape [0] but got: [1,0]"),
    ('{"instances": [{"a": 1, "b": [1]}, {"a": 1, "b": [1, 2]}]}', AB,
     f"{ELEMENT}1 key: b{LIST}Expecting tensor size: 1 but got: 2"),
    ('{"instances": [[1, "a"]]}', X, f'{ELEMENT}0{LIST}JSON Value: "a" Type: String is not of '
     "expected type: float"),
    ('{"instances": ["-"]}', {"x": HALF}, f"{ELEMENT}0 of 'instances' list. Error: "
     'UNIMPLEMENTED: Conversion of JSON Value: "-" to type: half'),
    ('{"inputs": 1}', AB, f"inputs is a plain value/list, but expecting an object {PLAIN}"),
    ('{"inputs": {"b64": "YQ"}}', AB,
     f"inputs is a plain value/list, but expecting an object {PLAIN}"),
    ('{"inputs": {"a": 1}}', AB, "Missing named input: b in 'inputs' object."),
    ('{"inputs": {}}', X, "Missing named input: x in 'inputs' object."),
    ('{"inputs": [[1, 2], [3]]}', X,
     "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ('{"inputs": [[], [1]]}', X,
     "Encountered list at unexpected size: 1 at level: 1 expected size: 0"),
    ('{"inputs": [[1], 2]}', X,
     "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ('{"inputs": [1, [2]]}', X, "Encountered list at unexpected level: 1 expected < 1"),
    ('{"inputs": [' + "[" * 40 + "1" + "]" * 41 + "}", X,
     "Encountered list at unexpected level: 41 expected < 32"),
    ('{"inputs": [{"b64": "_w=="}]}', {"x": STRING}, "Unable to base64 decode"),
    ('{"inputs": [{"b64": 1}]}', {"x": STRING}, "not formatted correctly for base64 data"),
    ('{"inputs": [1' + "0" * 400 + "]}", X,
     "JSON Parse error: Number too big to be stored in double."),
]  # fmt: skip


@pytest.mark.parametrize(("body", "inputs", "message"), REFUSED)
def test_what_a_signature_cannot_take_is_refused(body, inputs, message):
    code, received = refusal(body, **inputs)
    assert code is Code.INVALID_ARGUMENT
    assert received.endswith(message)


# Every row: a value, a type that does not take it, and RapidJSON's and TensorFlow's names for both.
WRONG_TYPES = [
    ('"1"', F32, "String", "float"),
    ("true", F32, "True", "float"),
    ("null", F64, "Null", "double"),
    ("1.0", I32, "Number", "int32"),
    ("1e2", I64, "Number", "int64"),
    ("2147483648", I32, "Number", "int32"),
    ("2147483648", I8, "Number", "int8"),
    ("-2147483649", U8, "Number", "uint8"),
    ("9223372036854775808", I64, "Number", "int64"),
    ("-1", U32, "Number", "uint32"),
    ("4294967296", U32, "Number", "uint32"),
    ("18446744073709551616", U64, "Number", "uint64"),
    ("false", I32, "False", "int32"),
    ("NaN", I32, "Number", "int32"),
    ("0", BOOL, "Number", "bool"),
    ('"true"', BOOL, "String", "bool"),
    ("1", STRING, "Number", "string"),
    ("null", STRING, "Null", "string"),
    ('{"b64": "YQ=="}', F32, "Object", "float"),
    ('{"b64": "YQ=="}', HALF, "Object", "half"),
]


@pytest.mark.parametrize(("value", "data_type", "json_name", "type_name"), WRONG_TYPES)
def test_a_value_of_another_type_is_refused(value, data_type, json_name, type_name):
    code, message = refusal(f'{{"inputs": {{"x": [{value}]}}}}', x=data_type)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("JSON Value: ")
    assert message.endswith(f" Type: {json_name} is not of expected type: {type_name}")
    _, wrapped = refusal(f'{{"instances": [{{"x": {value}}}]}}', x=data_type)
    assert wrapped == f"{ELEMENT}0 key: x{LIST}{message}"


@pytest.mark.parametrize("name", ["DT_HALF", "DT_BFLOAT16", "DT_UINT16", "DT_COMPLEX64"])
def test_types_that_json_has_no_values_for(name):
    code, message = refusal('{"inputs": [1]}', x=DataType.Value(name))
    type_name = name.removeprefix("DT_").lower()
    assert code is Code.UNIMPLEMENTED
    assert message == f"Conversion of JSON Value: 1 to type: {type_name}"


@pytest.mark.parametrize("row", ["[1, 2]", "1", '["a"]', '{"x": [1]}'])
def test_a_wrong_row_is_found_behind_rows_that_are_converted_at_once(row, monkeypatch):
    monkeypatch.setattr(json_request, "CHUNK", 2)
    _, message = refusal(f'{{"instances": [[1], [2], [3], [4], {row}, [6]]}}', x=I32)
    assert re.search(r"element: 4 of|at item 4 of", message)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats(width=32) | st.text(max_size=2)
    | st.just({"b64": "YQ"}),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.sampled_from("xy"), items),
    max_leaves=6,
)  # fmt: skip


def outcome(value, key, data_type):
    try:
        inputs, _ = read(json.dumps({key: value}), x=data_type)
    except StatusError as error:
        return error.code, error.message
    return inputs["x"].dtype, inputs["x"].shape, repr(inputs["x"].tolist())


@settings(deadline=None)
@given(JSON_VALUES, st.sampled_from(["inputs", "instances"]), st.sampled_from([F32, I32, STRING]))
def test_at_once_and_one_by_one_are_the_same(value, key, data_type):
    quick = outcome(value, key, data_type)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_request, "at_once", lambda value, data_type: None)
        assert outcome(value, key, data_type) == quick
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_request, "CHUNK", 1)
        assert outcome(value, key, data_type) == quick


NUMBER = random.Random(0).random
BIG = {
    "numbers": ([[NUMBER() for _ in range(50)] for _ in range(10_000)], F32),
    "ids": ([[number] * 128 for number in range(12_000)], I32),
    "objects": ([{"x": number} for number in range(700_000)], I32),
    "one of the last is wrong": ([*range(1_400_000), True, 1], I32),
}


@pytest.mark.parametrize("name", BIG)
def test_ten_megabytes_take_no_more_than_a_second(name):
    rows, data_type = BIG[name]
    body = json.dumps({"instances": rows}).encode()
    begun = time.process_time()
    if "wrong" in name:
        assert refusal(body, x=data_type)[1].startswith(f"{ELEMENT}1400000{LIST}JSON Value: true")
    else:
        assert len(read(body, x=data_type)[0]["x"]) == len(rows)
    # Twice the time it takes alone: something else may run on the same core.
    assert time.process_time() - begun < 2
