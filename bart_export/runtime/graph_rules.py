"""What the graph of a `.tflite` file must keep before LiteRT is given the file.

A hash tells that a file is the manifest's, not whose manifest it is, and LiteRT ends the process
over a file that contradicts itself. So a file from anywhere is held to the form of those that this
package writes: numbers of tensors, buffers and operators in range, constants as large as their
shapes, every tensor computed once and before it is read, operators of the set with their operands
and options, and signatures that are the contract's. Weights are not read.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import __version__, contract
from bart_export.artifact import stamps
from bart_export.artifact.artifact import Artifact, check_readable_by_all
from bart_export.config import BartConfig
from bart_export.contract import Bucket, Signature
from bart_export.errors import ArtifactError
from bart_export.runtime.flatbuffer import ABSENT, File, Ints, Tables, Unsound
from bart_export.runtime.graph_tables import (
    TYPE_NUMBERS,
    Buffers,
    Graphs,
    Tensors,
    of_types,
    require,
    within,
)
from bart_export.runtime.operators import (
    ABSENT_TYPE,
    CUSTOM,
    OPERATORS,
    OPTION_VALUES,
    SWITCH,
    TYPE_CODES,
    TYPES,
    Operands,
    Operator,
)

SCHEMA_VERSION = 3
MOST_OPERANDS = 16
FLOAT16, INT32, INT64 = (TYPE_CODES[name] for name in ("float16", "int32", "int64"))
BLOCKWISE = 2  # of the union of quantization details
BLOCKS = (32, 64, 128)

# A signature's name in the file -> the contract's signature, and its axes' sizes there.
Expected = Mapping[str, tuple[Signature, Mapping[str, int]]]


def checked_path(artifact: Artifact, name: str, expected: Expected | None) -> pathlib.Path:
    """Return the path of a file after checking its hash and its graph; see `check`.

    A graph that was checked before is not, while the file's hash need not be (`stamps`).

    Raises:
        ArtifactError: for a file that is missing or altered, or that LiteRT should not be given.
    """
    path = artifact.path(name)
    check_readable_by_all(path)
    checked = f"{artifact.manifest.files[name].sha256} {__version__} {expected}"
    stamp = stamps.stamp(path.stat(), hashlib.sha256(checked.encode()).hexdigest())
    if stamps.read(path, "graph") != stamp:
        check(path, expected)
        stamps.write(path, stamp, "graph")
    return path


def signatures(config: BartConfig, buckets: Sequence[Bucket] | None) -> Expected:
    """Return the signatures of a build: of a static one with `buckets`, or of a dynamic one."""
    sizes = contract.sizes(config)
    if buckets is None:
        return {one.name: (one, sizes) for one in contract.tflite_signatures(config)}
    return {one.name: (one.signature, {**sizes, **one.sizes}) for one in buckets}


def check(path: pathlib.Path, expected: Expected | None) -> None:
    """Refuse a `.tflite` file that LiteRT should not be given.

    Args:
        path: the file; it may be anybody's.
        expected: the signatures that it must have, no more and no fewer; an axis without a size is
            one that is resized. None for a file that is run without signatures.

    Raises:
        ArtifactError: with the first thing that is wrong.
    """
    try:
        check_model(File.map(path).model(), expected)
    except Unsound as unsound:
        raise ArtifactError(
            f"{path} is no .tflite file as bart-export writes them: {unsound}. It was altered or "
            "damaged, and its hash with it. Export the artifact again."
        ) from None


def check_model(model: Tables, expected: Expected | None) -> None:
    """Hold a file to the rules; see `check`."""
    require(model.column("version") == SCHEMA_VERSION, "its schema's version must be 3")
    buffers = Buffers(model.vectors("buffers").tables())
    metadata = model.vectors("metadata").tables()
    require(within(metadata.column("buffer"), len(buffers.size)), "metadata without a buffer")
    graphs = Graphs(model.vectors("subgraphs").tables())
    tensors = Tensors(graphs.tensors, buffers)
    check_quantization(graphs, tensors)
    codes = operator_codes(model.vectors("operator_codes").tables())
    numbers = graphs.operators.column("opcode_index")
    require(within(numbers, len(codes)), "an operator without a code")
    check_operators(graphs, tensors, codes[numbers])
    check_order(graphs, tensors, codes[numbers])
    check_signatures(model.vectors("signature_defs").tables(), graphs, tensors, expected)


def operator_codes(tables: Tables) -> Ints:
    """Return the code of each kind of operator in the file."""
    deprecated = tables.column("deprecated_builtin_code")
    codes: Ints = np.maximum(deprecated, tables.column("builtin_code"))
    require(
        np.isin(codes, [*OPERATORS, CUSTOM]), "an operator that none of bart-export's files has"
    )
    old = (deprecated == 0) | (deprecated == np.minimum(codes, 127))
    require(old, "an operator of two codes")
    require((codes == CUSTOM) == tables.present("custom_code"), "a custom operator without a name")
    return codes


def check_quantization(graphs: Graphs, tensors: Tensors) -> None:
    """Hold scales, zero points and blocks to the tensors that they are of."""
    owners = np.flatnonzero(tensors.tables.present("quantization"))
    tables = tensors.tables.tables("quantization")
    for name in ("min", "max"):
        require(tables.vectors(name).count == 0, f"a quantized tensor has {name}")
    scales, points = tables.vectors("scale"), tables.vectors("zero_point")
    axes = tables.column("quantized_dimension")
    require(within(axes, np.maximum(tensors.rank[owners], 1)), "a quantized dimension that is none")
    rows = np.where(tensors.constant[owners], tensors.shape[owners, axes], 1)
    of_each = (scales.count <= 1) | (scales.count == rows)
    require(of_each & (points.count == scales.count), "scales and shape of a tensor differ")
    values = tables.file.read(scales.places(), "f4").astype(np.float64)
    require(np.isfinite(values) & (values >= 0), "a scale that is no positive number")
    types = tensors.type[owners]
    zeros, of_zero = points.numbers(), types[points.owners()]
    least, most = of_types("least")[of_zero], of_types("most")[of_zero]
    require((zeros >= least) & (zeros <= most), "a zero point out of range")
    blocks = check_blocks(graphs, tensors, owners, tables)
    scaled = np.zeros(len(tensors.type), np.bool_)
    scaled[owners] = (scales.count > 0) | blocks
    rounded = np.isin(tensors.type, [code for code, one in TYPES.items() if one.least])
    require(scaled[rounded], "an integer tensor without a scale")
    require(
        np.isin(tensors.type[scaled], [INT32, INT64]) | rounded[scaled],
        "a float tensor with a scale",
    )


def check_blocks(
    graphs: Graphs, tensors: Tensors, owners: Ints, tables: Tables
) -> npt.NDArray[np.bool_]:
    """Hold blocks to their tensors; return which of the quantizations have some."""
    kinds, blocks = tables.column("details_type"), tables.present("details")
    require((kinds == BLOCKWISE) == blocks, "a quantization of a kind that none has")
    require((kinds == 0) == ~blocks, "a quantization of a kind that none has")
    details, owners = tables.tables("details"), owners[blocks]
    require(details.column("zero_points") <= 0, "blocks with zero points")
    sizes = details.column("block_size")
    require(np.isin(sizes, BLOCKS), f"a block must have one of {BLOCKS}")
    scales = graphs.numbered(details.column("scales"), graphs.graph_of_tensor[owners])
    last = tensors.shape[owners, np.maximum(tensors.rank[owners] - 1, 0)]
    require(tensors.constant[owners] & tensors.constant[scales], "blocks that are no constant")
    require(tensors.type[scales] == FLOAT16, "scales of blocks must be float16")
    require(last % sizes == 0, "rows that are no whole blocks")
    require(tensors.elements[scales] * sizes == tensors.elements[owners], "too few scales")
    return blocks


def check_operators(graphs: Graphs, tensors: Tensors, codes: Ints) -> None:
    """Hold operators to the rows of the set: operands, options, types and shapes."""
    tables = graphs.operators
    inputs, outputs = tables.vectors("inputs"), tables.vectors("outputs")
    fit = (inputs.count <= MOST_OPERANDS) & (outputs.count <= MOST_OPERANDS)
    require(fit, "an operator with too many operands")
    custom = codes == CUSTOM
    for name in ("custom_options", "custom_options_format"):
        require(~tables.present(name)[~custom], "an operator of the set with custom options")
    union, present = tables.column("builtin_options_type"), tables.present("builtin_options")
    options = np.zeros(tables.count, np.int64)
    options[present] = tables.targets("builtin_options")
    require((union == 0)[custom] & ~present[custom], "a custom operator with other options")
    for code in np.unique(codes[~custom]):
        row, chosen = OPERATORS[int(code)], np.flatnonzero(codes == code)
        require(inputs.count[chosen] == row.inputs, f"{row.name} with more or fewer inputs")
        require(outputs.count[chosen] == 1, f"{row.name} with more or fewer outputs")
        wrong = f"{row.name} with options that none of bart-export's has"
        kind, number = row.options
        require(union[chosen] == number, wrong)
        require(present[chosen] == bool(kind), wrong)
        own = Tables(tables.file, kind, options[chosen]) if kind else None
        if own is not None:
            check_options(own, wrong)
        owners = graphs.graph_of_operator[chosen]
        given = [
            graphs.optional(tables.file.integers(inputs.begin[chosen] + 4 * at, "i4"), owners)
            for at in range(row.inputs)
        ]
        made = graphs.numbered(tables.file.integers(outputs.begin[chosen], "i4"), owners)
        check_types(row, [tensors.types(one) for one in [*given, made]])
        for at in row.constants:
            require(tensors.constant[given[at]], f"{row.name} whose operand {at} is computed")
        operands = tuple(map(tensors.operands, given))
        for fit in row.shapes(Operands(operands, tensors.operands(made), own)):
            require(fit, f"{row.name} whose shapes do not fit each other")


def check_types(row: Operator, types: Sequence[Ints]) -> None:
    """Hold the types of an operator's inputs and output to its row."""
    known = {"-": ABSENT_TYPE, **TYPE_CODES}
    digits = TYPE_NUMBERS ** np.arange(len(types))
    allowed = [sum(digits * [known[word] for word in words.split()]) for words in row.types]
    require(np.isin(digits @ np.stack(types), allowed), f"{row.name} of other types")


def check_options(options: Tables, wrong: str) -> None:
    """Hold options to the values that they may have."""
    for field, kind in options.fields.items():
        if kind == "f4":
            require(options.present(field), wrong)
            require(options.file.read(options.places + options.offsets[field], kind) == 1, wrong)
        elif kind != ABSENT:
            require(np.isin(options.column(field), OPTION_VALUES.get(field, SWITCH)), wrong)


def check_order(graphs: Graphs, tensors: Tensors, codes: Ints) -> None:
    """Make sure that every tensor is computed once, and before it is read."""
    operators = graphs.operators
    inputs, outputs = operators.vectors("inputs"), operators.vectors("outputs")
    written = graphs.numbered(outputs.numbers(), graphs.graph_of_operator[outputs.owners()])
    given, results = graphs.ends("inputs"), graphs.ends("outputs")
    sources = np.concatenate([np.flatnonzero(tensors.constant), given, written])
    require(len(np.unique(sources)) == len(sources), "a tensor that comes from two places")
    never = len(codes)
    since = np.full(len(tensors.type), never)  # the operator that computes a tensor, -1 for none
    since[tensors.constant] = since[given] = -1
    since[written] = outputs.owners()
    require(since[results] < never, "a graph's output that nothing computes")
    readers = inputs.owners()
    read = graphs.optional(inputs.numbers(), graphs.graph_of_operator[readers])
    early = (since[read] < readers) | (read == -1)
    require(early, "a tensor that is read before it is computed")


def check_signatures(
    tables: Tables, graphs: Graphs, tensors: Tensors, expected: Expected | None
) -> None:
    """Hold signatures to the contract's."""
    numbers, names = tables.column("subgraph_index"), tables.strings("signature_key")
    require(within(numbers, graphs.tables.count), "a signature without a graph")
    sides = {side: tables.vectors(side) for side in ("inputs", "outputs")}
    maps = {side: vectors.tables() for side, vectors in sides.items()}
    indices = {
        side: graphs.numbered(maps[side].column("tensor_index"), numbers[vectors.owners()])
        for side, vectors in sides.items()
    }
    if expected is None:
        return
    require(sorted(names) == sorted(expected), f"its signatures must be {', '.join(expected)}")
    require(sorted(numbers) == list(range(graphs.tables.count)), "a graph without a signature")
    for side, vectors in sides.items():
        ends = graphs.tables.vectors(side)
        owners, end_numbers = numbers[vectors.owners()], ends.numbers()
        pairs = set(zip(owners, indices[side] - graphs.first_tensors[owners], strict=True))
        wrong = f"{side} of a signature and of its graph differ"
        require(pairs == set(zip(ends.owners(), end_numbers, strict=True)), wrong)
        require(len(pairs) == len(owners) == len(end_numbers), wrong)
        tensor_names = maps[side].strings("name")
        for number, name in enumerate(names):
            chosen = np.flatnonzero(vectors.owners() == number)
            found = {tensor_names[one]: int(indices[side][one]) for one in chosen}
            signature, sizes = expected[name]
            check_tensors(found, getattr(signature, side), sizes, tensors, f"{side} of {name}")


def check_tensors(
    found: Mapping[str, int],
    expected: Sequence[Any],
    sizes: Mapping[str, int],
    tensors: Tensors,
    place: str,
) -> None:
    """Hold the tensors of one side of a signature, by name, to the contract's."""
    require(sorted(found) == sorted(one.name for one in expected), f"{place} have other names")
    for one in expected:
        number = found[one.name]
        shape = [-1 if size is None else size for size in one.shape(sizes)]
        have = tensors.dynamic[number, : tensors.rank[number]].tolist()
        require(TYPES[int(tensors.type[number])].name == one.dtype, f"{one.name} of another type")
        # The quantizer leaves out of an output's shape which dimensions change; they are 1 then.
        right = len(have) == len(shape) and all(
            size == wanted or (size, wanted) == (1, -1)
            for size, wanted in zip(have, shape, strict=True)
        )
        require(right, f"{place}: {one.name} must be {shape}, it is {have}")
