"""The operators in exported `.tflite` files: operands, options, types and shapes.

Resizable dimensions count as 1, as in the file.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bart_export.runtime.flatbuffer import ABSENT, Tables, require

HIGHEST_RANK = 6
Shape = tuple[int, ...]


class Type(NamedTuple):
    """A tensor type: its name, the bits per element, and the range of zero points."""

    name: str
    bits: int
    lowest: int = 0
    highest: int = 0


TYPES = {
    0: Type("float32", 32),
    1: Type("float16", 16),
    2: Type("int32", 32),
    4: Type("int64", 64),
    6: Type("bool", 8),
    7: Type("int16", 16, -(2**15), 2**15 - 1),
    9: Type("int8", 8, -128, 127),
    17: Type("int4", 4, -8, 7),
}
TYPE_CODES = {type.name: code for code, type in TYPES.items()}


class Operand(NamedTuple):
    """An operator's input or output; `values` has the elements of a short int32 constant."""

    type: str
    shape: Shape
    constant: bool
    values: tuple[int, ...]


OMITTED = Operand("-", (), False, ())  # an input that is omitted

# Takes the inputs and the output, and returns whether their shapes and constants are consistent.
Rule = Callable[..., bool]


def broadcast_shape(a: Shape, b: Shape) -> Shape | None:
    """Return the shape that two shapes broadcast to, or None if they cannot."""
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def same(x: Operand, y: Operand) -> bool:
    """x → y of the same shape."""
    return x.shape == y.shape


def broadcast(a: Operand, b: Operand, y: Operand) -> bool:
    """a, b → y, elementwise with broadcasting."""
    return y.shape == broadcast_shape(a.shape, b.shape)


def fits_bias(bias: Operand, weights: Operand) -> bool:
    """Return whether a bias has one number per row of the weights, or is omitted."""
    return bias == OMITTED or bias.shape == weights.shape[:1]


def fully_connected(x: Operand, weights: Operand, bias: Operand, y: Operand) -> bool:
    """(rows, width), (units, width) → (rows, units)."""
    return (
        len(x.shape) == len(weights.shape) == 2
        and x.shape[1] == weights.shape[1]
        and y.shape == (x.shape[0], weights.shape[0])
        and fits_bias(bias, weights)
    )


def convolution(x: Operand, weights: Operand, bias: Operand, y: Operand) -> bool:
    """(one, height, width, channels), constant (filters, 1, 1, channels) → (…, filters)."""
    return (
        len(x.shape) == len(weights.shape) == 4
        and weights.constant
        and bias.constant
        and weights.shape[1:] == (1, 1, x.shape[3])
        and y.shape == (*x.shape[:3], weights.shape[0])
        and fits_bias(bias, weights)
    )


def matrix_product(a: Operand, b: Operand, y: Operand, *, adj_y: int) -> bool:
    """(…, rows, inner), (…, inner, columns) or, with `adj_y`, (…, columns, inner)."""
    if min(len(a.shape), len(b.shape)) < 2:
        return False
    inner, columns = b.shape[:-3:-1] if adj_y else b.shape[-2:]
    outer = broadcast_shape(a.shape[:-2], b.shape[:-2])
    return outer is not None and a.shape[-1] == inner and y.shape == (*outer, a.shape[-2], columns)


def gather(table: Operand, rows: Operand, y: Operand) -> bool:
    """Table (rows, …), indices (n,) → (n, …)."""
    return len(rows.shape) == 1 <= len(table.shape) and y.shape == rows.shape + table.shape[1:]


def lookup(rows: Operand, table: Operand, y: Operand) -> bool:
    """Indices (n,), table (rows, …) → (n, …)."""
    return len(table.shape) >= 2 and gather(table, rows, y)


def reshape(x: Operand, shape: Operand, y: Operand) -> bool:
    """x, shape → y; one dimension of the shape may be -1. The kernel checks a computed shape."""
    if math.prod(x.shape) != math.prod(y.shape) or shape.shape != (len(y.shape),):
        return False
    return not shape.constant or (
        shape.values.count(-1) <= 1
        and all(size in (-1, made) for size, made in zip(shape.values, y.shape, strict=True))
    )


def join(a: Operand, b: Operand, y: Operand) -> bool:
    """(n,), (m,) → (n + m,)."""
    return len(a.shape) == len(b.shape) == 1 and y.shape == (a.shape[0] + b.shape[0],)


def transpose(x: Operand, order: Operand, y: Operand) -> bool:
    """x, permutation → y."""
    return (
        order.shape == (len(x.shape),)
        and sorted(order.values) == list(range(len(x.shape)))
        and y.shape == tuple(x.shape[axis] for axis in order.values)
    )


def reduction(x: Operand, axis: Operand, y: Operand) -> bool:
    """x, axis → y with size 1 in that axis."""
    rank = len(x.shape)
    if len(axis.values) != 1 or not -rank <= axis.values[0] < rank:
        return False
    reduced = axis.values[0] % rank
    return y.shape == (*x.shape[:reduced], 1, *x.shape[reduced + 1 :])


def expansion(x: Operand, axis: Operand, y: Operand) -> bool:
    """x, axis → y with a new axis of size 1."""
    if len(axis.values) != 1 or not 0 <= axis.values[0] <= len(x.shape):
        return False
    return y.shape == (*x.shape[: axis.values[0]], 1, *x.shape[axis.values[0] :])


def shape_of(x: Operand, y: Operand) -> bool:
    """x → its shape (rank,)."""
    return y.shape == (len(x.shape),)


def one_element(x: Operand, begin: Operand, end: Operand, stride: Operand, y: Operand) -> bool:
    """x (n,), begin, begin + 1, stride 1 → a scalar."""
    return (
        len(x.shape) == 1
        and len(begin.values) == 1
        and 0 <= begin.values[0] < x.shape[0]
        and end.values == (begin.values[0] + 1,)
        and stride.values == (1,)
        and y.shape == ()
    )


def counting(start: Operand, end: Operand, step: Operand, y: Operand) -> bool:
    """0, end, 1 → (n,)."""
    scalars = start.shape == end.shape == step.shape == ()
    return scalars and start.values == (0,) and step.values == (1,) and len(y.shape) == 1


ALIKE = ("float32 float32", "int16 int16", "int8 int8")
PAIRS = ("float32 float32 float32", "int16 int16 int16", "int8 int8 int8")
COMPARED = ("int32 int32 bool",)
# An input, a short constant with a shape, axes or indices, and the output.
TURNED = ("float32 int32 float32", "int16 int32 int16", "int8 int32 int8")
# An input, weights, an optional bias, and the output.
LINEAR = (
    "float32 float32 float32 float32", "float32 float32 - float32",
    "float32 int8 float32 float32", "float32 int8 - float32",
    "float32 int4 float32 float32", "float32 int4 - float32",
    "int16 int8 int64 int16", "int16 int8 - int16",
    "int8 int8 int32 int8", "int8 int8 - int8",
)  # fmt: skip
TABLES = ("int32 float32 float32", "int32 int8 float32", "int32 int4 float32")
REAL = ("float16 float32", "int16 float32", "int8 float32")
FILTERED = ("int8 int8 int32 int8",)
SLICED = ("int32 int32 int32 int32 int32",)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator: its schema code, its name, and a rule for its operands.

    `types` lists the allowed types of inputs and output, with "-" for an omitted input. `options`
    is the options table and its number in the union; `passed` names the options that `fits` gets.
    """

    code: int
    name: str
    fits: Rule
    types: tuple[str, ...]
    options: tuple[str, int] = ("", 0)
    passed: tuple[str, ...] = ()

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return len(self.types[0].split()) - 1


CUSTOM = 32
REDUCER = ("ReducerOptions", 27)
PRODUCT = ("BatchMatMulOptions", 101)
OPERATORS = {
    operator.code: operator
    for operator in (
        Operator(0, "ADD", broadcast, PAIRS, ("AddOptions", 11)),
        Operator(2, "CONCATENATION", join, ("int32 int32 int32",), ("ConcatenationOptions", 10)),
        Operator(3, "CONV_2D", convolution, FILTERED, ("Conv2DOptions", 1)),
        Operator(6, "DEQUANTIZE", same, REAL),
        Operator(7, "EMBEDDING_LOOKUP", lookup, TABLES),
        Operator(9, "FULLY_CONNECTED", fully_connected, LINEAR, ("FullyConnectedOptions", 8)),
        Operator(14, "LOGISTIC", same, ALIKE),
        Operator(18, "MUL", broadcast, PAIRS, ("MulOptions", 21)),
        Operator(22, "RESHAPE", reshape, (*TURNED, "int32 int32 int32")),
        Operator(25, "SOFTMAX", same, ALIKE, ("SoftmaxOptions", 9)),
        Operator(36, "GATHER", gather, TURNED, ("GatherOptions", 23)),
        Operator(39, "TRANSPOSE", transpose, TURNED),
        Operator(40, "MEAN", reduction, TURNED, REDUCER),
        Operator(41, "SUB", broadcast, PAIRS, ("SubOptions", 28)),
        Operator(45, "STRIDED_SLICE", one_element, SLICED, ("StridedSliceOptions", 32)),
        Operator(53, "CAST", same, ("bool float32", "int32 float32")),
        Operator(61, "GREATER", broadcast, COMPARED),
        Operator(70, "EXPAND_DIMS", expansion, TURNED, ("ExpandDimsOptions", 52)),
        Operator(71, "EQUAL", broadcast, COMPARED),
        Operator(74, "SUM", reduction, TURNED, REDUCER),
        Operator(76, "RSQRT", same, ALIKE),
        Operator(77, "SHAPE", shape_of, ("float32 int32", "int32 int32"), ("ShapeOptions", 55)),
        Operator(96, "RANGE", counting, ("int32 int32 int32 int32",)),
        Operator(114, "QUANTIZE", same, ("float32 int16", "float32 int8")),
        Operator(126, "BATCH_MATMUL", matrix_product, PAIRS, PRODUCT, ("adj_y",)),
        Operator(150, "GELU", same, ALIKE, ("GeluOptions", 116)),
    )
}
# Allowed values of options; a field that is not listed is a switch.
SWITCH = (0, 1)
OPTION_VALUES = {
    "out_type": (2,),
    "padding": (0, 1),
    **dict.fromkeys(("axis", "batch_dims", "adj_x", "offset"), (0,)),
    **dict.fromkeys(("keep_dims", "shrink_axis_mask"), (1,)),
    **dict.fromkeys(("fused_activation_function", "weights_format", "quantized_bias_type"), (0,)),
    **dict.fromkeys(("stride_w", "stride_h", "dilation_w_factor", "dilation_h_factor"), (1,)),
    **dict.fromkeys(("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask"), (0,)),
}


def check_operands(row: Operator, operands: Sequence[Operand], options: Mapping[str, int]) -> None:
    """Check an operator's inputs and output against its row."""
    types = " ".join(operand.type for operand in operands)
    require(types in row.types, f"{row.name} with unsupported types")
    require(row.fits(*operands, **options), f"{row.name} with inconsistent shapes")


def check_options(options: Tables, wrong: str) -> None:
    """Raise InvalidGraph unless all options have allowed values."""
    for field, kind in options.fields.items():
        if kind == "f4":
            require(options.present(field), wrong)
            require(options.file.numbers(options.stored(field), kind) == 1.0, wrong)
        elif kind != ABSENT:
            require(np.isin(options.column(field), OPTION_VALUES.get(field, SWITCH)), wrong)
