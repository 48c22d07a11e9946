"""Structure: a quantized `.tflite` file must be the float file it was made of, matrices apart.

Two files go in; an error comes out that names the first difference. Both are walked operator by
operator: they must be the same in the same order, with the same options, read each other's results
in the same places, and have the same constants. `QUANTIZE` and `DEQUANTIZE` are looked through, and
matrices are left to `quality.weights`. A wrong epsilon, bias or mask, which rounding would hide in
the logits, is found here, once the float file itself is known to be right.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.errors import VerificationFailed
from bart_export.verify.stored import WEIGHTS, Stored

Floats = npt.NDArray[np.floating[Any]]

LOOKED_THROUGH = ("QUANTIZE", "DEQUANTIZE")
# Options of FULLY_CONNECTED that say how integers are computed with.
FREE_OPTIONS = ("asymmetricQuantizeInputs", "quantizedBiasType")
# A constant that is stored in integers may be off by half a step, and by what float32 loses of it.
HALF_STEP, FLOAT_LOSS = 0.51, 1e-6


def check(name: str, path: pathlib.Path, base: pathlib.Path) -> None:
    """Compare a file with the float file that it was made of.

    Raises:
        VerificationFailed: for the first difference; `name` is what it calls the file.
    """
    received, expected = Stored(path), Stored(base)
    graphs, wanted = received.graphs(), expected.graphs()
    if graphs.keys() != wanted.keys():
        raise VerificationFailed(
            f"{name} must have the signatures {', '.join(wanted)}, received {', '.join(graphs)}."
        )
    for signature in wanted:
        difference = Walk(received, expected, signature).difference()
        if difference:
            raise VerificationFailed(
                f"{name} is not the graph that it was made of: in {signature}, {difference}."
            )


@dataclasses.dataclass
class Walk:
    """A walk along one signature of a file and of its float file.

    `counterparts` maps tensors of the file, as far as the walk has come, to those of the float
    file that stand for the same.
    """

    received: Stored
    expected: Stored
    signature: str
    counterparts: dict[int, int] = dataclasses.field(default_factory=dict)

    def difference(self) -> str | None:
        """Return the first difference in words, None for none."""
        self.graph = self.received.graphs()[self.signature]
        self.wanted = self.expected.graphs()[self.signature]
        self.sources: dict[int, int] = {}  # tensor -> what it is without QUANTIZE, DEQUANTIZE
        ends = {one.name: one.tensorIndex for one in self.definition(self.received).inputs}
        for one in self.definition(self.expected).inputs:
            if one.name not in ends:
                return f"the input {one.name.decode()} is missing"
            self.counterparts[ends[one.name]] = one.tensorIndex
        operators = [one for one in self.graph.operators if not self.look_through(one)]
        if len(operators) != len(self.wanted.operators):
            return f"there are {len(operators)} operators instead of {len(self.wanted.operators)}"
        for number, (operator, wanted) in enumerate(
            zip(operators, self.wanted.operators, strict=True)
        ):
            difference = self.operator_difference(operator, wanted)
            if difference:
                return f"operator {number}, {self.expected.operator(wanted)}, {difference}"
        return self.output_difference()

    def definition(self, stored: Stored) -> Any:
        """Return the definition of the signature, a `SignatureDefT`."""
        return next(
            one for one in stored.model.signatureDefs if one.signatureKey.decode() == self.signature
        )

    def look_through(self, operator: Any) -> bool:
        """Return whether an operator only changes how a tensor is stored, and note of which."""
        if self.received.operator(operator) not in LOOKED_THROUGH:
            return False
        self.sources[int(operator.outputs[0])] = self.source(int(operator.inputs[0]))
        return True

    def source(self, index: int) -> int:
        """Return the tensor that a tensor is, however stored."""
        return self.sources.get(index, index)

    def operator_difference(self, operator: Any, wanted: Any) -> str | None:
        """Compare two operators, and note their results as counterparts."""
        if self.received.operator(operator) != self.expected.operator(wanted):
            return f"is {self.received.operator(operator)}"
        if options(operator) != options(wanted):
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
        return self.constant_difference(tensor, wanted)

    def constant_difference(self, tensor: Any, wanted: Any) -> str | None:
        """Compare two constants that are no matrices."""
        received, expected = self.received.numbers(tensor), self.expected.numbers(wanted)
        name = wanted.name.decode()
        if received.shape != expected.shape:
            return f"{name}, has the shape {received.shape} instead of {expected.shape}"
        allowed: Any = 0.0
        if np.issubdtype(expected.dtype, np.floating) and received.dtype != expected.dtype:
            scale, zero = quantization(tensor)
            received = (received.astype(np.float64) - zero) * scale
            allowed = HALF_STEP * np.minimum(scale, ideal_step(expected, tensor))
            allowed = allowed + FLOAT_LOSS * np.abs(expected)
        error = np.abs(received.astype(np.float64) - expected.astype(np.float64))
        if (error <= allowed).all():
            return None
        return f"{name}, differs by up to {np.max(error):.3g}"

    def output_difference(self) -> str | None:
        """Compare what the signature puts out."""
        ends = {one.name: one.tensorIndex for one in self.definition(self.received).outputs}
        for one in self.definition(self.expected).outputs:
            index = ends.get(one.name)
            if index is None or self.counterparts.get(self.source(index)) != one.tensorIndex:
                return f"the output {one.name.decode()} is another tensor"
        return None


def options(operator: Any) -> dict[str, Any]:
    """Return an operator's options that decide what it computes."""
    given = {} if operator.builtinOptions is None else vars(operator.builtinOptions)
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in given.items()
        if name not in FREE_OPTIONS
    }


def quantization(tensor: Any) -> tuple[Any, Any]:
    """Return scale and zero point of a constant, shaped to go with its numbers."""
    given = tensor.quantization
    if given is None or given.scale is None:
        return 1.0, 0.0
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


def ideal_step(expected: Floats, tensor: Any) -> float:
    """Return the largest step that rounding a constant may take, infinity if it has no choice."""
    if tensor.type not in STEPS_TO_LARGEST:
        return float("inf")
    largest = float(np.abs(expected).max(initial=0.0))
    smallest = float(np.finfo(np.float32).tiny)
    return max(largest, smallest) / STEPS_TO_LARGEST[tensor.type]
