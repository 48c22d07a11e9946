"""The Edge TPU compiler's published rules, a row each: which operations map, and why one does not.

The list of operators and their limits is that of Coral's documentation ("TensorFlow models on the
Edge TPU", which Axis repeats for ARTPEC-7); two rows come from elsewhere and say so. Limits that
nobody published are missing: reshapes and resizes of large tensors, and activations that do not fit
("Compilation failed due to large activation tensors").
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

import numpy as np

from bart_export.edgetpu.model_file import Operand, Operation

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

# The last compiler, 16.0.384591198 of July 2021, reads files with the operators of TensorFlow Lite
# 2.5, whose last one was HASHTABLE_SIZE. It parses nothing of a file with a newer operator or
# version, whether that would map or not.
NEWEST_CODE = 139
# The newest version of each operator in a release up to 2.5, where it was not 1, by TensorFlow's
# lite/tools/versioning/runtime_version.cc.
NEWEST_VERSIONS = {
    operator: version
    for version, operators in {
        2: """
            ARG_MAX ARG_MIN DEPTH_TO_SPACE DIV FAKE_QUANT FLOOR_DIV GREATER GREATER_EQUAL
            L2_NORMALIZATION LEAKY_RELU LESS LESS_EQUAL LOG_SOFTMAX MIRROR_PAD QUANTIZE RSQRT
            SELECT SPACE_TO_DEPTH SPLIT_V SQUARED_DIFFERENCE SQUEEZE SUM TILE TOPK_V2
        """,
        3: """
            ABS ADD AVERAGE_POOL_2D BATCH_TO_SPACE_ND BIDIRECTIONAL_SEQUENCE_LSTM
            BIDIRECTIONAL_SEQUENCE_RNN BROADCAST_TO CONCATENATION EMBEDDING_LOOKUP EQUAL FILL
            GATHER_ND LOGISTIC MAX_POOL_2D MEAN NOT_EQUAL PACK PAD PADV2 REDUCE_MAX REDUCE_MIN
            RELU RELU6 REVERSE_V2 RNN SOFTMAX SPACE_TO_BATCH_ND SPARSE_TO_DENSE TANH TRANSPOSE_CONV
            UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN
        """,
        4: """
            BATCH_MATMUL DEQUANTIZE LSTM MAXIMUM MINIMUM MUL RESIZE_BILINEAR
            RESIZE_NEAREST_NEIGHBOR SPLIT SVDF UNPACK
        """,
        5: "CONV_2D GATHER SLICE STRIDED_SLICE SUB TRANSPOSE",
        6: "DEPTHWISE_CONV_2D",
        9: "FULLY_CONNECTED",
    }.items()
    for operator in operators.split()
}
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
REDUCTIONS = frozenset(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"))
LSTM = frozenset(("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"))

Places = Mapping[str, tuple[int, ...]]
# Inputs that must be constant, by operator and place: weights, biases, and what shapes the result.
WEIGHTS: Places = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (1,)),
    **dict.fromkeys(("PRELU", "TRANSPOSE_CONV"), (1,)),
    **dict.fromkeys(LSTM, (*range(1, 18), *range(20, 24))),
}
BIASES: Places = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (2,)),
    "TRANSPOSE_CONV": (3,),
}
SHAPING: Places = {
    **dict.fromkeys((*REDUCTIONS, "EXPAND_DIMS", "PAD", "RESHAPE", "TRANSPOSE"), (1,)),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), (1,)),
    "SLICE": (1, 2),
    "SPLIT": (0,),
    "STRIDED_SLICE": (1, 2, 3),
    "TRANSPOSE_CONV": (0,),
}
INTEGERS = ("INT8", "UINT8")
# An LSTM keeps its cell in 16 bits and its biases in 32.
LSTM_INTEGERS = (*INTEGERS, "INT16", "INT32")
MAPPED_RANK = 3
LONGEST_SOFTMAX = 16_000
# Reports of small files show 7.8 to 7.98 MiB of it free for parameters.
CACHE_BYTES = 8 * 2**20

Broken = Callable[[Operation], str | Literal[False]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule: `broken` says what is wrong with an operation, nothing where all is right.

    `status` is what the compiler calls it. `operators` are those it is about, None for every one.
    If a file breaks a rule that `refuses`, the compiler reads nothing of the file.
    """

    name: str
    status: str
    broken: Broken
    operators: Collection[str] | None = SUPPORTED
    refuses: bool = False

    def fault(self, operation: Operation) -> str:
        """Return how an operation breaks the rule, "" where it does not."""
        if self.operators is not None and operation.operator not in self.operators:
            return ""
        return self.broken(operation) or ""


def inputs_at(places: Places, operation: Operation) -> list[Operand]:
    """Return the inputs at the places that a table gives for an operator."""
    chosen = places.get(operation.operator, ())
    return [
        operand for place, operand in enumerate(operation.inputs) if place in chosen and operand
    ]


def parameters(operation: Operation) -> list[Operand]:
    """Return the inputs that must be constant."""
    return [
        operand for places in (WEIGHTS, BIASES, SHAPING) for operand in inputs_at(places, operation)
    ]


def activations(operation: Operation) -> list[Operand]:
    """Return what flows through an operation: its outputs, and inputs that are no parameters."""
    constant = {operand.index for operand in parameters(operation)}
    return [operand for operand in operation.operands if operand.index not in constant]


def listed(operands: Iterable[Operand], shapes: bool = False) -> str:
    """Return the names of operands, with their shapes if wanted."""
    return ", ".join(
        f"{operand.name} {list(operand.shape)}" if shapes else operand.name for operand in operands
    )


def axes(operation: Operation, place: int) -> list[int]:
    """Return the axes that an input gives for the other one's dimensions, counted from 0."""
    numbers, given = operation.input(place).numbers, operation.input(1 - place)
    return [int(axis) % max(1, len(given.shape)) for axis in numbers]


def too_new(operation: Operation) -> str | Literal[False]:
    """A version that TensorFlow Lite 2.5 had not given yet is not read."""
    newest = NEWEST_VERSIONS.get(operation.operator, 1)
    return (
        operation.code <= NEWEST_CODE
        and operation.version > newest
        and f"'{operation.operator}' version '{operation.version}'"
    )


def wrong_types(operation: Operation) -> str:
    """Everything is 8 bits wide, biases 32; numbers of shapes are not computed with."""
    allowed = LSTM_INTEGERS if operation.operator in LSTM else INTEGERS
    numbers = (*activations(operation), *inputs_at(WEIGHTS, operation))
    wrong = [operand for operand in numbers if operand.dtype not in allowed]
    wrong += [operand for operand in inputs_at(BIASES, operation) if operand.dtype != "INT32"]
    return ", ".join(f"{operand.name} is {operand.dtype}" for operand in wrong)


def without_scale(operation: Operation) -> str | Literal[False]:
    """Integers without a scale stand for no numbers."""
    wrong = listed(operand for operand in activations(operation) if not operand.scales)
    return bool(wrong) and f"no scale: {wrong}"


def many_scales(operation: Operation) -> str | Literal[False]:
    """The int8 kernel of TensorFlow Lite 2.5 has one scale for all weights of such a layer.

    Files with one scale a row are written under the same version, so that nothing else tells them
    apart. This is no rule of the documentation.
    """
    (weights,) = inputs_at(WEIGHTS, operation)
    return len(weights.scales) > 1 and f"{len(weights.scales)} scales"


def rank(operation: Operation) -> str:
    """Beyond the three innermost, dimensions must be 1."""
    return listed(
        (
            operand
            for operand in activations(operation)
            if any(size != 1 for size in operand.shape[:-MAPPED_RANK])
        ),
        shapes=True,
    )


def several_rows(words: str, operand: Operand) -> str | Literal[False]:
    """An operand may have one row of numbers."""
    return operand.rows != 1 and f"{words} {list(operand.shape)}"


def options_set(**words: str) -> Broken:
    """Return what finds options that must be left out; keys are their names in the schema."""
    return lambda operation: ", ".join(
        f"{what} {operation.option(name)}" for name, what in words.items() if operation.option(name)
    )


def odd_mean(operation: Operation) -> str | Literal[False]:
    """A mean over the innermost dimension takes multiples of 4."""
    shape = operation.input(0).shape
    return len(shape) - 1 in axes(operation, 1) and shape[-1] % 4 > 0 and f"{shape[-1]} numbers"


def constant_part(operation: Operation) -> str:
    """What is concatenated may be constant only as zeros that pad a single other input."""
    for given in operation.inputs:
        if given is not None and given.constant is not None:
            zero = given.zero_points[0] if given.zero_points else 0
            if len(operation.inputs) != 2 or np.any(given.numbers != zero):
                return f"constant {given.name}"
    return ""


def uneven_dilation(operation: Operation) -> str | Literal[False]:
    """Kernels are dilated alike in both directions."""
    wide, high = operation.option("dilationWFactor"), operation.option("dilationHFactor")
    return wide != high and f"dilation {high} by {wide}"


def squeezed_inside(operation: Operation) -> str | Literal[False]:
    """Only dimensions that come before all others are squeezed away."""
    given, (output,) = operation.input(0).shape, operation.outputs
    inside = given[len(given) - len(output.shape) :] != output.shape
    return inside and f"{list(given)} to {list(output.shape)}"


# The first that an operation breaks is its status.
RULES = (
    # What TensorFlow Lite 2.5 had not yet is not even read; of the rest, some is compiled.
    Rule("known code", OUT_OF_RANGE, lambda node: node.code > NEWEST_CODE and f"{node.code}",
         None, refuses=True),
    Rule("known version", TOO_NEW, too_new, None, refuses=True),
    Rule("supported operator", NOT_SUPPORTED,
         lambda node: node.operator not in SUPPORTED and node.code <= NEWEST_CODE
         and (node.custom or node.operator), None),
    Rule("8-bit integers", DATA_TYPE, wrong_types),
    Rule("quantized", DATA_TYPE, without_scale),
    Rule("constant parameters", NOT_CONSTANT,
         lambda node: listed(given for given in parameters(node) if given.constant is None)),
    Rule("rank", RANK, rank),
    Rule("one row of output", NOT_MAPPED, lambda node: several_rows("output", node.outputs[0]),
         ("FULLY_CONNECTED",)),
    Rule("default weights format", NOT_MAPPED, options_set(weightsFormat="weights format"),
         ("FULLY_CONNECTED",)),
    Rule("one scale of weights", NOT_MAPPED, many_scales, ("FULLY_CONNECTED",)),
    Rule("softmax of one row", NOT_MAPPED, lambda node: several_rows("input", node.input(0)),
         ("SOFTMAX",)),
    Rule("softmax length", NOT_MAPPED,
         lambda node: node.input(0).shape[-1] > LONGEST_SOFTMAX
         and f"{node.input(0).shape[-1]} elements", ("SOFTMAX",)),
    # The outermost dimension, where there is more than one, is the batch.
    Rule("reduction of the batch", NOT_MAPPED,
         lambda node: len(node.input(0).shape) > 1 and 0 in axes(node, 1)
         and f"axis 0 of {list(node.input(0).shape)}", REDUCTIONS),
    Rule("mean of multiples of 4", NOT_MAPPED, odd_mean, ("MEAN",)),
    Rule("strides of 1", NOT_MAPPED,
         lambda node: bool(np.any(node.input(3).numbers != 1))
         and f"strides {node.input(3).numbers.tolist()}", ("STRIDED_SLICE",)),
    Rule("slice without masks", NOT_MAPPED,
         options_set(ellipsisMask="ellipsis mask", newAxisMask="new axis mask"),
         ("STRIDED_SLICE",)),
    Rule("no fused activation", NOT_MAPPED,
         options_set(fusedActivationFunction="fused activation"),
         ("CONCATENATION", "AVERAGE_POOL_2D", "MAX_POOL_2D")),
    Rule("constant zeros", NOT_MAPPED, constant_part, ("CONCATENATION",)),
    Rule("even dilation", NOT_MAPPED, uneven_dilation, ("CONV_2D", "DEPTHWISE_CONV_2D")),
    Rule("packing of the batch", NOT_MAPPED,
         lambda node: node.option("axis") % len(node.outputs[0].shape) == 0 and "axis 0",
         ("PACK",)),
    Rule("padding of the batch", NOT_MAPPED,
         lambda node: any(node.input(1).numbers[:2])
         and f"paddings {node.input(1).numbers[:2].tolist()} of axis 0", ("PAD",)),
    Rule("splitting of the batch", NOT_MAPPED, lambda node: 0 in axes(node, 0) and "axis 0",
         ("SPLIT",)),
    # A parametric ReLU has a slope for each number of the innermost dimension.
    Rule("slopes of channels", NOT_MAPPED, lambda node: several_rows("slopes", node.input(1)),
         ("PRELU",)),
    Rule("squeezing in front", NOT_MAPPED, squeezed_inside, ("SQUEEZE",)),
    # Every size must be known before the file is compiled.
    Rule("static shapes", DYNAMIC,
         lambda node: listed((given for given in node.operands if given.dynamic), shapes=True),
         None, refuses=True),
)  # fmt: skip
