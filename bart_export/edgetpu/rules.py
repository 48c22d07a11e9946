"""The Edge TPU compiler's published rules, a row each: which operations map, and why one does not.

An operation goes in; whether a rule is broken, and by what, comes out. The list of operators and
their limits is that of Coral's documentation ("TensorFlow models on the Edge TPU", which Axis
repeats for ARTPEC-7); two rows come from elsewhere and say so. What the compiler decides by sizes
that nobody published is not here: reshapes and resizes of large tensors, and activations that do
not fit ("Compilation failed due to large activation tensors").
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from bart_export.edgetpu.model_file import Operand, Operation
from bart_export.edgetpu.versions import NEWEST_CODE, newest

# The compiler's own words for what becomes of an operation.
MAPPED = "Mapped to Edge TPU"
AFTERWARDS = "More than one subgraph is not supported"
NOT_SUPPORTED = "Operation not supported"
NOT_MAPPED = "Operation is otherwise supported, but not mapped due to some unspecified limitation"
DATA_TYPE = "Operation is working on an unsupported data type"
RANK = "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
NOT_CONSTANT = "Filter, bias, or other param is not constant at compile-time"
# And for what makes it refuse a whole file.
OUT_OF_RANGE = "Op builtin_code out of range"
TOO_NEW = "Didn't find op for builtin opcode"
DYNAMIC = (
    "Attempting to use a delegate that only supports static-sized tensors with a graph that has "
    "dynamic-sized tensors"
)

SUPPORTED = frozenset(
    (
        "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXPAND_DIMS",
        "FULLY_CONNECTED", "L2_NORMALIZATION", "LOGISTIC", "LSTM", "MAXIMUM", "MAX_POOL_2D",
        "MEAN", "MINIMUM", "MUL", "PACK", "PAD", "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN",
        "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
        "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE", "SQUEEZE",
        "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
    )
)  # fmt: skip
# Inputs that must be constant, by their place: weights and biases, and what shapes the result.
WEIGHTS = {
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "FULLY_CONNECTED": (1,),
    "PRELU": (1,),
    "TRANSPOSE_CONV": (1,),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 18), *range(20, 24)),
    "LSTM": (*range(1, 18), *range(20, 24)),
}
BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}
SHAPING = {
    "EXPAND_DIMS": (1,),
    "MEAN": (1,),
    "PAD": (1,),
    "REDUCE_MAX": (1,),
    "REDUCE_MIN": (1,),
    "RESHAPE": (1,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "SLICE": (1, 2),
    "SPLIT": (0,),
    "STRIDED_SLICE": (1, 2, 3),
    "SUM": (1,),
    "TRANSPOSE": (1,),
    "TRANSPOSE_CONV": (0,),
}
INTEGERS = ("INT8", "UINT8")
# An LSTM keeps its cell in 16 bits and its biases in 32.
LSTM_INTEGERS = (*INTEGERS, "INT16", "INT32")
LSTM = frozenset(("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"))
MAPPED_RANK = 3
LONGEST_SOFTMAX = 16_000
# Reports of small files show 7.8 to 7.98 MiB of it free for parameters.
CACHE_BYTES = 8 * 2**20


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule: `broken` returns what is wrong with an operation, "" where nothing is.

    `status` is what the compiler calls it. `operators` are those it is about, None for every one.
    Of a file that breaks a rule that `refuses` the compiler reads nothing.
    """

    name: str
    status: str
    broken: Callable[[Operation], str]
    operators: frozenset[str] | None = SUPPORTED
    refuses: bool = False

    def fault(self, operation: Operation) -> str:
        """Return how an operation breaks the rule, "" where it does not."""
        if self.operators is not None and operation.operator not in self.operators:
            return ""
        return self.broken(operation)


def places(table: dict[str, tuple[int, ...]], operation: Operation) -> list[Operand]:
    """Return the inputs at the places that a table gives for an operator."""
    chosen = table.get(operation.operator, ())
    return [
        given
        for place, given in enumerate(operation.inputs)
        if place in chosen and given is not None
    ]


def biases(operation: Operation) -> list[Operand]:
    """Return the bias of an operation, if it has one."""
    return places({name: (place,) for name, place in BIAS.items()}, operation)


def activations(operation: Operation) -> list[Operand]:
    """Return what flows through an operation: its outputs, and inputs that are no parameters."""
    parameters = [*places(WEIGHTS, operation), *biases(operation), *places(SHAPING, operation)]
    ids = {one.index for one in parameters}
    return [
        one
        for one in (*operation.inputs, *operation.outputs)
        if one is not None and one.index not in ids
    ]


def needed(operation: Operation, place: int) -> Operand:
    """Return an input that the operator cannot do without."""
    given = operation.inputs[place]
    if given is None:
        raise IndexError(f"input {place} of {operation.operator} is missing")
    return given


def option(operation: Operation, name: str) -> int:
    """Return an option of an operator; what a file leaves out is 0."""
    return int(getattr(operation.options, name, 0))


def beyond_the_codes(operation: Operation) -> str:
    """Codes that TensorFlow Lite 2.5 had not given yet are not even read."""
    return f"{operation.code}" if operation.code > NEWEST_CODE else ""


def too_new(operation: Operation) -> str:
    """See `edgetpu.versions`."""
    if operation.code > NEWEST_CODE or operation.version <= newest(operation.operator):
        return ""
    return f"'{operation.operator}' version '{operation.version}'"


def dynamic(operation: Operation) -> str:
    """Every size must be known before the file is compiled."""
    sizes = [
        f"{one.name} {list(one.shape)}"
        for one in (*operation.inputs, *operation.outputs)
        if one is not None and one.dynamic
    ]
    return ", ".join(sizes)


def no_integers(operation: Operation) -> str:
    """Everything is 8 bits wide, biases 32; numbers of shapes are not computed with."""
    allowed = LSTM_INTEGERS if operation.operator in LSTM else INTEGERS
    wrong = [
        f"{one.name} is {one.dtype}"
        for one in (*activations(operation), *places(WEIGHTS, operation))
        if one.dtype not in allowed
    ]
    wrong += [f"{one.name} is {one.dtype}" for one in biases(operation) if one.dtype != "INT32"]
    return ", ".join(wrong)


def no_scale(operation: Operation) -> str:
    """Integers without a scale stand for no numbers."""
    wrong = [one.name for one in activations(operation) if not one.scales]
    return f"no scale: {', '.join(wrong)}" if wrong else ""


def computed_parameters(operation: Operation) -> str:
    """Weights, biases and what shapes the result must be in the file."""
    parameters = [*places(WEIGHTS, operation), *biases(operation), *places(SHAPING, operation)]
    return ", ".join(one.name for one in parameters if one.constant is None)


def too_many_dimensions(operation: Operation) -> str:
    """Beyond the three innermost, dimensions must be 1."""
    wrong = [
        f"{one.name} {list(one.shape)}"
        for one in activations(operation)
        if np.prod(one.shape[:-MAPPED_RANK], dtype=np.int64) != 1
    ]
    return ", ".join(wrong)


def rows_of_output(operation: Operation) -> str:
    """A fully connected layer gives one row of numbers."""
    (output,) = operation.outputs
    return f"output {list(output.shape)}" if output.rows != 1 else ""


def other_weights_format(operation: Operation) -> str:
    """Weights of a fully connected layer lie as they are in memory, not shuffled."""
    form = option(operation, "weightsFormat")
    return f"weights format {form}" if form else ""


def scales_of_rows(operation: Operation) -> str:
    """The int8 kernel of TensorFlow Lite 2.5 has one scale for all weights of such a layer.

    Files with one scale a row are written under the same version, so that nothing else tells them
    apart. This is no rule of the documentation.
    """
    (weights,) = places(WEIGHTS, operation)
    return f"{len(weights.scales)} scales" if len(weights.scales) > 1 else ""


def rows_of_softmax(operation: Operation) -> str:
    """A softmax is over one row of numbers."""
    given = needed(operation, 0)
    return f"input {list(given.shape)}" if given.rows != 1 else ""


def long_softmax(operation: Operation) -> str:
    """And over so many of them."""
    given = needed(operation, 0)
    return f"{given.shape[-1]} elements" if given.shape[-1] > LONGEST_SOFTMAX else ""


def axes(operation: Operation, place: int) -> list[int]:
    """Return the axes that an input gives for another one's dimensions, counted from 0."""
    numbers, given = needed(operation, place), needed(operation, 1 - place)
    return [int(axis) % max(1, len(given.shape)) for axis in numbers.numbers]


def over_the_batch(operation: Operation) -> str:
    """The outermost dimension, where there is more than one, is the batch."""
    given = needed(operation, 0)
    batch = len(given.shape) > 1 and 0 in axes(operation, 1)
    return f"axis 0 of {list(given.shape)}" if batch else ""


def odd_depth(operation: Operation) -> str:
    """A mean over the innermost dimension takes multiples of 4."""
    given = needed(operation, 0)
    deep = len(given.shape) - 1 in axes(operation, 1)
    return f"{given.shape[-1]} numbers" if deep and given.shape[-1] % 4 else ""


def steps(operation: Operation) -> str:
    """A strided slice leaves nothing out between its ends."""
    strides = needed(operation, 3).numbers.tolist()
    return f"strides {strides}" if set(strides) - {1} else ""


def masks(operation: Operation) -> str:
    """Nor has it an ellipsis or a new axis."""
    wrong = {"ellipsis mask": "ellipsisMask", "new axis mask": "newAxisMask"}
    return ", ".join(
        f"{words} {option(operation, name)}"
        for words, name in wrong.items()
        if option(operation, name)
    )


def fused_activation(operation: Operation) -> str:
    """Some operators take no activation function along."""
    fused = option(operation, "fusedActivationFunction")
    return f"fused activation {fused}" if fused else ""


def constant_part(operation: Operation) -> str:
    """What is concatenated may be constant only as zeros that pad a single other input."""
    for given in operation.inputs:
        if given is None or given.constant is None:
            continue
        zero = given.zero_points[0] if given.zero_points else 0
        if len(operation.inputs) != 2 or np.any(given.numbers != zero):
            return f"constant {given.name}"
    return ""


def uneven_dilation(operation: Operation) -> str:
    """Kernels are dilated alike in both directions."""
    wide, high = option(operation, "dilationWFactor"), option(operation, "dilationHFactor")
    return f"dilation {high} by {wide}" if wide != high else ""


def packed_batch(operation: Operation) -> str:
    """Nothing is packed along the batch."""
    (output,) = operation.outputs
    return "axis 0" if option(operation, "axis") % len(output.shape) == 0 else ""


def padded_batch(operation: Operation) -> str:
    """Nor padded."""
    first = needed(operation, 1).numbers[:2].tolist()
    return f"paddings {first} of axis 0" if any(first) else ""


def split_batch(operation: Operation) -> str:
    """Nor split."""
    return "axis 0" if 0 in axes(operation, 0) else ""


def slopes_of_places(operation: Operation) -> str:
    """A parametric ReLU has a slope for each number of the innermost dimension."""
    (slopes,) = places(WEIGHTS, operation)
    return f"slopes {list(slopes.shape)}" if slopes.rows != 1 else ""


def relayout(operation: Operation) -> str:
    """Only dimensions that come before all others are squeezed away."""
    given = needed(operation, 0)
    (output,) = operation.outputs
    kept = len(output.shape)
    moved = tuple(given.shape[len(given.shape) - kept :]) != output.shape
    return f"{list(given.shape)} to {list(output.shape)}" if moved else ""


def unsupported(operation: Operation) -> str:
    """What the compiler knows but does not compile."""
    known = operation.operator in SUPPORTED or operation.code > NEWEST_CODE
    return "" if known else operation.custom or operation.operator


def of(*operators: str) -> frozenset[str]:
    """Return the operators that a rule is about."""
    return frozenset(operators)


REDUCTIONS = of("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")
CONVOLUTIONS = of("CONV_2D", "DEPTHWISE_CONV_2D")
POOLS = of("AVERAGE_POOL_2D", "MAX_POOL_2D")
FULLY_CONNECTED = of("FULLY_CONNECTED")

# The first that an operation breaks is its status.
RULES = (
    Rule("known code", OUT_OF_RANGE, beyond_the_codes, None, refuses=True),
    Rule("known version", TOO_NEW, too_new, None, refuses=True),
    Rule("supported operator", NOT_SUPPORTED, unsupported, None),
    Rule("8-bit integers", DATA_TYPE, no_integers),
    Rule("quantized", DATA_TYPE, no_scale),
    Rule("constant parameters", NOT_CONSTANT, computed_parameters),
    Rule("rank", RANK, too_many_dimensions),
    Rule("one row of output", NOT_MAPPED, rows_of_output, FULLY_CONNECTED),
    Rule("default weights format", NOT_MAPPED, other_weights_format, FULLY_CONNECTED),
    Rule("one scale of weights", NOT_MAPPED, scales_of_rows, FULLY_CONNECTED),
    Rule("softmax of one row", NOT_MAPPED, rows_of_softmax, of("SOFTMAX")),
    Rule("softmax length", NOT_MAPPED, long_softmax, of("SOFTMAX")),
    Rule("reduction of the batch", NOT_MAPPED, over_the_batch, REDUCTIONS),
    Rule("mean of multiples of 4", NOT_MAPPED, odd_depth, of("MEAN")),
    Rule("strides of 1", NOT_MAPPED, steps, of("STRIDED_SLICE")),
    Rule("slice without masks", NOT_MAPPED, masks, of("STRIDED_SLICE")),
    Rule("no fused activation", NOT_MAPPED, fused_activation, of("CONCATENATION") | POOLS),
    Rule("constant zeros", NOT_MAPPED, constant_part, of("CONCATENATION")),
    Rule("even dilation", NOT_MAPPED, uneven_dilation, CONVOLUTIONS),
    Rule("packing of the batch", NOT_MAPPED, packed_batch, of("PACK")),
    Rule("padding of the batch", NOT_MAPPED, padded_batch, of("PAD")),
    Rule("splitting of the batch", NOT_MAPPED, split_batch, of("SPLIT")),
    Rule("slopes of channels", NOT_MAPPED, slopes_of_places, of("PRELU")),
    Rule("squeezing in front", NOT_MAPPED, relayout, of("SQUEEZE")),
    Rule("static shapes", DYNAMIC, dynamic, None, refuses=True),
)
