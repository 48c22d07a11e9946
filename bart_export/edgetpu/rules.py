"""The published rules of the Edge TPU compiler, one row each.

Operators and their limits are from Coral's documentation ("TensorFlow models on the Edge TPU",
repeated by Axis for ARTPEC-7), except where noted. Unpublished limits are missing: reshapes and
resizes of large tensors, and activations that are too large ("Compilation failed due to large
activation tensors").
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

import numpy as np

from bart_export.edgetpu.model_file import Operand, Operation

# The compiler's statuses for operations.
MAPPED = "Mapped to Edge TPU"
AFTERWARDS = "More than one subgraph is not supported"
NOT_SUPPORTED = "Operation not supported"
NOT_MAPPED = "Operation is otherwise supported, but not mapped due to some unspecified limitation"
DATA_TYPE = "Operation is working on an unsupported data type"
RANK = "Tensor has unsupported rank (up to 3 innermost dimensions mapped)"
NOT_CONSTANT = "Filter, bias, or other param is not constant at compile-time"
# The compiler's messages for files that it rejects.
OUT_OF_RANGE = "Op builtin_code out of range"
TOO_NEW = "Didn't find op for builtin opcode"
DYNAMIC = (
    "Attempting to use a delegate that only supports static-sized tensors with a graph that has "
    "dynamic-sized tensors"
)

# The last compiler, 16.0.384591198 of July 2021, knows the operators of TensorFlow Lite 2.5, the
# newest of which was HASHTABLE_SIZE. It rejects a file with any newer operator or version.
NEWEST_CODE = 139
# The newest version of each operator in TensorFlow Lite 2.5, if above 1, according to TensorFlow's
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
# Indices of inputs that must be constant: weights, biases and shape parameters.
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
# An LSTM has 16-bit cells and 32-bit biases.
LSTM_INTEGERS = (*INTEGERS, "INT16", "INT32")
MAPPED_RANK = 3
LONGEST_SOFTMAX = 16_000
# In published logs for small files, 7.8 to 7.98 MiB of this is free for parameters.
CACHE_BYTES = 8 * 2**20

Broken = Callable[[Operation], str | Literal[False]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of the compiler.

    `broken` says how an operation breaks it, or returns "" or False. `status` is the status of an
    operation that breaks it. `operators` are the operators that it applies to, or None for all. If
    `refuses` is set, the compiler rejects a file that breaks the rule.
    """

    name: str
    status: str
    broken: Broken
    operators: Collection[str] | None = SUPPORTED
    refuses: bool = False

    def fault(self, operation: Operation) -> str:
        """Return how an operation breaks the rule, or ""."""
        if self.operators is not None and operation.operator not in self.operators:
            return ""
        return self.broken(operation) or ""


def inputs_at(places: Places, operation: Operation) -> list[Operand]:
    """Return an operation's inputs at the indices that `places` lists for its operator."""
    chosen = places.get(operation.operator, ())
    return [
        operand for index, operand in enumerate(operation.inputs) if index in chosen and operand
    ]


def parameters(operation: Operation) -> list[Operand]:
    """Return the inputs that must be constant."""
    return [
        operand for places in (WEIGHTS, BIASES, SHAPING) for operand in inputs_at(places, operation)
    ]


def activations(operation: Operation) -> list[Operand]:
    """Return an operation's outputs, and the inputs that need not be constant."""
    constant = {operand.index for operand in parameters(operation)}
    return [operand for operand in operation.operands if operand.index not in constant]


def names_of(operands: Iterable[Operand], shapes: bool = False) -> str:
    """Return the names of operands, optionally with their shapes."""
    return ", ".join(
        f"{operand.name} {list(operand.shape)}" if shapes else operand.name for operand in operands
    )


def axes(operation: Operation, index: int) -> list[int]:
    """Return the axes in an input as non-negative axes of the other input."""
    numbers, tensor = operation.input(index).numbers, operation.input(1 - index)
    return [int(axis) % max(1, len(tensor.shape)) for axis in numbers]


def too_new(operation: Operation) -> str | Literal[False]:
    """Versions of operators newer than TensorFlow Lite 2.5 are rejected."""
    newest = NEWEST_VERSIONS.get(operation.operator, 1)
    return (
        operation.code <= NEWEST_CODE
        and operation.version > newest
        and f"'{operation.operator}' version '{operation.version}'"
    )


def wrong_types(operation: Operation) -> str:
    """Activations and weights must have 8 bits and biases 32; shape parameters can be any type."""
    allowed = LSTM_INTEGERS if operation.operator in LSTM else INTEGERS
    computed = (*activations(operation), *inputs_at(WEIGHTS, operation))
    wrong = [operand for operand in computed if operand.dtype not in allowed]
    wrong += [operand for operand in inputs_at(BIASES, operation) if operand.dtype != "INT32"]
    return ", ".join(f"{operand.name} is {operand.dtype}" for operand in wrong)


def without_scale(operation: Operation) -> str | Literal[False]:
    """Activations must have a scale."""
    wrong = names_of(operand for operand in activations(operation) if not operand.scales)
    return bool(wrong) and f"no scale: {wrong}"


def many_scales(operation: Operation) -> str | Literal[False]:
    """The int8 kernel of TensorFlow Lite 2.5 supports only one scale for all weights.

    Operators with one scale per row have the same version, so this must be checked. The rule is not
    in the documentation.
    """
    (weights,) = inputs_at(WEIGHTS, operation)
    return len(weights.scales) > 1 and f"{len(weights.scales)} scales"


def rank(operation: Operation) -> str:
    """All but the three innermost dimensions must be 1."""
    return names_of(
        (
            operand
            for operand in activations(operation)
            if any(size != 1 for size in operand.shape[:-MAPPED_RANK])
        ),
        shapes=True,
    )


def several_rows(label: str, operand: Operand) -> str | Literal[False]:
    """An operand must have a single row."""
    return operand.rows != 1 and f"{label} {list(operand.shape)}"


def options_set(**labels: str) -> Broken:
    """Return a check for options that must be 0; keys are their names in the schema."""
    return lambda operation: ", ".join(
        f"{label} {operation.option(name)}"
        for name, label in labels.items()
        if operation.option(name)
    )


def odd_mean(operation: Operation) -> str | Literal[False]:
    """The size of a mean over the innermost dimension must be a multiple of 4."""
    shape = operation.input(0).shape
    return len(shape) - 1 in axes(operation, 1) and shape[-1] % 4 > 0 and f"{shape[-1]} numbers"


def constant_part(operation: Operation) -> str:
    """A constant may only be concatenated to a single other input, and only if it is all zeros."""
    for operand in operation.inputs:
        if operand is not None and operand.constant is not None:
            zero = operand.zero_points[0] if operand.zero_points else 0
            if len(operation.inputs) != 2 or np.any(operand.numbers != zero):
                return f"constant {operand.name}"
    return ""


def uneven_dilation(operation: Operation) -> str | Literal[False]:
    """The dilation must be the same in both directions."""
    wide, high = operation.option("dilationWFactor"), operation.option("dilationHFactor")
    return wide != high and f"dilation {high} by {wide}"


def squeezed_inside(operation: Operation) -> str | Literal[False]:
    """Only the outermost dimensions may be squeezed."""
    shape, (output,) = operation.input(0).shape, operation.outputs
    inside = shape[len(shape) - len(output.shape) :] != output.shape
    return inside and f"{list(shape)} to {list(output.shape)}"


# An operation's status is that of the first rule it breaks.
RULES = (
    Rule("known code", OUT_OF_RANGE, lambda node: node.code > NEWEST_CODE and f"{node.code}",
         None, refuses=True),
    Rule("known version", TOO_NEW, too_new, None, refuses=True),
    Rule("supported operator", NOT_SUPPORTED,
         lambda node: node.operator not in SUPPORTED and node.code <= NEWEST_CODE
         and (node.custom or node.operator), None),
    Rule("8-bit integers", DATA_TYPE, wrong_types),
    Rule("quantized", DATA_TYPE, without_scale),
    Rule("constant parameters", NOT_CONSTANT,
         lambda node: names_of(each for each in parameters(node) if each.constant is None)),
    Rule("rank", RANK, rank),
    Rule("one output row", NOT_MAPPED, lambda node: several_rows("output", node.outputs[0]),
         ("FULLY_CONNECTED",)),
    Rule("default weights format", NOT_MAPPED, options_set(weightsFormat="weights format"),
         ("FULLY_CONNECTED",)),
    Rule("one weight scale", NOT_MAPPED, many_scales, ("FULLY_CONNECTED",)),
    Rule("one softmax row", NOT_MAPPED, lambda node: several_rows("input", node.input(0)),
         ("SOFTMAX",)),
    Rule("softmax length", NOT_MAPPED,
         lambda node: node.input(0).shape[-1] > LONGEST_SOFTMAX
         and f"{node.input(0).shape[-1]} elements", ("SOFTMAX",)),
    # If there is more than one dimension, the outermost is the batch.
    Rule("no batch reduction", NOT_MAPPED,
         lambda node: len(node.input(0).shape) > 1 and 0 in axes(node, 1)
         and f"axis 0 of {list(node.input(0).shape)}", REDUCTIONS),
    Rule("mean over a multiple of 4", NOT_MAPPED, odd_mean, ("MEAN",)),
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
    Rule("no batch packing", NOT_MAPPED,
         lambda node: node.option("axis") % len(node.outputs[0].shape) == 0 and "axis 0",
         ("PACK",)),
    Rule("no batch padding", NOT_MAPPED,
         lambda node: any(node.input(1).numbers[:2])
         and f"paddings {node.input(1).numbers[:2].tolist()} of axis 0", ("PAD",)),
    Rule("no batch splitting", NOT_MAPPED, lambda node: 0 in axes(node, 0) and "axis 0",
         ("SPLIT",)),
    # A parametric ReLU has a slope for each index of the innermost dimension.
    Rule("one slope per channel", NOT_MAPPED, lambda node: several_rows("slopes", node.input(1)),
         ("PRELU",)),
    Rule("only outermost squeezed", NOT_MAPPED, squeezed_inside, ("SQUEEZE",)),
    # All sizes must be known at compile time.
    Rule("static shapes", DYNAMIC,
         lambda node: names_of((each for each in node.operands if each.dynamic), shapes=True),
         None, refuses=True),
)  # fmt: skip
