"""The graph of a quantized `.tflite` file must be that of its float file, matrices apart.

Both are walked operator by operator: they must be the same in the same order, with the same
options, read each other's results in the same places, and have the same constants. `QUANTIZE` and
`DEQUANTIZE` are looked through; matrices are left to `weights`. A wrong epsilon, bias or mask,
which rounding would hide in the logits, is found here.
"""

import pathlib

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.errors import VerificationFailed
from bart_export.verify.weights import WEIGHTS, Array, Operator, StoredFile, Tensor

LOOKED_THROUGH = ("QUANTIZE", "DEQUANTIZE")
# Options of FULLY_CONNECTED that say how integers are computed with.
FREE_OPTIONS = ("asymmetricQuantizeInputs", "quantizedBiasType")
# A constant that is stored in integers may be off by half a step, and by what float32 loses of it.
HALF_STEP, FLOAT_LOSS = 0.51, 1e-6


def compare_graphs(name: str, path: pathlib.Path, float_file: pathlib.Path) -> None:
    """Compare the graphs of a file with those of the float file that it was made of.

    Raises:
        VerificationFailed: for the first difference; `name` is what it calls the file.
    """
    received, expected = StoredFile(path), StoredFile(float_file)
    graphs, wanted = received.graphs(), expected.graphs()
    if graphs.keys() != wanted.keys():
        raise VerificationFailed(
            f"{name} must have the signatures {', '.join(wanted)}, received {', '.join(graphs)}."
        )
    for signature in wanted:
        difference = SignatureWalk(received, expected, signature).difference()
        if difference:
            raise VerificationFailed(
                f"{name} is not the graph that it was made of: in {signature}, {difference}."
            )


class SignatureWalk:
    """A walk along one signature of a file and of its float file.

    `counterparts` maps the file's tensors, as far as the walk has come, to those of the float file
    that stand for the same; `sources` maps a tensor to what it is without QUANTIZE and DEQUANTIZE.
    """

    def __init__(self, received: StoredFile, expected: StoredFile, signature: str) -> None:
        self.received, self.expected = received, expected
        self.graph, self.wanted = received.graphs()[signature], expected.graphs()[signature]
        self.definitions = [
            next(
                definition
                for definition in stored.model.signatureDefs
                if definition.signatureKey.decode() == signature
            )
            for stored in (received, expected)
        ]
        self.counterparts: dict[int, int] = {}
        self.sources: dict[int, int] = {}

    def difference(self) -> str | None:
        """Return the first difference in words, None for none."""
        given, wanted = (definition.inputs for definition in self.definitions)
        inputs = {tensor.name: tensor.tensorIndex for tensor in given}
        for tensor in wanted:
            if tensor.name not in inputs:
                return f"the input {tensor.name.decode()} is missing"
            self.counterparts[inputs[tensor.name]] = tensor.tensorIndex
        operators = [each for each in self.graph.operators if not self.looks_through(each)]
        if len(operators) != len(self.wanted.operators):
            return f"there are {len(operators)} operators instead of {len(self.wanted.operators)}"
        pairs = zip(operators, self.wanted.operators, strict=True)
        for number, (operator, expected) in enumerate(pairs):
            difference = self.operator_difference(operator, expected)
            if difference:
                name = self.expected.operator_name(expected)
                return f"operator {number}, {name}, {difference}"
        given, wanted = (definition.outputs for definition in self.definitions)
        outputs = {tensor.name: tensor.tensorIndex for tensor in given}
        for tensor in wanted:
            index = outputs.get(tensor.name)
            if index is None or self.counterparts.get(self.source(index)) != tensor.tensorIndex:
                return f"the output {tensor.name.decode()} is another tensor"
        return None

    def looks_through(self, operator: Operator) -> bool:
        """Return whether an operator only changes how a tensor is stored, and note of which."""
        if self.received.operator_name(operator) not in LOOKED_THROUGH:
            return False
        self.sources[int(operator.outputs[0])] = self.source(int(operator.inputs[0]))
        return True

    def source(self, index: int) -> int:
        """Return the tensor that a tensor is, however stored."""
        return self.sources.get(index, index)

    def operator_difference(self, operator: Operator, wanted: Operator) -> str | None:
        """Compare two operators, and note their results as counterparts."""
        name = self.received.operator_name(operator)
        if name != self.expected.operator_name(wanted):
            return f"is {name}"
        if fixed_options(operator) != fixed_options(wanted):
            return "has other options"
        if len(operator.inputs) != len(wanted.inputs):
            return f"reads {len(operator.inputs)} tensors instead of {len(wanted.inputs)}"
        for place, (index, other) in enumerate(zip(operator.inputs, wanted.inputs, strict=True)):
            difference = self.input_difference(int(index), int(other))
            if difference:
                return f"input {place}, {difference}"
        for index, other in zip(operator.outputs, wanted.outputs, strict=True):
            self.counterparts[int(index)] = int(other)
        return None

    def input_difference(self, index: int, other: int) -> str | None:
        """Compare what two operators read in the same place."""
        if min(index, other) < 0:  # an input that is left out
            return None if index == other else "is left out in one of the files"
        wanted = self.wanted.tensors[other]
        name = wanted.name.decode()
        if self.expected.data(wanted) is None:
            same = self.counterparts.get(self.source(index)) == other
            return None if same else f"{name}, is another tensor"
        tensor = self.graph.tensors[self.source(index)]
        if self.received.data(tensor) is None:
            return f"{name}, is not constant"
        if name.endswith(WEIGHTS):
            return None if tensor.name.decode() == name else f"{name}, is another matrix"
        difference = constant_difference(
            self.received.numbers(tensor), self.expected.numbers(wanted), tensor
        )
        return difference and f"{name}, {difference}"


def constant_difference(received: Array, expected: Array, tensor: Tensor) -> str | None:
    """Compare two constants that are no matrices; `tensor` says how the first is stored."""
    if received.shape != expected.shape:
        return f"has the shape {received.shape} instead of {expected.shape}"
    allowed: npt.NDArray[np.float64] = np.zeros((), np.float64)
    if np.issubdtype(expected.dtype, np.floating) and received.dtype != expected.dtype:
        scale, zero = quantization(tensor)
        received = (received.astype(np.float64) - zero) * scale
        allowed = HALF_STEP * np.minimum(scale, ideal_step(expected, tensor))
        allowed = allowed + FLOAT_LOSS * np.abs(expected)
    error = np.abs(received.astype(np.float64) - expected.astype(np.float64))
    if (error <= allowed).all():
        return None
    return f"differs by up to {np.max(error):.3g}"


def fixed_options(operator: Operator) -> dict[str, object]:
    """Return an operator's options that decide what it computes."""
    given = {} if operator.builtinOptions is None else vars(operator.builtinOptions)
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in given.items()
        if name not in FREE_OPTIONS
    }


def quantization(tensor: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scale and zero point of a constant, shaped to broadcast over its numbers."""
    given = tensor.quantization
    if given is None or given.scale is None:
        return np.ones(()), np.zeros(())
    shape = [1] * len(tensor.shape)
    if len(given.scale) > 1:
        shape[given.quantizedDimension] = -1
    return (
        np.asarray(given.scale, np.float64).reshape(shape),
        np.asarray(given.zeroPoint, np.float64).reshape(shape),
    )


# Numbers of these types have a step of their own, from the largest of them; integers of more bits
# take the scale of what they are added to.
STEPS_TO_LARGEST = {
    schema.TensorType.INT8: 2**7 - 1,
    schema.TensorType.INT16: 2**15 - 1,
    schema.TensorType.FLOAT16: 2**10,
}


def ideal_step(expected: Array, tensor: Tensor) -> float:
    """Return the largest step that rounding a constant may take, infinity if it has no choice."""
    if tensor.type not in STEPS_TO_LARGEST:
        return float("inf")
    largest = float(np.abs(expected).max(initial=0.0))
    smallest = float(np.finfo(np.float32).tiny)
    return max(largest, smallest) / STEPS_TO_LARGEST[tensor.type]
