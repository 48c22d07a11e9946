"""Comparison of a quantized `.tflite` file's graph with that of its float file.

Both must have the same operators in the same order, with the same options, inputs and constants.
`QUANTIZE` and `DEQUANTIZE` are ignored; `weights` compares the matrices. This finds a wrong
epsilon, bias or mask, which rounding would hide in the logits.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.errors import VerificationFailed
from bart_export.verify.weights import WEIGHTS, Array, Operator, StoredFile, Tensor, quantization

IGNORED_OPERATORS = ("QUANTIZE", "DEQUANTIZE")
# Options that differ if a FULLY_CONNECTED has integer weights.
IGNORED_OPTIONS = ("asymmetricQuantizeInputs", "quantizedBiasType")
# The tolerance for a constant stored in integers: half a step, plus a float32 rounding error.
HALF_STEP, FLOAT_LOSS = 0.51, 1e-6
# Number of steps up to the largest magnitude. Wider integers are not listed, because they have the
# scale of the sum that they are added to.
STEPS_TO_LARGEST = {
    schema.TensorType.INT8: 2**7 - 1,
    schema.TensorType.INT16: 2**15 - 1,
    schema.TensorType.FLOAT16: 2**10,
}
# A tensor's producer: an input's name, (operator, output) indices, or None for a constant.
Producer = str | tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class OperatorInput:
    """An operator's input tensor (None if it is omitted) and its source."""

    file: StoredFile
    tensor: Tensor
    source: Producer


@dataclasses.dataclass(frozen=True)
class Step:
    """An operator with its options and inputs."""

    name: str
    options: Mapping[str, object]
    inputs: Sequence[OperatorInput]


@dataclasses.dataclass(frozen=True)
class SignatureGraph:
    """A signature's inputs, steps, and the source of each output."""

    inputs: Sequence[str]
    steps: Sequence[Step]
    outputs: Mapping[str, Producer]


def compare_graphs(name: str, path: pathlib.Path, float_file: pathlib.Path) -> None:
    """Raise VerificationFailed for the first difference from the graphs of a float file."""
    received, expected = signatures(StoredFile(path)), signatures(StoredFile(float_file))
    if received.keys() != expected.keys():
        raise VerificationFailed(
            f"{name} must have the signatures {', '.join(expected)}, received "
            f"{', '.join(received)}."
        )
    for signature in expected:
        for difference in differences(received[signature], expected[signature]):
            raise VerificationFailed(
                f"{name} differs from the graph of its float32 file: in {signature}, {difference}."
            )


def signatures(stored: StoredFile) -> dict[str, SignatureGraph]:
    """Return a file's signatures by name, without `IGNORED_OPERATORS`."""
    found = {}
    for definition in stored.model.signatureDefs or ():
        graph = stored.model.subgraphs[definition.subgraphIndex]
        sources: dict[int, Producer] = {
            tensor.tensorIndex: tensor.name.decode() for tensor in definition.inputs
        }
        inputs = [str(name) for name in sources.values()]
        tensors = {**dict(enumerate(graph.tensors)), -1: None}  # -1 for an omitted input
        steps: list[Step] = []
        for operator in graph.operators:
            name, indices = stored.operator_name(operator), map(int, operator.inputs)
            if name in IGNORED_OPERATORS:
                (index,), (result,) = indices, map(int, operator.outputs)
                tensors[result] = tensors[index]
                sources[result] = sources.get(index)
                continue
            operands = [
                OperatorInput(stored, tensors[index], sources.get(index)) for index in indices
            ]
            for output, index in enumerate(operator.outputs):
                sources[int(index)] = (len(steps), output)
            steps.append(Step(name, compared_options(operator), operands))
        outputs = {
            tensor.name.decode(): sources.get(tensor.tensorIndex) for tensor in definition.outputs
        }
        found[definition.signatureKey.decode()] = SignatureGraph(inputs, steps, outputs)
    return found


def compared_options(operator: Operator) -> dict[str, object]:
    """Return an operator's options without `IGNORED_OPTIONS`."""
    options = {} if operator.builtinOptions is None else vars(operator.builtinOptions)
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in options.items()
        if name not in IGNORED_OPTIONS
    }


def differences(received: SignatureGraph, expected: SignatureGraph) -> Iterator[str]:
    """Yield messages about the differences between two signatures."""
    for name in expected.inputs:
        if name not in received.inputs:
            yield f"the input {name} is missing"
    if len(received.steps) != len(expected.steps):
        yield f"there are {len(received.steps)} operators instead of {len(expected.steps)}"
    for number, (step, other) in enumerate(zip(received.steps, expected.steps, strict=False)):
        operator = f"operator {number}, {other.name},"
        if step.name != other.name:
            yield f"operator {number} is {step.name} instead of {other.name}"
        if step.options != other.options:
            yield f"{operator} has different options"
        if len(step.inputs) != len(other.inputs):
            yield f"{operator} has {len(step.inputs)} inputs instead of {len(other.inputs)}"
        for place, operands in enumerate(zip(step.inputs, other.inputs, strict=False)):
            if difference := operand_difference(*operands):
                yield f"{operator} input {place}, {difference}"
    for name, source in expected.outputs.items():
        if received.outputs.get(name) != source:
            yield f"the output {name} is a different tensor"


def operand_difference(received: OperatorInput, expected: OperatorInput) -> str | None:
    """Return a message about the difference between two operands, or None if they are equal."""
    tensor, other = received.tensor, expected.tensor
    if tensor is None or other is None:
        return None if tensor is other else "is omitted in one of the files"
    name = other.name.decode()
    if expected.source is not None:
        return None if received.source == expected.source else f"{name}, is a different tensor"
    if received.source is not None or received.file.data(tensor) is None:
        return f"{name}, is not constant"
    if name.endswith(WEIGHTS):
        return None if tensor.name == other.name else f"{name}, is a different matrix"
    values = received.file.numbers(tensor), expected.file.numbers(other)
    difference = constant_difference(*values, tensor)
    return difference and f"{name}, {difference}"


def constant_difference(received: Array, expected: Array, tensor: Tensor) -> str | None:
    """Return a message about the difference between two constants, or None if they are equal.

    `tensor` has the type and quantization of `received`.
    """
    if received.shape != expected.shape:
        return f"has the shape {received.shape} instead of {expected.shape}"
    allowed: npt.NDArray[np.float64] = np.zeros((), np.float64)
    if np.issubdtype(expected.dtype, np.floating) and received.dtype != expected.dtype:
        scale, zero = quantization(tensor)
        received = (received.astype(np.float64) - zero) * scale
        allowed = scale.astype(np.float64)
        if tensor.type in STEPS_TO_LARGEST:  # a scale that is too large would accept anything
            largest = float(np.abs(expected).max(initial=np.finfo(np.float32).tiny))
            allowed = np.minimum(allowed, largest / STEPS_TO_LARGEST[tensor.type])
        allowed = HALF_STEP * allowed + FLOAT_LOSS * np.abs(expected)
    error = np.abs(received.astype(np.float64) - expected.astype(np.float64))
    return None if (error <= allowed).all() else f"differs by up to {np.max(error):.3g}"
