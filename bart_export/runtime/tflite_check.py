"""Checks the graph of an untrusted `.tflite` file before LiteRT opens it.

LiteRT crashes on inconsistent files, and a hash only shows that a file belongs to its manifest.
Files must therefore have the same form as those that this package writes. Weights are not read.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bart_export.contract import Tensor
from bart_export.errors import ArtifactError
from bart_export.runtime.engine import Expected
from bart_export.runtime.flatbuffer import (
    File,
    Ints,
    InvalidGraph,
    Tables,
    Vectors,
    require,
)
from bart_export.runtime.operators import (
    CUSTOM,
    HIGHEST_RANK,
    OMITTED,
    OPERATORS,
    TYPE_CODES,
    TYPES,
    Operand,
    check_operands,
    check_options,
)

SCHEMA_VERSION = 3
MOST_OPERANDS = 16
MOST_ELEMENTS = 2**31 - 1
MOST_COMPUTED = 2**26  # elements of a tensor that is not constant
BLOCKWISE = 2  # in the union QuantizationDetails
BLOCKS = (32, 64, 128)


def check_graph(path: pathlib.Path, expected: Expected | None) -> None:
    """Raise ArtifactError for a `.tflite` file that LiteRT might crash on.

    The file must have exactly the `expected` signatures, in which an axis without a size is
    resizable; None is for a file that is run without signatures.
    """
    try:
        model = File.map(path).model()
        require(model.column("version") == SCHEMA_VERSION, "its schema's version must be 3")
        graphs = Graphs(model)
        check_quantization(graphs)
        check_operators(graphs)
        check_order(graphs)
        check_signatures(model.vectors("signature_defs").tables(), graphs, expected)
    except InvalidGraph as invalid:
        raise ArtifactError(
            f"{path} is not a .tflite file that bart-export wrote: {invalid}. It was altered or "
            "damaged, and its hash was changed to match. Export the artifact again."
        ) from None


def within(numbers: Ints, count: Ints | int) -> npt.NDArray[np.bool_]:
    """Return which numbers are in range(count)."""
    result: npt.NDArray[np.bool_] = (numbers >= 0) & (numbers < count)
    return result


def type_column(field: str) -> Ints:
    """Return a field of `TYPES`, indexed by type code."""
    values = np.zeros(max(TYPES) + 1, np.int64)
    values[list(TYPES)] = [getattr(type, field) for type in TYPES.values()]
    return values


class Graphs:
    """All subgraphs of a file, with their tensors and operators numbered consecutively.

    The constructor checks each tensor and buffer individually. `shape` (tensors, HIGHEST_RANK) is
    padded with 0; resizable dimensions are 1 in `shape` and -1 in `dynamic`. `begin` is the offset
    of a constant in the file.
    """

    def __init__(self, model: Tables) -> None:
        self.file = model.file
        self.tables = model.vectors("subgraphs").tables()
        tensors, operators = self.tables.vectors("tensors"), self.tables.vectors("operators")
        self.tensors, self.operators = tensors.tables(), operators.tables()
        self.tensor_counts = tensors.count
        self.first_tensors = np.cumsum(tensors.count) - tensors.count
        self.graph_of_tensor, self.graph_of_operator = tensors.owners(), operators.owners()
        codes = operator_codes(model.vectors("operator_codes").tables())
        opcodes = self.operators.column("opcode_index")
        require(within(opcodes, len(codes)), "an operator without a code")
        self.codes = codes[opcodes]
        begin, size = self.buffers(model.vectors("buffers").tables())
        metadata = model.vectors("metadata").tables().column("buffer")
        require(within(metadata, len(size)), "metadata without a buffer")
        buffers = self.tensors.column("buffer")
        require(within(buffers, len(size)), "a tensor without a buffer")
        self.constant = size[buffers] > 0
        self.begin = begin[buffers]
        self.measure_tensors(size[buffers])

    def buffers(self, tables: Tables) -> tuple[Ints, Ints]:
        """Return each buffer's offset, inside the flatbuffer or after it, and size in bytes."""
        inside, offsets, sizes = (
            tables.vectors("data"),
            tables.column("offset"),
            tables.column("size"),
        )
        behind = offsets > 0
        require(inside.count[behind] == 0, "a buffer in two places")
        require((offsets + sizes)[behind] <= self.file.size, "a buffer is out of bounds")
        require(sizes[~behind] == 0, "a buffer without data")
        begin = np.where(behind, offsets, inside.begin)
        size = np.where(behind, sizes, inside.count)
        require((begin % 4 == 0)[size > 0], "a buffer is not aligned")
        return begin, size

    def measure_tensors(self, bytes: Ints) -> None:
        """Set the columns of tensors; `bytes` are the sizes of their constants."""
        self.type = self.tensors.column("type")
        require(np.isin(self.type, list(TYPES)), "a tensor of an unsupported type")
        shapes, signatures = self.tensors.vectors("shape"), self.tensors.vectors("shape_signature")
        self.rank = shapes.count
        require(self.rank <= HIGHEST_RANK, f"a tensor with more than {HIGHEST_RANK} dimensions")
        signed = signatures.count > 0
        require(
            (signatures.count == self.rank)[signed],
            "the rank of a shape differs from its signature",
        )
        sizes, may_be = shapes.integers(), signatures.integers()
        require(sizes > 0, "a dimension must be at least 1")
        signed_sizes = sizes[signed[shapes.owners()]]
        # Resizable dimensions are 1 in the file.
        same = (may_be == signed_sizes) | ((may_be == -1) & (signed_sizes == 1))
        require(same, "a shape differs from its signature")
        self.shape = np.zeros((self.tensors.count, HIGHEST_RANK), np.int64)
        self.shape[shapes.owners(), shapes.index()] = sizes
        self.dynamic = self.shape.copy()
        self.dynamic[signatures.owners(), signatures.index()] = may_be
        # In floating point, because integers could overflow.
        self.elements = np.where(self.shape > 0, self.shape, 1.0).prod(axis=1)
        most = np.where(self.constant, MOST_ELEMENTS, MOST_COMPUTED)
        require(self.elements <= most, "a tensor is too large")
        needed = np.ceil(self.elements * type_column("bits")[self.type] / 8)
        right = (bytes == needed) & (self.dynamic >= 0).all(axis=1)
        require(right[self.constant], "a constant's shape and bytes differ")

    def numbered(self, indices: Ints, graphs: Ints) -> Ints:
        """Return the numbers of the tensors with these indices in these graphs."""
        require(within(indices, self.tensor_counts[graphs]), "a tensor's index is out of range")
        numbers: Ints = indices + self.first_tensors[graphs]
        return numbers

    def optional(self, indices: Ints, graphs: Ints) -> Ints:
        """Return tensor numbers as `numbered` does, but -1 for an omitted input (index -1)."""
        numbers = np.full(len(indices), -1)
        present = indices != -1
        numbers[present] = self.numbered(indices[present], graphs[present])
        return numbers

    def ends(self, side: str) -> Ints:
        """Return the tensors that are "inputs" or "outputs" of a graph."""
        vectors = self.tables.vectors(side)
        numbers = self.numbered(vectors.integers(), vectors.owners())
        require(
            len(np.unique(numbers)) == len(numbers), f"two {side} of a graph are the same tensor"
        )
        return numbers

    def operands(self) -> tuple[list[Operand], Ints]:
        """Return the distinct operands in the file, and the operand index of each tensor.

        The last one stands for an omitted input, number -1. There are few, because layers repeat.
        """
        short = self.constant & (self.type == TYPE_CODES["int32"]) & (self.elements <= HIGHEST_RANK)
        counts = np.where(short, self.elements, 0).astype(np.int64)
        constants = Vectors(self.file, "i4", self.begin, counts)
        values = np.zeros_like(self.shape)
        values[constants.owners(), constants.index()] = constants.integers()
        columns = (self.type, self.rank, self.constant, counts, *self.shape.T, *values.T)
        rows, row_of_tensor = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
        operands = [
            Operand(
                TYPES[type].name,
                tuple(numbers[:rank]),
                bool(constant),
                tuple(numbers[HIGHEST_RANK : HIGHEST_RANK + count]),
            )
            for type, rank, constant, count, *numbers in rows.tolist()
        ]
        return [*operands, OMITTED], np.append(row_of_tensor, len(operands))


def operator_codes(tables: Tables) -> Ints:
    """Return the builtin code of each operator code in the file."""
    deprecated = tables.column("deprecated_builtin_code")
    codes: Ints = np.maximum(deprecated, tables.column("builtin_code"))
    known = np.isin(codes, [*OPERATORS, CUSTOM])
    require(known, "an operator that bart-export does not write")
    old = (deprecated == 0) | (deprecated == np.minimum(codes, 127))
    require(old, "an operator with two codes")
    require((codes == CUSTOM) == tables.present("custom_code"), "a custom operator without a name")
    return codes


def check_quantization(graphs: Graphs) -> None:
    """Check scales, zero points and blocks against their tensors."""
    owners = np.flatnonzero(graphs.tensors.present("quantization"))
    tables, types = graphs.tensors.tables("quantization"), graphs.type[owners]
    for name in ("min", "max"):
        require(tables.vectors(name).count == 0, f"a quantized tensor has {name}")
    scales, points = tables.vectors("scale"), tables.vectors("zero_point")
    axes = tables.column("quantized_dimension")
    require(
        within(axes, np.maximum(graphs.rank[owners], 1)), "a quantized dimension is out of range"
    )
    rows = np.where(graphs.constant[owners], graphs.shape[owners, axes], 1)
    of_each = (scales.count <= 1) | (scales.count == rows)
    require(of_each & (points.count == scales.count), "a tensor's scales do not match its shape")
    values = graphs.file.numbers(scales.offsets(), "f4").astype(np.float64)
    require(np.isfinite(values) & (values >= 0), "a scale is not a positive number")
    zeros, of_zero = points.integers(), types[points.owners()]
    lowest, highest = type_column("lowest")[of_zero], type_column("highest")[of_zero]
    require((zeros >= lowest) & (zeros <= highest), "a zero point is out of range")
    blocks = check_blocks(graphs, owners, tables)
    scaled = np.zeros(len(graphs.type), np.bool_)
    scaled[owners] = (scales.count > 0) | blocks
    rounded = type_column("lowest")[graphs.type] < 0
    require(scaled[rounded], "an integer tensor without a scale")
    integers = np.isin(graphs.type, [TYPE_CODES["int32"], TYPE_CODES["int64"]])
    require((rounded | integers)[scaled], "a float tensor with a scale")


def check_blocks(graphs: Graphs, owners: Ints, tables: Tables) -> npt.NDArray[np.bool_]:
    """Check blocks against their tensors; return which quantizations have blocks."""
    kinds, blocks = tables.column("details_type"), tables.present("details")
    require(kinds == np.where(blocks, BLOCKWISE, 0), "an unsupported kind of quantization")
    details, owners = tables.tables("details"), owners[blocks]
    require(details.column("zero_points") <= 0, "blocks with zero points")
    sizes = details.column("block_size")
    require(np.isin(sizes, BLOCKS), f"a block's size must be one of {BLOCKS}")
    scales = graphs.numbered(details.column("scales"), graphs.graph_of_tensor[owners])
    last = graphs.shape[owners, np.maximum(graphs.rank[owners] - 1, 0)]
    require(graphs.constant[owners] & graphs.constant[scales], "blocks that are not constant")
    require(graphs.type[scales] == TYPE_CODES["float16"], "a block's scale must be float16")
    require(last % sizes == 0, "rows are not a multiple of the block size")
    require(graphs.elements[scales] * sizes == graphs.elements[owners], "blocks without a scale")
    return blocks


def check_operators(graphs: Graphs) -> None:
    """Check operators against `OPERATORS`: operands, options, types and shapes."""
    tables, codes, custom = graphs.operators, graphs.codes, graphs.codes == CUSTOM
    inputs, outputs = tables.vectors("inputs"), tables.vectors("outputs")
    few = (inputs.count <= MOST_OPERANDS) & (outputs.count <= MOST_OPERANDS)
    require(few, "an operator with too many operands")
    for name in ("custom_options", "custom_options_format"):
        require(~tables.present(name)[~custom], "a builtin operator with custom options")
    union, present = tables.column("builtin_options_type"), tables.present("builtin_options")
    options = np.zeros(tables.count, np.int64)
    options[present] = tables.file.follow(tables.stored("builtin_options"))
    require((union == 0)[custom] & ~present[custom], "a custom operator with builtin options")
    operands, operand_of = graphs.operands()
    for code in np.unique(codes[~custom]):
        row, chosen = OPERATORS[int(code)], np.flatnonzero(codes == code)
        require(inputs.count[chosen] == row.inputs, f"{row.name} with the wrong number of inputs")
        require(outputs.count[chosen] == 1, f"{row.name} with the wrong number of outputs")
        wrong = f"{row.name} with unsupported options"
        kind, number = row.options
        require((union[chosen] == number) & (present[chosen] == bool(kind)), wrong)
        own = Tables(tables.file, kind, options[chosen]) if kind else None
        if own is not None:
            check_options(own, wrong)
        owners = graphs.graph_of_operator[chosen]
        numbers = [
            graphs.optional(tables.file.integers(inputs.begin[chosen] + 4 * at, "i4"), owners)
            for at in range(row.inputs)
        ]
        numbers.append(graphs.numbered(tables.file.integers(outputs.begin[chosen], "i4"), owners))
        passed = [own.column(name) for name in row.passed] if own is not None else []
        columns = (*(operand_of[number] for number in numbers), *passed)
        for pattern in np.unique(np.stack(columns, 1), axis=0).tolist():
            ordered = [operands[index] for index in pattern[: len(numbers)]]
            check_operands(
                row, ordered, dict(zip(row.passed, pattern[len(numbers) :], strict=True))
            )


def check_order(graphs: Graphs) -> None:
    """Check that every tensor is computed once, before it is read."""
    inputs, outputs = graphs.operators.vectors("inputs"), graphs.operators.vectors("outputs")
    written = graphs.numbered(outputs.integers(), graphs.graph_of_operator[outputs.owners()])
    graph_inputs, results = graphs.ends("inputs"), graphs.ends("outputs")
    sources = np.concatenate([np.flatnonzero(graphs.constant), graph_inputs, written])
    require(len(np.unique(sources)) == len(sources), "a tensor is computed twice")
    never = graphs.operators.count
    since = np.full(len(graphs.type), never)  # the operator that computes a tensor, or -1
    since[graphs.constant] = since[graph_inputs] = -1
    since[written] = outputs.owners()
    require(since[results] < never, "a graph's output is never computed")
    readers = inputs.owners()
    read = graphs.optional(inputs.integers(), graphs.graph_of_operator[readers])
    early = (since[read] < readers) | (read == -1)
    require(early, "a tensor is read before it is computed")


def check_signatures(tables: Tables, graphs: Graphs, expected: Expected | None) -> None:
    """Check signatures against the contract."""
    numbers, names = tables.column("subgraph_index"), tables.strings("signature_key")
    require(within(numbers, graphs.tables.count), "a signature without a graph")
    if expected is not None:
        wrong = f"its signatures must be {', '.join(expected)}"
        require(sorted(names) == sorted(expected), wrong)
        graph_numbers = list(range(graphs.tables.count))
        require(sorted(numbers) == graph_numbers, "a graph without a signature")
    for side in ("inputs", "outputs"):
        vectors, ends = tables.vectors(side), graphs.tables.vectors(side)
        maps, owners = vectors.tables(), numbers[vectors.owners()]
        indices, end_indices = maps.column("tensor_index"), ends.integers()
        tensors = graphs.numbered(indices, owners)
        if expected is None:
            continue
        pairs = set(zip(owners, indices, strict=True))
        same = pairs == set(zip(ends.owners(), end_indices, strict=True))
        require(
            same and len(pairs) == len(owners) == len(end_indices),
            f"{side} of a signature and of its graph differ",
        )
        tensor_names = maps.strings("name")
        for number, name in enumerate(names):
            signature, sizes = expected[name]
            found = {
                tensor_names[at]: int(tensors[at])
                for at in np.flatnonzero(vectors.owners() == number)
            }
            expected_tensors = signature.inputs if side == "inputs" else signature.outputs
            check_tensors(found, expected_tensors, sizes, graphs, f"{side} of {name}")


def check_tensors(
    found: Mapping[str, int],
    expected: Sequence[Tensor],
    sizes: Mapping[str, int],
    graphs: Graphs,
    place: str,
) -> None:
    """Check a signature's inputs or outputs, by name, against the contract."""
    names = sorted(tensor.name for tensor in expected)
    require(sorted(found) == names, f"{place} have wrong names")
    for tensor in expected:
        number = found[tensor.name]
        type = TYPES[int(graphs.type[number])].name
        require(type == tensor.dtype, f"{tensor.name} has type {type}, not {tensor.dtype}")
        shape = [-1 if size is None else size for size in tensor.shape(sizes)]
        stored = graphs.dynamic[number, : graphs.rank[number]].tolist()
        # The quantizer drops an output's shape signature, so that resizable dimensions are 1.
        right = len(stored) == len(shape) and all(
            size == other or (size, other) == (1, -1)
            for size, other in zip(stored, shape, strict=True)
        )
        require(right, f"{place}: {tensor.name} must have shape {shape}, received {stored}")
