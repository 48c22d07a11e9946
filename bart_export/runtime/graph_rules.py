"""The rules that the graph of a `.tflite` file must keep before LiteRT is given the file.

A hash tells that a file is the manifest's, not whose manifest it is, and LiteRT ends the process
over a file that contradicts itself. So a file from anywhere is held to the form of those that this
package writes. Weights are not read.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bart_export import __version__, contract
from bart_export.artifact import stamps
from bart_export.artifact.artifact import Artifact, check_readable_by_all
from bart_export.config import BartConfig
from bart_export.contract import Bucket, Signature, Tensor
from bart_export.errors import ArtifactError
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
MOST_COMPUTED = 2**26  # elements of a tensor that is no constant
BLOCKWISE = 2  # of the union of quantization details
BLOCKS = (32, 64, 128)

# A signature's name in the file -> the contract's signature, and its axes' sizes there.
Expected = Mapping[str, tuple[Signature, Mapping[str, int]]]


def checked_path(artifact: Artifact, name: str, expected: Expected | None) -> pathlib.Path:
    """Return the path of a file after checking its hash and its graph; see `check_graph`.

    A graph that was checked before is not, while the file's hash need not be (`stamps`).
    """
    path = artifact.path(name)
    check_readable_by_all(path)
    checked = f"{artifact.manifest.files[name].sha256} {__version__} {expected}"
    stamp = stamps.stamp(path.stat(), hashlib.sha256(checked.encode()).hexdigest())
    if stamps.read(path, "graph") != stamp:
        check_graph(path, expected)
        stamps.write(path, stamp, "graph")
    return path


def expected_signatures(config: BartConfig, buckets: Sequence[Bucket] | None) -> Expected:
    """Return the signatures of a build: of a static one with `buckets`, or of a dynamic one."""
    sizes = contract.sizes(config)
    if buckets is None:
        signatures = contract.tflite_signatures(config)
        return {signature.name: (signature, sizes) for signature in signatures}
    return {bucket.name: (bucket.signature, {**sizes, **bucket.sizes}) for bucket in buckets}


def check_graph(path: pathlib.Path, expected: Expected | None) -> None:
    """Raise ArtifactError for a `.tflite` file that LiteRT should not be given.

    `expected` are the signatures that it must have, no more and no fewer; an axis without a size is
    one that is resized. It is None for a file that is run without signatures.
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
            f"{path} is no .tflite file as bart-export writes them: {invalid}. It was altered or "
            "damaged, and its hash with it. Export the artifact again."
        ) from None


def within(numbers: Ints, count: Ints | int) -> npt.NDArray[np.bool_]:
    """Return which numbers are from 0 to below `count`."""
    result: npt.NDArray[np.bool_] = (numbers >= 0) & (numbers < count)
    return result


def type_column(field: str) -> Ints:
    """Return a field of `TYPES`, indexed by the types' codes."""
    values = np.zeros(max(TYPES) + 1, np.int64)
    values[list(TYPES)] = [getattr(type, field) for type in TYPES.values()]
    return values


class Graphs:
    """All subgraphs of a file, with their tensors and operators numbered through.

    Making it holds every tensor and buffer to the rules about one alone. `shape` (tensors,
    HIGHEST_RANK) has 0 behind the last dimension; in `dynamic` one that changes is -1. `begin` is
    where a constant lies in the file.
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
        """Return where each buffer begins, inside the flatbuffer or behind it, and its bytes."""
        inside, offsets, sizes = (
            tables.vectors("data"),
            tables.column("offset"),
            tables.column("size"),
        )
        behind = offsets > 0
        require(inside.count[behind] == 0, "a buffer that is in two places")
        require((offsets + sizes)[behind] <= self.file.size, "a buffer leads out of it")
        require(sizes[~behind] == 0, "a buffer that is nowhere")
        begin = np.where(behind, offsets, inside.begin)
        size = np.where(behind, sizes, inside.count)
        require((begin % 4 == 0)[size > 0], "a buffer is not aligned")
        return begin, size

    def measure_tensors(self, bytes: Ints) -> None:
        """Set the columns of tensors, whose constants have so many bytes."""
        self.type = self.tensors.column("type")
        require(np.isin(self.type, list(TYPES)), "a tensor of a type that none of its kind has")
        shapes, signatures = self.tensors.vectors("shape"), self.tensors.vectors("shape_signature")
        self.rank = shapes.count
        require(self.rank <= HIGHEST_RANK, f"a tensor of more than {HIGHEST_RANK} dimensions")
        signed = signatures.count > 0
        require((signatures.count == self.rank)[signed], "a shape and its signature differ")
        sizes, may_be = shapes.integers(), signatures.integers()
        require(sizes > 0, "a dimension must be at least 1")
        signed_sizes = sizes[signed[shapes.owners()]]
        # What is resized while running is 1 in the file.
        same = (may_be == signed_sizes) | ((may_be == -1) & (signed_sizes == 1))
        require(same, "a shape that differs")
        self.shape = np.zeros((self.tensors.count, HIGHEST_RANK), np.int64)
        self.shape[shapes.owners(), shapes.index()] = sizes
        self.dynamic = self.shape.copy()
        self.dynamic[signatures.owners(), signatures.index()] = may_be
        # Floats, so that nothing overflows.
        self.elements = np.where(self.shape > 0, self.shape, 1.0).prod(axis=1)
        most = np.where(self.constant, MOST_ELEMENTS, MOST_COMPUTED)
        require(self.elements <= most, "a tensor that is too large")
        needed = np.ceil(self.elements * type_column("bits")[self.type] / 8)
        right = (bytes == needed) & (self.dynamic >= 0).all(axis=1)
        require(right[self.constant], "a constant's shape and bytes differ")

    def numbered(self, indices: Ints, graphs: Ints) -> Ints:
        """Return the numbers of tensors that have some indices in some graphs."""
        require(within(indices, self.tensor_counts[graphs]), "a tensor's index out of range")
        numbers: Ints = indices + self.first_tensors[graphs]
        return numbers

    def optional(self, indices: Ints, graphs: Ints) -> Ints:
        """Return the same, -1 for an index of -1, which is that of no tensor."""
        numbers = np.full(len(indices), -1)
        given = indices != -1
        numbers[given] = self.numbered(indices[given], graphs[given])
        return numbers

    def ends(self, side: str) -> Ints:
        """Return the tensors that are inputs, or outputs, of a graph."""
        vectors = self.tables.vectors(side)
        numbers = self.numbered(vectors.integers(), vectors.owners())
        require(len(np.unique(numbers)) == len(numbers), f"two {side} of a graph are one tensor")
        return numbers

    def operands(self) -> tuple[list[Operand], Ints]:
        """Return the different operands of the file, and which of them each tensor is.

        The last is for the number -1 of an input that is left out. There are few: layers repeat.
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
    """Return the code of each kind of operator in the file."""
    deprecated = tables.column("deprecated_builtin_code")
    codes: Ints = np.maximum(deprecated, tables.column("builtin_code"))
    known = np.isin(codes, [*OPERATORS, CUSTOM])
    require(known, "an operator that none of bart-export's files has")
    old = (deprecated == 0) | (deprecated == np.minimum(codes, 127))
    require(old, "an operator of two codes")
    require((codes == CUSTOM) == tables.present("custom_code"), "a custom operator without a name")
    return codes


def check_quantization(graphs: Graphs) -> None:
    """Hold scales, zero points and blocks to the tensors that they are of."""
    owners = np.flatnonzero(graphs.tensors.present("quantization"))
    tables, types = graphs.tensors.tables("quantization"), graphs.type[owners]
    for name in ("min", "max"):
        require(tables.vectors(name).count == 0, f"a quantized tensor has {name}")
    scales, points = tables.vectors("scale"), tables.vectors("zero_point")
    axes = tables.column("quantized_dimension")
    require(within(axes, np.maximum(graphs.rank[owners], 1)), "a quantized dimension that is none")
    rows = np.where(graphs.constant[owners], graphs.shape[owners, axes], 1)
    of_each = (scales.count <= 1) | (scales.count == rows)
    require(of_each & (points.count == scales.count), "scales and shape of a tensor differ")
    values = graphs.file.numbers(scales.offsets(), "f4").astype(np.float64)
    require(np.isfinite(values) & (values >= 0), "a scale that is no positive number")
    zeros, of_zero = points.integers(), types[points.owners()]
    lowest, highest = type_column("lowest")[of_zero], type_column("highest")[of_zero]
    require((zeros >= lowest) & (zeros <= highest), "a zero point out of range")
    blocks = check_blocks(graphs, owners, tables)
    scaled = np.zeros(len(graphs.type), np.bool_)
    scaled[owners] = (scales.count > 0) | blocks
    rounded = type_column("lowest")[graphs.type] < 0
    require(scaled[rounded], "an integer tensor without a scale")
    integers = np.isin(graphs.type, [TYPE_CODES["int32"], TYPE_CODES["int64"]])
    require((rounded | integers)[scaled], "a float tensor with a scale")


def check_blocks(graphs: Graphs, owners: Ints, tables: Tables) -> npt.NDArray[np.bool_]:
    """Hold blocks to their tensors; return which of the quantizations have some."""
    kinds, blocks = tables.column("details_type"), tables.present("details")
    require(kinds == np.where(blocks, BLOCKWISE, 0), "a quantization of a kind that none has")
    details, owners = tables.tables("details"), owners[blocks]
    require(details.column("zero_points") <= 0, "blocks with zero points")
    sizes = details.column("block_size")
    require(np.isin(sizes, BLOCKS), f"a block must have one of {BLOCKS}")
    scales = graphs.numbered(details.column("scales"), graphs.graph_of_tensor[owners])
    last = graphs.shape[owners, np.maximum(graphs.rank[owners] - 1, 0)]
    require(graphs.constant[owners] & graphs.constant[scales], "blocks that are no constant")
    require(graphs.type[scales] == TYPE_CODES["float16"], "scales of blocks must be float16")
    require(last % sizes == 0, "rows that are no whole blocks")
    require(graphs.elements[scales] * sizes == graphs.elements[owners], "too few scales")
    return blocks


def check_operators(graphs: Graphs) -> None:
    """Hold operators to their rows of `OPERATORS`: operands, options, types and shapes."""
    tables, codes, custom = graphs.operators, graphs.codes, graphs.codes == CUSTOM
    inputs, outputs = tables.vectors("inputs"), tables.vectors("outputs")
    few = (inputs.count <= MOST_OPERANDS) & (outputs.count <= MOST_OPERANDS)
    require(few, "an operator with too many operands")
    for name in ("custom_options", "custom_options_format"):
        require(~tables.present(name)[~custom], "an operator of the set with custom options")
    union, present = tables.column("builtin_options_type"), tables.present("builtin_options")
    options = np.zeros(tables.count, np.int64)
    options[present] = tables.file.follow(tables.stored("builtin_options"))
    require((union == 0)[custom] & ~present[custom], "a custom operator with other options")
    operands, operand_of = graphs.operands()
    for code in np.unique(codes[~custom]):
        row, chosen = OPERATORS[int(code)], np.flatnonzero(codes == code)
        require(inputs.count[chosen] == row.inputs, f"{row.name} with more or fewer inputs")
        require(outputs.count[chosen] == 1, f"{row.name} with more or fewer outputs")
        wrong = f"{row.name} with options that none of bart-export's has"
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
            given = [operands[which] for which in pattern[: len(numbers)]]
            check_operands(row, given, dict(zip(row.passed, pattern[len(numbers) :], strict=True)))


def check_order(graphs: Graphs) -> None:
    """Make sure that every tensor is computed once, and before it is read."""
    inputs, outputs = graphs.operators.vectors("inputs"), graphs.operators.vectors("outputs")
    written = graphs.numbered(outputs.integers(), graphs.graph_of_operator[outputs.owners()])
    given, results = graphs.ends("inputs"), graphs.ends("outputs")
    sources = np.concatenate([np.flatnonzero(graphs.constant), given, written])
    require(len(np.unique(sources)) == len(sources), "a tensor that comes from two places")
    never = graphs.operators.count
    since = np.full(len(graphs.type), never)  # the operator that computes a tensor, -1 for none
    since[graphs.constant] = since[given] = -1
    since[written] = outputs.owners()
    require(since[results] < never, "a graph's output that nothing computes")
    readers = inputs.owners()
    read = graphs.optional(inputs.integers(), graphs.graph_of_operator[readers])
    early = (since[read] < readers) | (read == -1)
    require(early, "a tensor that is read before it is computed")


def check_signatures(tables: Tables, graphs: Graphs, expected: Expected | None) -> None:
    """Hold signatures to the contract's."""
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
            wanted = signature.inputs if side == "inputs" else signature.outputs
            check_tensors(found, wanted, sizes, graphs, f"{side} of {name}")


def check_tensors(
    found: Mapping[str, int],
    expected: Sequence[Tensor],
    sizes: Mapping[str, int],
    graphs: Graphs,
    place: str,
) -> None:
    """Hold the tensors of one side of a signature, by name, to the contract's."""
    names = sorted(tensor.name for tensor in expected)
    require(sorted(found) == names, f"{place} have other names")
    for tensor in expected:
        number = found[tensor.name]
        type = TYPES[int(graphs.type[number])].name
        require(type == tensor.dtype, f"{tensor.name} of another type")
        shape = [-1 if size is None else size for size in tensor.shape(sizes)]
        stored = graphs.dynamic[number, : graphs.rank[number]].tolist()
        # The quantizer leaves out of an output's shape which dimensions change; they are 1 then.
        right = len(stored) == len(shape) and all(
            size == wanted or (size, wanted) == (1, -1)
            for size, wanted in zip(stored, shape, strict=True)
        )
        require(right, f"{place}: {tensor.name} must be {shape}, it is {stored}")
