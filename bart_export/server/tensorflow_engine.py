"""The TensorFlow engine: runs any SavedModel the way TensorFlow Serving does.

The model is loaded into a TF1 session and run through the session's C API, as in TensorFlow Serving
(saved_model_bundle_factory.cc and predict_util.cc), so that the same inputs are accepted: dtypes
are checked; shapes are left to the graph. TensorFlow has one thread pool per process, whose size is
the `num_threads` of the first model.

A SavedModel is a program. Outside an artifact it runs as it is, as in TensorFlow Serving. In one it
may only use operators that bart-export writes, because anyone can write a manifest for other files.
"""

import dataclasses
import functools
import itertools
import logging
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
from google.protobuf.message import DecodeError

from bart_export import contract, documents
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import SAVED_MODEL
from bart_export.config import GenerationConfig
from bart_export.errors import ArtifactError
from bart_export.quiet import native_stderr_silenced
from bart_export.runtime.engine import available_cores
from bart_export.runtime.results import Result
from bart_export.server import batching, messages
from bart_export.server.batching import BatchScheduler, Parameters
from bart_export.server.merging import joined_outputs
from bart_export.server.messages import Message
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call, Emit, Limits, Tensors, TextReader, Workers
from bart_export.server.status import Code, StatusError, invalid
from bart_export.server.versions import GRAPH, artifact_directory
from bart_export.text.tokenizer import BartTokenizer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with native_stderr_silenced():
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.client import pywrap_tf_session as native
    from tensorflow.python.framework.ops import SymbolicTensor
    from tensorflow.python.lib.io.tf_record import tf_record_random_reader
logging.getLogger("tensorflow").setLevel(logging.ERROR)

PARAMETERS = "batching_params.pbtxt"
TAG = "serve"
MAX_GRAPH_BYTES = 1 << 28  # a large BART's takes a few megabytes
# A SavedModel with these signatures is an export, even outside its artifact.
EXPORTED = {signature.name for signature in contract.saved_model_signatures()}

# The operators of all exports, with any settings, activation function and tokenizer.
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
# These access files. Only saving and restoring variables may use them.
FILE_OPERATORS = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2"})


def open_version(directory: pathlib.Path, options: ServeOptions) -> "SavedModelServable":
    """Load a version directory; an artifact's must match its manifest and `OPERATORS`.

    Raises:
        ArtifactError: for files that differ from the manifest, or an operator that no export has.
        StatusError: as for `open_saved_model`.
    """
    reader = None
    if artifact := artifact_of(directory):
        check_operators(directory)
        tokenizer = BartTokenizer.from_artifact(artifact)
        reader = TextReader(tokenizer, artifact.manifest.encoder_sequence_length)
    servable = open_saved_model(directory, options)
    servable.reader = reader
    return servable


def artifact_of(version: pathlib.Path) -> Artifact | None:
    """Return the artifact that contains a version directory, after checking the files' hashes."""
    directory = artifact_directory(version)
    if directory is None:
        return None
    artifact = Artifact.open(directory)
    artifact.folder(f"{SAVED_MODEL}/{version.resolve().name}")
    return artifact


def open_saved_model(directory: pathlib.Path, options: ServeOptions) -> "SavedModelServable":
    """Load the SavedModel in a version directory.

    Raises:
        StatusError: for a missing or damaged SavedModel, or invalid batching parameters.
    """
    parameters = None
    path = options.batching_parameters_file or directory / PARAMETERS
    if options.batching and (options.batching_parameters_file or path.is_file()):
        parameters = batching.read_parameters(path)
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=options.num_threads or 0)
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=config)
    try:
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(session, [TAG], str(directory))
        if parameters and set(meta_graph.signature_def) >= EXPORTED:
            parameters = split_beyond(parameters, options.max_request_rows)
        return SavedModelServable(session, meta_graph, options, parameters)
    except Exception as error:  # TensorFlow and Protobuf raise any for a damaged file
        session.close()
        if isinstance(error, StatusError):
            raise
        raise StatusError(
            Code.NOT_FOUND if isinstance(error, OSError) else Code.INTERNAL,
            f"{directory} must hold a SavedModel with the tag '{TAG}', but it cannot be loaded: "
            f"{without_nodes(str(error))}",
        ) from error


def split_beyond(parameters: Parameters, most_rows: int) -> Parameters:
    """Return batching parameters that split large calls of an export instead of refusing them.

    The export's file does not enable that, because TensorFlow Serving fails if parts differ in
    width.
    """
    splits = parameters.enable_large_batch_splitting or parameters.allowed_batch_sizes
    if splits or parameters.max_batch_size >= most_rows:
        return parameters
    return dataclasses.replace(
        parameters,
        max_batch_size=min(most_rows, batching.MOST_ROWS),
        enable_large_batch_splitting=True,
        max_execution_batch_size=parameters.max_batch_size,
    )


class SavedModelServable:
    """A `servable.Servable` for a SavedModel that is loaded in `session`.

    Calls run on `options.workers` threads or, with `parameters`, in batches.
    """

    streams = False

    def __init__(
        self,
        session: tf.compat.v1.Session,
        meta_graph: Message,
        options: ServeOptions,
        parameters: Parameters | None,
    ) -> None:
        self.reader: TextReader | None = None
        self._session = session
        self._tensor = functools.cache(
            lambda name: SymbolicTensor._as_tf_output(session.graph.get_tensor_by_name(name))
        )
        self.signature_defs: dict[str, Message] = {
            name: messages.SignatureDef.FromString(signature.SerializeToString())
            for name, signature in meta_graph.signature_def.items()
        }
        self._defaults: dict[str, Tensors] = {
            name: {key: tf.make_ndarray(value) for key, value in signature.defaults.items()}
            for name, signature in meta_graph.signature_def.items()
        }
        # A run leaves cores idle between its small operators: generating with a small BART used 0.9
        # of 2 cores.
        workers = options.workers or available_cores()
        self._threads: Workers | BatchScheduler = (
            Workers(workers, options.queue_size, "tensorflow")
            if parameters is None
            else BatchScheduler(self.run, self.join, parameters, workers, options.queue_size)
        )

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature; see `servable.Servable`."""
        call.limits.check()
        signature, outputs, limits = call.signature, call.outputs, call.limits
        defaults = self._defaults[signature]
        if isinstance(self._threads, BatchScheduler):
            rows = {**for_each_row(defaults, call.inputs), **call.inputs}
            return self._threads.submit(signature, outputs, rows, limits)
        inputs = {**defaults, **call.inputs}
        return self._threads.submit(
            lambda: self.run(signature, outputs, inputs, limits.remaining()), limits
        )

    def stream(
        self, text: str, parameters: Mapping[str, object], emit: Emit, limits: Limits
    ) -> "Future[Result]":
        """Refuse to stream; see `servable.Servable`."""
        raise StatusError(
            Code.UNIMPLEMENTED,
            "A SavedModel cannot stream. Use the LiteRT engine: export with --target tflite, serve "
            "with --engine litert.",
        )

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        """Join the outputs of a call's parts; the contract's ids are padded to equal lengths.

        A SavedModel outside its artifact is assumed to have BART's usual padding token.
        """
        tokenizer = self.reader.tokenizer if self.reader else GenerationConfig
        return joined_outputs(parts, contract.output_padding(tokenizer.pad_token_id))

    def close(self) -> None:
        """Wait for running calls, then close the session."""
        self._threads.close()
        self._session.close()

    def run(
        self, signature: str, outputs: Sequence[str], inputs: Tensors, seconds: float | None
    ) -> Tensors:
        """Run a signature on the calling thread.

        Unlike TensorFlow Serving, `Session.run` would check shapes and convert dtypes.
        """
        definition = self.signature_defs[signature]
        # 0 ms means no limit.
        milliseconds = 0 if seconds is None else min(max(1, math.ceil(seconds * 1000)), 2**31 - 1)
        run_options = tf.compat.v1.RunOptions(timeout_in_ms=milliseconds)
        buffer = native.TF_NewBufferFromString(run_options.SerializeToString())
        try:
            values = native.TF_SessionRun_wrapper(
                self._session._session,
                buffer,
                {
                    self._tensor(definition.inputs[name].name): inputs[name]
                    for name in sorted(inputs)
                },
                [self._tensor(definition.outputs[name].name) for name in outputs],
                [],
                None,
            )
        except tf.errors.OpError as error:
            raise StatusError(Code(error.error_code), without_nodes(error.message)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise invalid(without_nodes(str(error.args[0]))) from error
        finally:
            native.TF_DeleteBuffer(buffer)
        # TensorFlow returns scalars as plain numbers and bytes.
        return {
            name: np.asarray(value, object if isinstance(value, bytes) else None)
            for name, value in zip(outputs, values, strict=True)
        }


def for_each_row(defaults: Tensors, inputs: Tensors) -> Tensors:
    """Return one-row defaults, repeated to match the inputs' number of rows.

    In a batch, all inputs need the same number of rows. TensorFlow Serving does not do this, and
    refuses calls of several rows that omit an input.
    """
    counts = {len(value) for value in inputs.values() if value.ndim}
    if len(counts) != 1:
        return defaults
    (rows,) = counts
    return {
        name: np.repeat(value, rows, axis=0) if value.shape[:1] == (1,) else value
        for name, value in defaults.items()
    }


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file (TensorFlow's core/lib/io/record_writer.h).

    Raises:
        StatusError: DATA_LOSS for a damaged or truncated file.
    """
    reader, start, size = tf_record_random_reader(str(path)), 0, path.stat().st_size
    with documents.open_regular(path) as file:
        while start < size:
            file.seek(start)
            length = int.from_bytes(file.read(8), "little")
            try:
                # TensorFlow would allocate whatever length the record claims.
                if start + 8 + 4 + length + 4 > size:
                    raise tf.errors.DataLossError(None, None, f"truncated record at {start}")
                record, start = reader.read(start)
            except tf.errors.DataLossError as error:
                raise StatusError(
                    Code.DATA_LOSS,
                    f"{path}: {error.message}. Please verify your warmup data is in TFRecord "
                    "format.",
                ) from None
            yield record


ROOT_ERROR = re.compile(r"^\s*\(0\) [A-Z_]+: ")


def without_nodes(message: str) -> str:
    """Return TensorFlow's message without node names, which mean nothing to clients.

    If a run has several errors ("2 root error(s) found."), return the first.
    """
    lines = message.splitlines()
    roots = [line for line in lines if ROOT_ERROR.match(line)]
    if roots:
        return ROOT_ERROR.sub("", roots[0])
    kept = (line.strip() for line in lines if not line.strip().startswith("[["))
    return " ".join(line for line in kept if line not in ("", "Graph execution error:"))


def check_operators(directory: pathlib.Path) -> None:
    """Check the operators of a version directory's graph without running it.

    Raises:
        ArtifactError: for an operator that no export has, or one that accesses files for anything
            but saving and restoring variables.
    """
    # TensorFlow reads other formats of this file, and prefers them.
    for other in directory.glob("saved_model.*"):
        if other.name != GRAPH:
            raise refusal(directory, f"{other.name} next to or instead of {GRAPH}")
    try:
        content = documents.read_bounded(directory / GRAPH, MAX_GRAPH_BYTES)
        saved_model = SavedModel.FromString(content)
    except (OSError, DecodeError) as error:
        raise refusal(directory, f"a {GRAPH} that cannot be read: {error}") from None
    for meta_graph in saved_model.meta_graphs:
        library = meta_graph.graph_def.library.function
        functions = {function.signature.name: function.node_def for function in library}
        nodes = [*meta_graph.graph_def.node, *itertools.chain(*functions.values())]
        # A function named like an operator would be called in its place.
        strange = {node.op for node in nodes} - OPERATORS | functions.keys() & OPERATORS
        if strange:
            raise refusal(directory, f"the operators {', '.join(sorted(strange))}")
        saver = meta_graph.saver_def
        allowed = {
            node_name(saver.save_tensor_name): FILE_OPERATORS,
            saver.restore_op_name: {"RestoreV2"},
        }
        referenced = set(referenced_nodes(meta_graph))
        for node in meta_graph.graph_def.node:
            files = operators_of(node, functions) & FILE_OPERATORS
            if files - allowed.get(node.name, set()) or (files and node.name in referenced):
                raise refusal(directory, f"{', '.join(sorted(files))} at {node.name}")


def operators_of(node: Message, functions: Mapping[str, Iterable[Message]]) -> set[str]:
    """Return the operators of a node and of the functions it calls."""
    found, called, waiting = set[str](), set[str](), [node]
    while waiting:
        node = waiting.pop()
        found.add(node.op)
        for value in node.attr.values():
            names = {function.name for function in (value.func, *value.list.func)}
            for name in (names & functions.keys()) - called:
                called.add(name)
                waiting += functions[name]
    return found


def node_name(tensor: str) -> str:
    """Return the name of the node that produces a tensor or a control input."""
    return tensor.lstrip("^").partition(":")[0]


def referenced_nodes(meta_graph: Message) -> Iterator[str]:
    """Yield the names of nodes that other nodes, signatures or collections use."""
    for node in meta_graph.graph_def.node:
        yield from map(node_name, node.input)
    for signature in meta_graph.signature_def.values():
        yield from (node_name(info.name) for info in signature.outputs.values())
    for collection in meta_graph.collection_def.values():
        yield from map(node_name, collection.node_list.value)


def refusal(directory: pathlib.Path, what: str) -> ArtifactError:
    """Return the error for a SavedModel that bart-export did not write."""
    return ArtifactError(
        f"{directory} has {what[:300]}, which bart-export never writes and which may do anything. "
        "Export the artifact again. If you trust it, copy it out of the artifact and serve it with "
        "--model-base-path."
    )
