"""Bodies of Classify and Regress, the examples they become, and results on their way back."""

import json

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from bart_export.server import examples, json_request
from bart_export.server.messages import Input, SignatureDef
from bart_export.server.status import Code, StatusError


def read(body):
    return examples.from_json(
        json_request.parse(body if isinstance(body, bytes) else body.encode())
    )


def features(serialized):
    """Return the features of a serialized example as TensorFlow reads them."""
    example = tf.train.Example.FromString(serialized)
    return {
        name: list(getattr(feature, feature.WhichOneof("kind") or "float_list").value)
        for name, feature in example.features.feature.items()
    }


FEATURES = [
    ("1", "int64_list", [1]),
    ("-9223372036854775808", "int64_list", [-(2**63)]),
    ("9223372036854775807", "int64_list", [2**63 - 1]),
    ("true", "int64_list", [1]),
    ("[false, 7]", "int64_list", [0, 7]),
    ("1.0", "float_list", [1.0]),
    ("[1e2, NaN]", "float_list", [100.0, np.nan]),
    ("[1e300, -Infinity]", "float_list", [np.inf, -np.inf]),
    ("18446744073709551616", "float_list", [2.0**64]),
    ("-9223372036854775809", "float_list", [-(2.0**63)]),
    ('"a"', "bytes_list", [b"a"]),
    ('["\\u00e9", {"b64": "/w"}]', "bytes_list", ["é".encode(), b"\xff"]),
    ("[]", None, []),
]


@pytest.mark.parametrize(("value", "field", "expected"), FEATURES)
def test_a_feature_has_the_kind_of_its_values(value, field, expected):
    request = read(f'{{"examples": [{{"f": {value}}}]}}')
    (serialized,) = examples.serialized(request)
    feature = tf.train.Example.FromString(serialized).features.feature["f"]
    assert feature.WhichOneof("kind") == field
    if field == "bytes_list":
        assert features(serialized) == {"f": expected}
    else:
        np.testing.assert_array_equal(features(serialized)["f"], np.array(expected, np.float64))


def test_features_of_the_context_are_in_every_example_that_lacks_them():
    request = read('{"context": {"c": 1, "f": 2}, "examples": [{"f": 3}, {"g": 4}, {}]}')
    assert request.WhichOneof("kind") == "example_list_with_context"
    serialized = examples.serialized(request)
    assert serialized.shape == (3,)
    assert serialized.dtype == object
    assert [features(item) for item in serialized] == [
        {"c": [1], "f": [3]},
        {"c": [1], "f": [2], "g": [4]},
        {"c": [1], "f": [2]},
    ]


def test_examples_of_a_message_are_those_of_a_body():
    message = text_format.Parse(
        "example_list { examples { features { feature { key: 'f' value { "
        "int64_list { value: 1 } } } } } }",
        Input(),
    )
    assert read('{"examples": [{"f": 1}]}') == message


MISSING = "When method is classify or regress, key 'examples' is expected and was not found"
REFUSED = [
    ("{}", MISSING),
    ('{"instances": [{"f": 1}]}', MISSING),
    ('{"examples": {"f": 1}}', "Expected 'examples' to be a list, received an object"),
    ('{"examples": []}', "'examples' value is an empty array"),
    ('{"examples": [1]}', "Example must be JSON object but got 1"),
    ('{"examples": [{"f": 1}, null]}', "Example must be JSON object but got null"),
    ('{"context": [], "examples": 1}', "Example must be JSON object but got a list of 0"),
    ('{"examples": [{"f": [1, 1.5]}]}',
     "Unexpected element type in feature: f expecting type: int64"),
    ('{"examples": [{"f": [1.5, true]}]}',
     "Unexpected element type in feature: f expecting type: float"),
    ('{"examples": [{"f": ["a", 1]}]}',
     "Unexpected element type in feature: f expecting type: bytes"),
    ('{"examples": [{"f": null}]}', "Feature: f has element with unexpected JSON type: null"),
    ('{"examples": [{"f": [[1]]}]}', "has element with unexpected JSON type: a list of 1"),
    ('{"examples": [{"f": {"b64": 1}}]}',
     "Feature: f has element with unexpected JSON type: an object of 1"),
    ('{"examples": [{"f": {"b64": "_w=="}}]}', "Only base64 data is allowed"),
    ('{"examples": [{"f": 9223372036854775808}]}',
     "Feature: f has uint64 element. Only int64_t is supported."),
    ('{"examples": [{"f": 1' + "0" * 400 + "}]}",
     "is beyond the numbers of 64 bits"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_bodies_without_examples_are_refused(body, message):
    with pytest.raises(StatusError) as raised:
        read(body)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert message in raised.value.message


@pytest.mark.parametrize(
    "text", ["", "example_list {}", "example_list_with_context { context { features {} } }"]
)
def test_an_input_without_examples_is_empty(text):
    with pytest.raises(StatusError, match=r"^Input is empty\.$"):
        examples.serialized(text_format.Parse(text, Input()))


def signature(inputs, outputs):
    definition = SignatureDef()
    for name in inputs:
        definition.inputs[name].name = name
    for name in outputs:
        definition.outputs[name].name = name
    return definition


def test_the_outputs_that_are_needed():
    classify, regress = examples.classification_outputs, examples.regression_outputs
    assert classify(signature(["inputs"], ["scores", "classes", "x"])) == ("classes", "scores")
    assert classify(signature(["inputs"], ["scores"])) == ("scores",)
    assert regress(signature(["inputs"], ["outputs", "x"])) == ("outputs",)
    for inputs, outputs in (
        (["text"], ["scores", "outputs"]),
        (["inputs", "text"], ["scores", "outputs"]),
        ([], ["scores", "outputs"]),
        (["inputs"], ["generated_text"]),
    ):
        for wanted in (classify, regress):
            with pytest.raises(StatusError, match="^Expected ") as raised:
                wanted(signature(inputs, outputs))
            assert raised.value.code is Code.INVALID_ARGUMENT


LABELS = np.array([[b"a", b"\xff"], [b"", b"d"]], object)
SCORES = np.array([[0.5, 1 / 3], [np.nan, 2]], np.float32)


def test_classes_go_out_with_their_scores():
    result = examples.classification_result({"classes": LABELS, "scores": SCORES}, 2)
    assert [[item.label for item in row.classes] for row in result.classifications] == [
        ["a", "\ufffd"],
        ["", "d"],
    ]
    assert examples.classification_json(result).decode() == (
        '{"results": [[["a", 0.5], ["\ufffd", 0.33333334]], [["", NaN], ["d", 2.0]]]}'
    )


def test_classes_or_scores_may_be_missing():
    only_scores = examples.classification_result({"scores": SCORES[:1]}, 1)
    assert json.loads(examples.classification_json(only_scores)) == {
        "results": [[["", 0.5], ["", 0.33333334]]]
    }
    only_classes = examples.classification_result({"classes": LABELS[1:]}, 1)
    assert json.loads(examples.classification_json(only_classes)) == {
        "results": [[["", 0.0], ["d", 0.0]]]
    }


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_values_of_regress_go_out_as_numbers(shape):
    values = np.array([0.5, 3], np.float32).reshape(shape)
    result = examples.regression_result({"outputs": values}, 2)
    assert examples.regression_json(result) == b'{"results": [0.5, 3.0]}'


UNFIT = [
    (examples.classification_result, {"scores": SCORES.astype(np.float64)}),
    (examples.classification_result, {"scores": SCORES[0]}),
    (examples.classification_result, {"scores": SCORES[:1]}),
    (examples.classification_result, {"classes": SCORES}),
    (examples.classification_result, {"classes": LABELS[:, :1], "scores": SCORES}),
    (examples.regression_result, {"outputs": SCORES}),
    (examples.regression_result, {"outputs": SCORES[:1, :1]}),
    (examples.regression_result, {"outputs": np.float32(1)}),
    (examples.regression_result, {"outputs": np.array([1, 2])}),
]


@pytest.mark.parametrize(("result", "outputs"), UNFIT)
def test_outputs_of_another_shape_or_dtype_are_refused(result, outputs):
    with pytest.raises(StatusError, match="^Expected ") as raised:
        result(outputs, 2)
    assert raised.value.code is Code.INVALID_ARGUMENT
