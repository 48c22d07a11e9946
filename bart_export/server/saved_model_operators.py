"""The operators of an export's graph: a SavedModel of an artifact that has others is not loaded.

A SavedModel is a program. One from elsewhere is run as it is, as TensorFlow Serving does; that of
an artifact is held to what bart-export writes, since anybody can make a manifest fit other files.
"""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from bart_export.errors import ArtifactError
from bart_export.server.tensorflow_engine import read_saved_model

# Of all exports together, whatever their settings, activation function and tokenizer.
NAMES = """
Add AddV2 All Any ArgMax Assert AssignVariableOp BatchMatMulV2 BiasAdd BroadcastTo Cast
CheckNumerics ConcatV2 Const Cumsum DecodeRaw DisableCopyOnRead Empty EnsureShape Equal Erfc Exp
ExpandDims Fill FloorDiv FloorMod GatherNd GatherV2 Greater GreaterEqual HashTableV2 Identity If
InplaceUpdate IsFinite Less LessEqual Log LogicalAnd LogicalNot LogicalOr LookupTableFindV2
LookupTableImportV2 LowerBound MatMul MatrixBandPart Max Maximum Mean MergeV2Checkpoints Minimum Mul
Neg NoOp NotEqual OneHot OnesLike Pack Pad PadV2 PartitionedCall Placeholder PlaceholderWithDefault
Pow Prod RaggedRange Range ReadVariableOp RealDiv ReduceJoin Relu Reshape RestoreV2 Roll Rsqrt
SaveV2 SegmentMin Select SelectV2 Shape ShardedFilename Sigmoid Size Softmax Squeeze
StatefulPartitionedCall StatelessIf StatelessWhile StaticRegexFullMatch StaticRegexReplace
StopGradient StridedSlice StringJoin StringLength Sub Substr Sum Tanh TensorListFromTensor
TensorListGetItem TensorListReserve TensorListSetItem TensorListStack TensorScatterMax
TensorScatterMin TensorScatterUpdate Tile TopKV2 Transpose UnicodeDecodeWithOffsets UnicodeEncode
UnicodeTranscode Unique Unpack UnsortedSegmentSum UpperBound VarHandleOp Where While ZerosLike
"""
OPERATORS = frozenset(NAMES.split())
# They read and write files: saving and restoring variables do, and nothing else may.
FILE_OPERATORS = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2"})


def check_operators(directory: pathlib.Path) -> None:
    """Hold the graph of a version directory to the operators of exports.

    Raises:
        ArtifactError: for an operator that no export has, or one that reaches files from elsewhere
            than where variables are saved and restored.
    """
    path = directory / "saved_model.pb"
    # TensorFlow has other forms of the same file, and takes those first or in its stead.
    for other in directory.glob("saved_model.*"):
        if other != path:
            raise refusal(directory, f"{other.name} beside or instead of saved_model.pb")
    try:
        saved_model = read_saved_model(path)
    except (OSError, ValueError) as error:
        raise refusal(directory, f"a saved_model.pb that cannot be read: {error}") from None
    for meta_graph in saved_model.meta_graphs:
        check_graph(meta_graph, directory)


def check_graph(meta_graph: Any, directory: pathlib.Path) -> None:
    """Check one graph of a SavedModel; see `check_operators`."""
    functions = {one.signature.name: one for one in meta_graph.graph_def.library.function}
    bodies = [meta_graph.graph_def.node, *(one.node_def for one in functions.values())]
    # A function of an operator's name would be called in its stead.
    strange = {
        node.op for body in bodies for node in body
    } - OPERATORS | functions.keys() & OPERATORS
    if strange:
        raise refusal(directory, f"the operators {', '.join(sorted(strange))}")
    saver = meta_graph.saver_def
    allowed = {
        saver.save_tensor_name.partition(":")[0]: FILE_OPERATORS,
        saver.restore_op_name: {"RestoreV2"},
    }
    read = set(names_read(meta_graph))
    for node in meta_graph.graph_def.node:
        files = operators([node], functions) & FILE_OPERATORS
        if files - allowed.get(node.name, set()) or (files and node.name in read):
            raise refusal(directory, f"{', '.join(sorted(files))} at {node.name}")


def operators(nodes: Iterable[Any], functions: dict[str, Any]) -> set[str]:
    """Return the operators of some nodes and of all functions that they call."""
    found, called = set(), set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        found.add(node.op)
        for value in node.attr.values():
            for function in (value.func, *value.list.func):
                if function.name in functions and function.name not in called:
                    called.add(function.name)
                    waiting += functions[function.name].node_def
    return found


def names_read(meta_graph: Any) -> Iterator[str]:
    """Yield the names of nodes that others, a signature or a collection refer to."""
    for node in meta_graph.graph_def.node:
        yield from (name.lstrip("^").partition(":")[0] for name in node.input)
    for signature in meta_graph.signature_def.values():
        yield from (info.name.partition(":")[0] for info in signature.outputs.values())
    for collection in meta_graph.collection_def.values():
        yield from (name.partition(":")[0] for name in collection.node_list.value)


def refusal(directory: pathlib.Path, what: str) -> ArtifactError:
    """Return the error for a SavedModel that has something no export has."""
    return ArtifactError(
        f"{directory} has {what[:300]}: no SavedModel that bart-export writes has that, and it may "
        "do anything. Export the artifact again. If you trust it, copy it out of the artifact and "
        "serve it with --model-base-path."
    )
