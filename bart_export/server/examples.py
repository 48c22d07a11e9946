"""Classify and Regress: examples go in, classes with scores or values come out.

A REST body becomes an Input message, the one that gRPC brings; an Input becomes the serialized
examples that a signature takes as its only input; its outputs become a result message, and that a
REST body. What is accepted, and what errors say, are TensorFlow Serving's. Nothing here runs a
signature.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bart_export.server import json_response
from bart_export.server.json_request import ParsedBody, base64_bytes, invalid, is_base64, shown
from bart_export.server.messages import (
    ClassificationResponse,
    ClassificationResult,
    Example,
    Feature,
    Input,
    RegressionResponse,
    RegressionResult,
)
from bart_export.server.tensors import Array, string_array

INPUT = "inputs"
CLASSES, SCORES, REGRESSIONS = "classes", "scores", "outputs"
# Fields of a Feature → what errors call their kind.
KINDS = {"int64_list": "int64", "float_list": "float", "bytes_list": "bytes"}
INT64 = np.iinfo(np.int64)
UINT64 = np.iinfo(np.uint64)


def from_json(parsed: ParsedBody) -> Any:
    """Return the examples of a body, with its context if it has one, as an Input.

    Raises:
        StatusError: INVALID_ARGUMENT for a body without examples, or whose features are not of one
            kind each.
    """
    document = parsed.document
    context = example(document["context"]) if "context" in document else None
    if "examples" not in document:
        raise invalid(
            "When method is classify or regress, key 'examples' is expected and was not found"
        )
    listed = document["examples"]
    if not isinstance(listed, list):
        raise invalid(f"Expected 'examples' to be a list, received {shown(listed)}")
    if not listed:
        raise invalid("'examples' value is an empty array")
    examples = [example(value) for value in listed]
    if context is None:
        return Input(example_list={"examples": examples})
    return Input(example_list_with_context={"examples": examples, "context": context})


def example(value: Any) -> Any:
    """Return an object of features as an Example."""
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got {shown(value)}")
    result = Example()
    for name, content in value.items():
        name = name.encode("utf-8", "replace").decode()
        result.features.feature[name].CopyFrom(feature(content, name))
    return result


def feature(content: Any, name: str) -> Any:
    """Return a value, or a list of values of one kind, as a Feature."""
    result = Feature()
    for value in content if isinstance(content, list) else [content]:
        field, item = feature_value(value, name)
        kind = result.WhichOneof("kind") or field
        if kind != field:
            raise invalid(
                f"Unexpected element type in feature: {name} expecting type: {KINDS[kind]}"
            )
        getattr(result, field).value.append(item)
    return result


def feature_value(value: Any, name: str) -> tuple[str, Any]:
    """Return the field of a Feature that a value belongs to, and the value as that field has it."""
    if isinstance(value, int) and INT64.min <= value <= INT64.max:
        return "int64_list", int(value)
    if isinstance(value, int) and INT64.max < value <= UINT64.max:
        raise invalid(f"Feature: {name} has uint64 element. Only int64_t is supported.")
    if isinstance(value, int | float):
        with np.errstate(over="ignore", under="ignore"):
            return "float_list", float(np.float64(value).astype(np.float32))
    try:
        if isinstance(value, str):
            return "bytes_list", value.encode()
        if is_base64(value):
            return "bytes_list", base64_bytes(value)
    except ValueError as error:
        raise invalid(f"Feature: {name} has an element that is no text: {error}") from None
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {shown(value)}")


def serialized(examples: Any) -> Array:
    """Return the examples of an Input, each serialized after the context, as strings (examples,).

    Serialized messages one after the other are one message: where both have a feature, the
    example's counts.

    Raises:
        StatusError: INVALID_ARGUMENT if there are none.
    """
    kind = examples.WhichOneof("kind")
    listed = getattr(examples, kind).examples if kind else []
    if not listed:
        raise invalid("Input is empty.")
    context = b""
    if kind == "example_list_with_context":
        context = examples.example_list_with_context.context.SerializeToString()
    return string_array(context + item.SerializeToString() for item in listed)


def check_input(signature_def: Any) -> None:
    """Refuse a signature that takes anything but examples."""
    if list(signature_def.inputs) != [INPUT]:
        raise invalid(
            f"Expected one input tensor named {INPUT!r}, the signature has: "
            f"{', '.join(sorted(signature_def.inputs))}."
        )


def classification_outputs(signature_def: Any) -> tuple[str, ...]:
    """Return the outputs of a signature that Classify needs.

    Raises:
        StatusError: INVALID_ARGUMENT for a signature that does not classify examples.
    """
    check_input(signature_def)
    wanted = tuple(name for name in (CLASSES, SCORES) if name in signature_def.outputs)
    if not wanted:
        raise invalid(
            f"Expected classification signature outputs to contain at least one of "
            f'"{CLASSES}" or "{SCORES}". Signature has: '
            f"{', '.join(sorted(signature_def.outputs))}."
        )
    return wanted


def regression_outputs(signature_def: Any) -> tuple[str, ...]:
    """Return the output of a signature that Regress needs.

    Raises:
        StatusError: INVALID_ARGUMENT for a signature that gives no value for examples.
    """
    check_input(signature_def)
    if REGRESSIONS not in signature_def.outputs:
        raise invalid(
            f'Expected regression signature outputs to contain "{REGRESSIONS}". Signature has: '
            f"{', '.join(sorted(signature_def.outputs))}."
        )
    return (REGRESSIONS,)


def classification_result(outputs: Mapping[str, Array], count: int) -> Any:
    """Return the classes and scores of `count` examples as a ClassificationResult.

    Raises:
        StatusError: INVALID_ARGUMENT for outputs that are not strings and float32 of one shape
            (examples, classes).
    """
    for name, dtype in ((CLASSES, "object"), (SCORES, "float32")):
        check_output(outputs, name, dtype, count, ranks=(2,))
    shapes = {array.shape for array in outputs.values()}
    if len(shapes) > 1:
        raise invalid(f"Expected as many classes as scores, received shapes {sorted(shapes)}.")
    (shape,) = shapes
    classes = outputs.get(CLASSES, np.full(shape, b"", object))
    scores = outputs.get(SCORES, np.zeros(shape, np.float32))
    result = ClassificationResult()
    for labels, values in zip(classes.tolist(), scores.tolist(), strict=True):
        row = result.classifications.add()
        for label, score in zip(labels, values, strict=True):
            row.classes.add(label=label.decode("utf-8", "replace"), score=score)
    return result


def regression_result(outputs: Mapping[str, Array], count: int) -> Any:
    """Return the values of `count` examples as a RegressionResult.

    Raises:
        StatusError: INVALID_ARGUMENT for an output that is not float32, (examples,) or
            (examples, 1).
    """
    check_output(outputs, REGRESSIONS, "float32", count, ranks=(1, 2))
    values = outputs[REGRESSIONS]
    if values.size != count:
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {list(values.shape)}"
        )
    result = RegressionResult()
    for value in values.reshape(-1).tolist():
        result.regressions.add(value=value)
    return result


def check_output(
    outputs: Mapping[str, Array], name: str, dtype: str, count: int, ranks: tuple[int, ...]
) -> None:
    """Refuse an output, if there is one of the name, of another dtype, rank or number of rows."""
    if name not in outputs:
        return
    array = outputs[name]
    if array.dtype != dtype or array.ndim not in ranks or len(array) != count:
        raise invalid(
            f"Expected output {name} of dtype {dtype} and rank {' or '.join(map(str, ranks))} with "
            f"{count} rows, received {array.dtype} {list(array.shape)}."
        )


def classification_json(result: Any) -> bytes:
    """Return a ClassificationResult as a body: `[label, score]` for each class of each example."""
    rows = []
    for row in result.classifications:
        scores = np.array([item.score for item in row.classes], np.float32)
        pairs = zip(row.classes, json_response.values(scores, SCORES), strict=True)
        rows.append([[item.label, score] for item, score in pairs])
    return json_response.document("results", json_response.json_text(rows))


def regression_json(result: Any) -> bytes:
    """Return a RegressionResult as a body: a value for each example."""
    values = np.array([item.value for item in result.regressions], np.float32)
    return json_response.document("results", json_response.written(values, REGRESSIONS))


@dataclasses.dataclass(frozen=True)
class ExampleMethod:
    """A method that takes

    `field` is that of its result in an InferenceResult. `outputs` chooses what the method needs of
    a signature's outputs, and `result` makes its result of them and the number of
    """

    api: str
    field: str
    response: Any
    outputs: Callable[[Any], tuple[str, ...]]
    result: Callable[[Mapping[str, Array], int], Any]


CLASSIFY = ExampleMethod(
    "Classify",
    "classification_result",
    ClassificationResponse,
    classification_outputs,
    classification_result,
)
REGRESS = ExampleMethod(
    "Regress",
    "regression_result",
    RegressionResponse,
    regression_outputs,
    regression_result,
)
# What a task of a MultiInferenceRequest calls the methods.
TASK_METHODS = {
    "tensorflow/serving/classify": CLASSIFY,
    "tensorflow/serving/regress": REGRESS,
}
