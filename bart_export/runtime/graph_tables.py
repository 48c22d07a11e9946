"""The tables of a `.tflite` file's graphs in columns: subgraphs, tensors and buffers.

Making a column holds it to the rules about one tensor or one buffer: numbers in range, constants
as large as their shapes. What operators make of tensors is `graph_rules`' affair.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export.runtime.flatbuffer import Ints, Tables, Unsound, product
from bart_export.runtime.operators import ABSENT_TYPE, HIGHEST_RANK, TYPES, Operand

MOST_ELEMENTS = 2**31 - 1
MOST_COMPUTED = 2**26  # elements of a tensor that is no constant
TYPE_NUMBERS = 32  # more than any type's number


def require(rule: Any, wrong: str) -> None:
    """Raise Unsound with these words unless all of a rule's values are true."""
    if not np.all(rule):
        raise Unsound(wrong)


def within(numbers: Ints, count: Any) -> npt.NDArray[np.bool_]:
    """Return which numbers are those of one of so many things."""
    result: npt.NDArray[np.bool_] = (numbers >= 0) & (numbers < count)
    return result


class Graphs:
    """All subgraphs, their tensors and operators numbered through."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        tensors, operators = tables.vectors("tensors"), tables.vectors("operators")
        self.tensors, self.operators = tensors.tables(), operators.tables()
        self.tensor_counts = tensors.count
        self.first_tensors = np.cumsum(tensors.count) - tensors.count
        self.graph_of_tensor, self.graph_of_operator = tensors.owners(), operators.owners()

    def numbered(self, indices: Ints, graphs: Ints) -> Ints:
        """Return the numbers of tensors that have some indices in some graphs."""
        require(within(indices, self.tensor_counts[graphs]), "a tensor's index out of range")
        numbers: Ints = indices + self.first_tensors[graphs]
        return numbers

    def optional(self, indices: Ints, graphs: Ints) -> Ints:
        """Return the same, -1 for an index of -1, which is that of no tensor."""
        numbers = np.full(len(indices), -1)
        there = indices != -1
        numbers[there] = self.numbered(indices[there], graphs[there])
        return numbers

    def ends(self, side: str) -> Ints:
        """Return the tensors that are inputs, or outputs, of a graph."""
        vectors = self.tables.vectors(side)
        numbers = self.numbered(vectors.numbers(), vectors.owners())
        require(len(np.unique(numbers)) == len(numbers), f"two {side} of a graph are one tensor")
        return numbers


class Buffers:
    """How many bytes each buffer has, and where: inside the flatbuffer or behind it."""

    def __init__(self, tables: Tables) -> None:
        inside, offsets = tables.vectors("data"), tables.column("offset")
        sizes, behind = tables.column("size"), offsets > 0
        require(inside.count[behind] == 0, "a buffer that is in two places")
        require((offsets + sizes)[behind] <= tables.file.size, "a buffer leads out of it")
        require(sizes[~behind] == 0, "a buffer that is nowhere")
        self.begin: Ints = np.where(behind, offsets, inside.begin)
        self.size: Ints = np.where(behind, sizes, inside.count)
        require((self.begin % 4 == 0)[self.size > 0], "a buffer is not aligned")


class Tensors:
    """The columns of all tensors, which are held to the rules about one tensor.

    `shape` has rows of dimensions, 0 behind the last; in `dynamic` one that changes is -1.
    """

    def __init__(self, tables: Tables, buffers: Buffers) -> None:
        self.tables = tables
        self.type = tables.column("type")
        require(np.isin(self.type, list(TYPES)), "a tensor of a type that none of its kind has")
        numbers = tables.column("buffer")
        require(within(numbers, len(buffers.size)), "a tensor without a buffer")
        shapes, signatures = tables.vectors("shape"), tables.vectors("shape_signature")
        self.rank = shapes.count
        require(self.rank <= HIGHEST_RANK, f"a tensor of more than {HIGHEST_RANK} dimensions")
        signed = signatures.count > 0
        require((signatures.count == self.rank)[signed], "a shape and its signature differ")
        sizes, may_be = shapes.numbers(), signatures.numbers()
        require(sizes > 0, "a dimension must be at least 1")
        of_signed = sizes[signed[shapes.owners()]]
        # What is resized while running is 1 in the file.
        require((may_be == of_signed) | ((may_be == -1) & (of_signed == 1)), "a shape that differs")
        self.shape = np.zeros((tables.count, HIGHEST_RANK), np.int64)
        self.shape[shapes.owners(), shapes.index()] = sizes
        self.dynamic = self.shape.copy()
        self.dynamic[signatures.owners(), signatures.index()] = may_be
        self.elements = product(shapes)
        self.constant = buffers.size[numbers] > 0
        self.begin = np.where(self.constant, buffers.begin[numbers], 0)
        most = np.where(self.constant, MOST_ELEMENTS, MOST_COMPUTED)
        require(self.elements <= most, "a tensor that is too large")
        needed = np.ceil(self.elements * of_types("bits")[self.type] / 8)
        right = buffers.size[numbers] == needed
        require(right[self.constant], "a constant's shape and bytes differ")
        require(self.dynamic[self.constant] >= 0, "a constant whose shape changes")

    def types(self, numbers: Ints) -> Ints:
        """Return the types of some tensors."""
        result: Ints = np.where(numbers >= 0, self.type[numbers], ABSENT_TYPE)
        return result

    def operands(self, numbers: Ints) -> Operand:
        """Return some tensors as operands, -1 for one that is left out."""
        there = numbers >= 0
        shape = np.where(there[:, None], self.shape[numbers], 0)
        begin = np.where(there, self.begin[numbers], -1)
        return Operand(self.tables.file, shape, np.where(there, self.rank[numbers], 0), begin)


def of_types(field: str) -> Ints:
    """Return a field of `TYPES` by their codes."""
    values = np.zeros(TYPE_NUMBERS, np.int64)
    values[list(TYPES)] = [getattr(one, field) for one in TYPES.values()]
    return values
