"""The operators of exported `.tflite` files: operands, options, types, and how shapes follow.

One row an operator. A rule of shapes is given all operators of a kind at once and returns, for
each, whether its output's shape is what its inputs' shapes and constants make it. A dimension that
is resized while running counts as the 1 that the file has for it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bart_export.runtime.flatbuffer import File, Ints, Tables

HIGHEST_RANK = 6
Truths = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Type:
    """A type of tensors: its name, how many bits an element has, and the range of zero points."""

    name: str
    bits: int
    least: int = 0
    most: int = 0


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
TYPE_CODES = {one.name: code for code, one in TYPES.items()}
ABSENT_TYPE = 31  # of an input that is left out


@dataclasses.dataclass(frozen=True)
class Operand:
    """One input, or the output, of all operators of a kind.

    `shape` has rows of dimensions, 0 behind the last; `begin` says where a constant lies.
    """

    file: File
    shape: Ints
    rank: Ints
    begin: Ints

    @property
    def aligned(self) -> Ints:
        """Shapes with their last dimensions below each other, 1 before the first."""
        source = np.arange(HIGHEST_RANK) - HIGHEST_RANK + self.rank[:, None]
        values = np.take_along_axis(self.shape, np.maximum(source, 0), axis=1)
        aligned: Ints = np.where(source < 0, 1, values)
        return aligned

    @property
    def elements(self) -> Ints:
        """How many elements there are."""
        result: Ints = np.where(self.shape > 0, self.shape, 1).prod(axis=1)
        return result

    @property
    def values(self) -> Ints:
        """The elements of short constants of int32, in rows as long as a shape, 0 behind them."""
        column = np.arange(HIGHEST_RANK)
        there = column < np.minimum(self.elements, HIGHEST_RANK)[:, None]
        values = np.zeros(there.shape, np.int64)
        values[there] = self.file.integers((self.begin[:, None] + 4 * column)[there], "i4")
        return values

    @property
    def first(self) -> Ints:
        """The first element of each constant."""
        return self.file.integers(self.begin, "i4")


@dataclasses.dataclass(frozen=True)
class Operands:
    """The inputs and the output of all operators of a kind, and their options, None for none."""

    inputs: tuple[Operand, ...]
    output: Operand
    options: Tables | None


# A rule returns, for all operators of a kind, what must be true of each.
Rule = Callable[[Operands], Sequence[Truths]]


def equal(some: Ints, others: Ints) -> Truths:
    """Return which rows are equal."""
    result: Truths = (some == others).all(axis=1)
    return result


def stretched(one: Ints, other: Ints, made: Ints) -> Truths:
    """Return which rows of dimensions are those that two others are broadcast to."""
    fit = (one == other) | (one == 1) | (other == 1)
    return equal(made, np.where(fit, np.maximum(one, other), -1))


def same(operands: Operands) -> Sequence[Truths]:
    """One input, whose shape the output has."""
    (given,), made = operands.inputs, operands.output
    return equal(given.shape, made.shape), given.rank == made.rank


def broadcast(operands: Operands) -> Sequence[Truths]:
    """Two inputs, element by element."""
    (one, other), made = operands.inputs, operands.output
    fit = stretched(one.aligned, other.aligned, made.aligned)
    return fit, made.rank == np.maximum(one.rank, other.rank)


def fully_connected(operands: Operands) -> Sequence[Truths]:
    """(rows, width) by (units, width) to (rows, units), with a bias or without."""
    (given, weights, bias), made = operands.inputs, operands.output
    return (
        *(one.rank == 2 for one in (given, weights, made)),
        given.shape[:, 1] == weights.shape[:, 1],
        made.shape[:, 0] == given.shape[:, 0],
        made.shape[:, 1] == weights.shape[:, 0],
        *biased(bias, weights),
    )


def biased(bias: Operand, weights: Operand) -> Sequence[Truths]:
    """A bias has a number for each row of the weights, or is left out."""
    absent = bias.begin < 0
    return absent | (bias.rank == 1), absent | (bias.shape[:, 0] == weights.shape[:, 0])


def convolution(operands: Operands) -> Sequence[Truths]:
    """(one, height, width, channels) by (filters, 1, 1, channels)."""
    (given, weights, bias), made = operands.inputs, operands.output
    return (
        *(one.rank == 4 for one in (given, weights, made)),
        weights.shape[:, 1:3] == 1,
        weights.shape[:, 3] == given.shape[:, 3],
        made.shape[:, :3] == given.shape[:, :3],
        made.shape[:, 3] == weights.shape[:, 0],
        *biased(bias, weights),
    )


def matrix_product(operands: Operands) -> Sequence[Truths]:
    """(…, rows, inner) by (…, inner, columns), or by (…, columns, inner) where the options say."""
    (one, other), made = operands.inputs, operands.output
    assert operands.options is not None
    turned = operands.options.column("adj_y") == 1
    left, right, result = one.aligned, other.aligned, made.aligned
    return (
        np.minimum(one.rank, other.rank) >= 2,
        made.rank == np.maximum(one.rank, other.rank),
        stretched(left[:, :-2], right[:, :-2], result[:, :-2]),
        left[:, -1] == np.where(turned, right[:, -1], right[:, -2]),
        result[:, -2] == left[:, -2],
        result[:, -1] == np.where(turned, right[:, -2], right[:, -1]),
    )


def rows_of(table: Operand, numbers: Operand, made: Operand) -> Sequence[Truths]:
    """A table and a row of numbers to those rows of the table."""
    return (
        numbers.rank == 1,
        table.rank >= 1,
        table.rank == made.rank,
        made.shape[:, 0] == numbers.shape[:, 0],
        made.shape[:, 1:] == table.shape[:, 1:],
    )


def lookup(operands: Operands) -> Sequence[Truths]:
    """Numbers and a table to rows of the table."""
    numbers, table = operands.inputs
    return *rows_of(table, numbers, operands.output), table.rank >= 2


def gather(operands: Operands) -> Sequence[Truths]:
    """A table and numbers to rows of the table."""
    table, numbers = operands.inputs
    return rows_of(table, numbers, operands.output)


def reshape(operands: Operands) -> Sequence[Truths]:
    """An input and a shape, in which one dimension may be -1."""
    (given, shape), made = operands.inputs, operands.output
    wanted = shape.values
    return (
        given.elements == made.elements,
        shape.rank == 1,
        shape.shape[:, 0] == made.rank,
        (wanted == -1).sum(axis=1) <= 1,
        (wanted == made.shape) | (wanted == -1),
    )


def transpose(operands: Operands) -> Sequence[Truths]:
    """An input and the order of its dimensions in the output."""
    (given, order), made = operands.inputs, operands.output
    column = np.arange(HIGHEST_RANK)
    # Behind the last dimension every one stays where it is.
    axes = np.where(column < given.rank[:, None], order.values, column)
    turned = np.take_along_axis(given.shape, np.clip(axes, 0, HIGHEST_RANK - 1), axis=1)
    return (
        order.rank == 1,
        order.shape[:, 0] == given.rank,
        made.rank == given.rank,
        np.sort(axes, axis=1) == column,
        turned == made.shape,
    )


def reduction(operands: Operands) -> Sequence[Truths]:
    """An input and the one dimension that becomes 1."""
    (given, axis), made = operands.inputs, operands.output
    reduced = np.where(axis.first < 0, axis.first + given.rank, axis.first)
    remaining = np.where(np.arange(HIGHEST_RANK) == reduced[:, None], 1, given.shape)
    return (
        axis.elements == 1,
        reduced >= 0,
        reduced < given.rank,
        remaining == made.shape,
        made.rank == given.rank,
    )


def expansion(operands: Operands) -> Sequence[Truths]:
    """An input and where a dimension of 1 is put in."""
    (given, axis), made = operands.inputs, operands.output
    return (
        axis.elements == 1,
        axis.first >= 0,
        axis.first <= given.rank,
        made.rank == given.rank + 1,
        made.elements == given.elements,
    )


def shape_of(operands: Operands) -> Sequence[Truths]:
    """An input to its dimensions."""
    (given,), made = operands.inputs, operands.output
    return made.rank == 1, made.shape[:, 0] == given.rank


def one_of(operands: Operands) -> Sequence[Truths]:
    """A row of numbers, and the index of the one that is taken."""
    (given, begin, end, stride), made = operands.inputs, operands.output
    return (
        given.rank == 1,
        *(one.elements == 1 for one in (begin, end, stride)),
        begin.first >= 0,
        begin.first < given.shape[:, 0],
        end.first == begin.first + 1,
        stride.first == 1,
        made.rank == 0,
    )


def counting(operands: Operands) -> Sequence[Truths]:
    """Numbers from 0 on."""
    (start, end, step), made = operands.inputs, operands.output
    scalars = (one.rank == 0 for one in (start, end, step))
    return *scalars, start.first == 0, step.first == 1, made.rank == 1


ALIKE = ("float32 float32", "int16 int16", "int8 int8")
PAIRS = ("float32 float32 float32", "int16 int16 int16", "int8 int8 int8")
COMPARED = ("int32 int32 bool",)
# An input, a short constant that says how, and the output.
TURNED = ("float32 int32 float32", "int16 int32 int16", "int8 int32 int8")
# An input, weights, a bias that may be left out, and the output.
LINEAR = (
    "float32 float32 float32 float32", "float32 float32 - float32",
    "float32 int8 float32 float32", "float32 int8 - float32",
    "float32 int4 float32 float32", "float32 int4 - float32",
    "int16 int8 int64 int16", "int16 int8 - int16",
    "int8 int8 int32 int8", "int8 int8 - int8",
)  # fmt: skip
TABLES = ("int32 float32 float32", "int32 int8 float32", "int32 int4 float32")
REAL = ("float16 float32", "int16 float32", "int8 float32")


@dataclasses.dataclass(frozen=True)
class Operator:
    """One row: an operator's code in the schema, its name, and what must hold of its operands.

    `types` are those of its inputs and its output, in order, "-" for an input that is left out.
    `options` is the table of its options, with the number that the union has for it. `constants`
    are the inputs that must be constant.
    """

    code: int
    name: str
    shapes: Rule
    types: tuple[str, ...]
    options: tuple[str, int] = ("", 0)
    constants: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return len(self.types[0].split()) - 1


CUSTOM = 32
REDUCER = ("ReducerOptions", 27)
FILTERED = ("int8 int8 int32 int8",)
SLICED = ("int32 int32 int32 int32 int32",)
OPERATORS = {
    operator.code: operator
    for operator in (
        Operator(0, "ADD", broadcast, PAIRS, ("AddOptions", 11)),
        Operator(
            3, "CONV_2D", convolution, ("int8 int8 int32 int8",), ("Conv2DOptions", 1), (1, 2)
        ),
        Operator(6, "DEQUANTIZE", same, REAL),
        Operator(7, "EMBEDDING_LOOKUP", lookup, TABLES),
        Operator(9, "FULLY_CONNECTED", fully_connected, LINEAR, ("FullyConnectedOptions", 8)),
        Operator(14, "LOGISTIC", same, ALIKE),
        Operator(18, "MUL", broadcast, PAIRS, ("MulOptions", 21)),
        Operator(22, "RESHAPE", reshape, (*TURNED, "int32 int32 int32"), constants=(1,)),
        Operator(25, "SOFTMAX", same, ALIKE, ("SoftmaxOptions", 9)),
        Operator(36, "GATHER", gather, TURNED, ("GatherOptions", 23)),
        Operator(39, "TRANSPOSE", transpose, TURNED, constants=(1,)),
        Operator(40, "MEAN", reduction, TURNED, REDUCER, (1,)),
        Operator(41, "SUB", broadcast, PAIRS, ("SubOptions", 28)),
        Operator(45, "STRIDED_SLICE", one_of, SLICED, ("StridedSliceOptions", 32), (1, 2, 3)),
        Operator(53, "CAST", same, ("bool float32", "int32 float32")),
        Operator(61, "GREATER", broadcast, COMPARED),
        Operator(70, "EXPAND_DIMS", expansion, TURNED, ("ExpandDimsOptions", 52), (1,)),
        Operator(71, "EQUAL", broadcast, COMPARED),
        Operator(74, "SUM", reduction, TURNED, REDUCER, (1,)),
        Operator(76, "RSQRT", same, ALIKE),
        Operator(77, "SHAPE", shape_of, ("float32 int32", "int32 int32"), ("ShapeOptions", 55)),
        Operator(96, "RANGE", counting, ("int32 int32 int32 int32",), constants=(0, 2)),
        Operator(114, "QUANTIZE", same, ("float32 int16", "float32 int8")),
        Operator(126, "BATCH_MATMUL", matrix_product, PAIRS, ("BatchMatMulOptions", 101)),
        Operator(150, "GELU", same, ALIKE, ("GeluOptions", 116)),
    )
}
# What the fields of options may be; a field that is not here is a switch.
OPTION_VALUES = {
    "fused_activation_function": (0,),
    "weights_format": (0,),
    "quantized_bias_type": (0,),
    "axis": (0,),
    "batch_dims": (0,),
    "out_type": (2,),
    "padding": (0, 1),
    "adj_x": (0,),
    "keep_dims": (1,),
    "offset": (0,),
    "shrink_axis_mask": (1,),
    **dict.fromkeys(("stride_w", "stride_h", "dilation_w_factor", "dilation_h_factor"), (1,)),
    **dict.fromkeys(("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask"), (0,)),
}
SWITCH = (0, 1)
