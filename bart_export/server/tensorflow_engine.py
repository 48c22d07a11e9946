"""The TensorFlow engine: any SavedModel, run the way TensorFlow Serving runs it.

The model is loaded into a TF1 session and run through the session's C interface, as the real server
does (saved_model_bundle_factory.cc and predict_util.cc of tensorflow/serving), so that what is
accepted and what is refused is the same: dtypes are checked, shapes are left to the graph. Only
this module of the server imports TensorFlow.

TensorFlow has one pool of threads in a process: the `num_threads` of the first model count.
"""

import dataclasses
import functools
import gc
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from bart_export import contract, documents
from bart_export.config import GenerationConfig
from bart_export.quiet import native_stderr_silenced
from bart_export.runtime.engine import available_cores
from bart_export.runtime.results import Result
from bart_export.server import batching, messages
from bart_export.server.batching import BatchScheduler, Parameters
from bart_export.server.merging import joined_outputs
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call, StreamCall, Tensors, TextReader, Workers
from bart_export.server.status import Code, StatusError, invalid

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with native_stderr_silenced():
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.client import pywrap_tf_session as native
    from tensorflow.python.framework.ops import SymbolicTensor
logging.getLogger("tensorflow").setLevel(logging.ERROR)
# TensorFlow's modules are for good. Walking them holds up everybody for a third of a second.
gc.collect()
gc.freeze()

PARAMETERS = "batching_params.pbtxt"
TAG = "serve"
MAX_GRAPH_BYTES = 1 << 28  # of an export; a large BART's has some megabytes
# By these signatures an export is known, outside of its artifact as well.
EXPORTED = {signature.name for signature in contract.saved_model_signatures()}

# (values by the names of tensors to feed, names of tensors to fetch, seconds) -> values.
Run = Callable[[Mapping[str, Any], Sequence[str], float | None], Sequence[Any]]


def read_saved_model(path: pathlib.Path) -> Any:
    """Return the message of a `saved_model.pb`, its graph included; nothing of it is run.

    Raises:
        OSError: for a file that cannot be read, or is larger than any graph.
        ValueError: for one that is no such message.
    """
    try:
        return SavedModel.FromString(documents.read(path, MAX_GRAPH_BYTES))
    except DecodeError as error:
        raise ValueError(str(error)) from None


def open_saved_model(directory: pathlib.Path, options: ServeOptions) -> "SavedModelServable":
    """Load a version directory.

    Args:
        directory: holds `saved_model.pb`, `variables` and what else the model brings.
        options: of the server.

    Raises:
        StatusError: for a directory that holds no SavedModel, or a damaged one, and for batching
            parameters that contradict themselves.
    """
    parameters = None
    if options.batching:
        path = options.batching_parameters_file or directory / PARAMETERS
        if options.batching_parameters_file or path.is_file():
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
    except Exception as error:
        session.close()
        if isinstance(error, StatusError):
            raise
        raise StatusError(
            Code.NOT_FOUND if isinstance(error, OSError) else Code.INTERNAL,
            f"{directory} should hold a SavedModel with the tag '{TAG}', but it cannot be loaded: "
            f"{one_line(str(error))}",
        ) from error


def split_beyond(parameters: Parameters, most_rows: int) -> Parameters:
    """Return the parameters of an export, by which larger calls are split instead of refused.

    What TensorFlow Serving reads must not say so: it ends where the parts differ in width.
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
    """A SavedModel in a session of its own; a `servable.Servable`.

    `session` has it loaded, `meta_graph` is its description. Calls run on `options.workers`
    threads, or, given `parameters`, in batches on the threads that those name.
    """

    streams = False

    def __init__(
        self, session: Any, meta_graph: Any, options: ServeOptions, parameters: Parameters | None
    ) -> None:
        self.reader: TextReader | None = None
        self._session = session
        self._run = native_run(session)
        self.signature_defs: dict[str, Any] = {
            name: messages.SignatureDef.FromString(signature.SerializeToString())
            for name, signature in meta_graph.signature_def.items()
        }
        self._defaults: dict[str, dict[str, Any]] = {
            name: {key: tf.make_ndarray(value) for key, value in signature.defaults.items()}
            for name, signature in meta_graph.signature_def.items()
        }
        # One run leaves cores idle between its small operators: generating with a small BART used
        # 0.9 of 2 cores, and two runs side by side cost no more of them each.
        workers = options.workers or available_cores()
        self._threads: Workers | BatchScheduler = (
            Workers(workers, options.queue_size, "tensorflow")
            if parameters is None
            else BatchScheduler(self.run, self.join, parameters, workers, options.queue_size)
        )

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature on one of the model's threads; see `servable.Servable`."""
        signature, outputs, limits = call.signature, call.outputs, call.limits
        defaults: Tensors = self._defaults[signature]
        try:
            limits.check()
            if isinstance(self._threads, BatchScheduler):
                rows = {**for_each_row(defaults, call.inputs), **call.inputs}
                return self._threads.submit(signature, outputs, rows, limits)
            inputs = {**defaults, **call.inputs}
            return self._threads.submit(
                lambda: self.run(signature, outputs, inputs, limits.remaining()), limits
            )
        except StatusError as error:
            if error.code is Code.UNAVAILABLE:
                raise
            future: Future[Tensors] = Future()
            future.set_exception(error)
            return future

    def stream(self, call: StreamCall) -> "Future[Result]":
        """Refuse: a SavedModel's answer comes whole."""
        raise StatusError(
            Code.UNIMPLEMENTED,
            "A SavedModel answers whole texts only. Streaming needs the LiteRT engine: export with "
            "--target tflite and serve with --engine litert.",
        )

    def join(self, parts: Sequence[Tensors]) -> Tensors:
        """Put the outputs of a call's parts together; those of the contract may differ in length.

        A SavedModel outside of its artifact does not say which its padding token is.
        """
        tokenizer = self.reader.tokenizer if self.reader else GenerationConfig
        return joined_outputs(parts, contract.output_padding(tokenizer.pad_token_id))

    def close(self) -> None:
        """End the threads and the session."""
        self._threads.close()
        self._session.close()

    def run(
        self, signature: str, outputs: Sequence[str], inputs: Tensors, seconds: float | None
    ) -> Tensors:
        """Run a signature on the calling thread."""
        definition = self.signature_defs[signature]
        feeds = {definition.inputs[name].name: inputs[name] for name in sorted(inputs)}
        fetches = [definition.outputs[name].name for name in outputs]
        try:
            values = self._run(feeds, fetches, seconds)
        except tf.errors.OpError as error:
            raise StatusError(Code(error.error_code), one_line(error.message)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise invalid(one_line(str(error.args[0]))) from error
        return {name: array(value) for name, value in zip(outputs, values, strict=True)}


def for_each_row(defaults: Tensors, inputs: Tensors) -> Tensors:
    """Return defaults that have one row with as many as the inputs have.

    In a batch every input needs as many rows. TensorFlow Serving lacks this step and refuses calls
    of several rows that leave an input out.
    """
    counts = {len(value) for value in inputs.values() if value.ndim}
    if len(counts) != 1:
        return defaults
    (rows,) = counts
    return {
        name: np.repeat(value, rows, axis=0) if value.shape[:1] == (1,) else value
        for name, value in defaults.items()
    }


def native_run(session: Any) -> Run:
    """Return how to run a session through its C interface.

    `Session.run` would refuse shapes that the real server leaves to the graph, and convert dtypes
    that the real server refuses.
    """
    handle, output_of = session._session, SymbolicTensor._as_tf_output

    @functools.cache
    def endpoint(name: str) -> Any:
        return output_of(session.graph.get_tensor_by_name(name))

    def native_session_run(
        feeds: Mapping[str, Any], fetches: Sequence[str], seconds: float | None
    ) -> Sequence[Any]:
        values = {endpoint(name): value for name, value in feeds.items()}
        wanted = [endpoint(name) for name in fetches]
        buffer = native.TF_NewBufferFromString(run_options(seconds).SerializeToString())
        try:
            outputs: Sequence[Any] = native.TF_SessionRun_wrapper(
                handle, buffer, values, wanted, [], None
            )
            return outputs
        finally:
            native.TF_DeleteBuffer(buffer)

    return native_session_run


def run_options(seconds: float | None) -> Any:
    """Return TensorFlow's options of a run that ends after some time; 0 ms would be no limit."""
    milliseconds = 0 if seconds is None else max(1, math.ceil(seconds * 1000))
    return tf.compat.v1.RunOptions(timeout_in_ms=min(milliseconds, 2**31 - 1))


def array(value: Any) -> Any:
    """Return a fetched value as an array: TensorFlow gives scalars as numbers and bytes."""
    return np.asarray(value, object) if isinstance(value, (bytes, str)) else np.asarray(value)


ROOT_ERROR = re.compile(r"^\s*\(0\) [A-Z_]+: ")


def one_line(message: str) -> str:
    """Return what TensorFlow says without the names of nodes, which mean nothing to a client.

    Of several errors of one run ("2 root error(s) found.") it is the first.
    """
    lines = message.splitlines()
    roots = [line for line in lines if ROOT_ERROR.match(line)]
    if roots:
        return ROOT_ERROR.sub("", roots[0])
    kept = (line.strip() for line in lines if not line.strip().startswith("[["))
    return " ".join(line for line in kept if line not in ("", "Graph execution error:"))
