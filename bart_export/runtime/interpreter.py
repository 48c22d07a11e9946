"""Engines for runtimes that have `Interpreter` only: tflite-runtime, and LiteRT with delegates.

The protocol is that of `bart_export.runtime.engine`. An interpreter keeps its tensors to itself:
nothing is shared between `encode` and `decode`, and what `decode` writes is not what it reads. The
caches therefore stay in `decode`'s inputs, and after a step only the positions that it changed are
brought over from its outputs: one for beams that stay where they are, all of them for beams that
change places. `InterpreterEngine` runs dynamic builds; `bart_export.runtime.static_interpreter` has
the engine for static ones. This module knows no search and no artifact's rules about who may open
which file.
"""

import ctypes
import importlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import BartConfig
from bart_export.errors import EngineError, MissingExtra, pip_install
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime.buffers import resized
from bart_export.runtime.engine import (
    Decoding,
    FloatArray,
    IntArray,
    available_cores,
    check_length,
    check_serial,
    check_source,
    first_sizes,
    larger_sizes,
)
from bart_export.runtime.graph_rules import checked_path, dynamic_signatures

ALL_KERNELS = "BUILTIN"
# Package -> the module with its `Interpreter`, the extra that installs it, and the kernels to use
# where tensors are resized: XNNPACK in tflite-runtime 2.14 keeps the sizes it saw first, and after
# a resize gives wrong numbers without an error, or writes where it may not. The kernels without it
# are right.
INTERPRETERS = {
    TFLITE_RUNTIME: (
        "tflite_runtime.interpreter",
        "legacy-runtime",
        "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    ),
    LITERT: ("ai_edge_litert.interpreter", "", ALL_KERNELS),
}


class InterpreterEngine:
    """An engine over the `Interpreter` of tflite-runtime or ai-edge-litert.

    Args:
        path: the `.tflite` file.
        config: the model's architecture, as the artifact's manifest gives it.
        num_threads: threads for the CPU kernels; None takes all cores this process may use.
        interpreter: the package to take `Interpreter` from, a key of `INTERPRETERS`.
        delegates: shared libraries of delegates, `libedgetpu.so.1` for one, first come first
            served.

    Raises:
        EngineError: if the package cannot be used, a delegate not be loaded, or the file not be
            opened.
        MissingExtra: if the package is not installed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        config: BartConfig,
        *,
        num_threads: int | None = None,
        interpreter: str = TFLITE_RUNTIME,
        delegates: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.package = interpreter
        self.encode, self.decode, _ = contract.tflite_signatures(config)
        self.cache_names = tuple(tensor.name for tensor in contract.cache_tensors(config))
        self.cross_names = tuple(tensor.name for tensor in contract.cross_tensors(config))
        self.serial = 0
        self.current: dict[str, int] = {}  # dynamic axis -> size the tensors have now
        kernels = INTERPRETERS[interpreter][2]
        self.signatures = open_signatures(interpreter, path, num_threads, delegates, kernels)

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, name: str, *, num_threads: int | None = None
    ) -> "InterpreterEngine":
        """Open a file of an artifact with tflite-runtime."""
        path = checked_path(artifact, name, dynamic_signatures(artifact.config))
        return cls(path, artifact.config, num_threads=num_threads)

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source; see `Engine.start`."""
        ids = check_source(self.config, token_ids)
        check_length(self.config, max_length)
        self.serial += 1
        self.resize(first_sizes(ids.shape[1], num_beams, max_length))
        encode, decode = self.signatures["encode"], self.signatures["decode"]
        encode_in_place(encode, ids, np.ones_like(ids))
        hand_over_source(encode, decode, self.cross_names)
        for name in self.cache_names:
            decode.input(name)[:] = 0
        return Decoding(self.serial, 0, None)

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam; see `Engine.step`."""
        check_serial(self.serial, state)
        position = state.position
        if position == self.current[contract.CAPACITY]:
            self.grow()
        logits = decode_in_place(
            self.signatures["decode"], self.cache_names, position, token_ids, beam_index
        )
        return logits, Decoding(state.serial, position + 1, None)

    def grow(self) -> None:
        """Make room for more positions; what the caches hold stays."""
        decode = self.signatures["decode"]
        old = {name: decode.input(name).copy() for name in self.cache_names}
        self.resize(larger_sizes(self.config, self.current))
        hand_over_source(self.signatures["encode"], decode, self.cross_names)
        for name, cache in old.items():
            filled = cache.shape[2]
            decode.input(name)[:, :, :filled] = cache
            decode.input(name)[:, :, filled:] = 0

    def resize(self, wanted: dict[str, int]) -> None:
        """Resize what depends on an axis that changes; the resized signature's inputs are lost."""
        for signature in (self.encode, self.decode):
            shapes = resized(self.config, signature, self.current, wanted)
            if shapes:
                self.signatures[signature.name].resize(shapes)
        self.current = wanted


class InterpreterSignature:
    """One signature of an open file: its tensors in place, by name.

    The public signature runner resizes, allocates, and copies every tensor in and out at each call.
    The interpreter's private wrapper, the same in both packages, gives the memory itself.
    """

    def __init__(self, interpreter: Any, package: str, name: str) -> None:
        self.interpreter = interpreter
        self.package, self.name = package, name
        self.subgraph = self.wrapper.GetSubgraphIndexFromSignature(name)
        tensors = self.wrapper.GetSignatureDefs()[name]
        self.inputs, self.outputs = tensors["inputs"], tensors["outputs"]  # name -> index

    @property
    def wrapper(self) -> Any:
        """The native interpreter; its owner must be the last to let go of it, delegates after."""
        return self.interpreter._interpreter

    def input(self, name: str) -> Any:
        """Return an input's memory as an array, good until the next `resize` or `invoke`."""
        return self.wrapper.tensor(self.wrapper, self.inputs[name], self.subgraph)

    def output(self, name: str) -> Any:
        """Return an output's memory as an array, good until the next `resize` or `invoke`."""
        return self.wrapper.tensor(self.wrapper, self.outputs[name], self.subgraph)

    def resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Give some inputs new shapes; what any input held is lost."""
        try:
            for name, shape in shapes.items():
                size = np.array(shape, np.int32)
                self.wrapper.ResizeInputTensor(self.inputs[name], size, False, self.subgraph)
            self.wrapper.AllocateTensors(self.subgraph)
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"{self.package} cannot resize the signature {self.name} to {shapes}: "
                f"{one_line(error)}"
            ) from error

    def invoke(self) -> None:
        """Run the signature on what its inputs hold."""
        try:
            self.wrapper.Invoke(self.subgraph)
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"{self.package} failed to run the signature {self.name}: {one_line(error)}"
            ) from error


def encode_in_place(encode: InterpreterSignature, ids: IntArray, mask: IntArray) -> None:
    """Encode a source; `ids` and `mask` are int32 (one, source)."""
    encode.input("encoder_token_ids")[:] = ids
    encode.input("encoder_padding_mask")[:] = mask
    encode.invoke()


def hand_over_source(
    encode: InterpreterSignature, decode: InterpreterSignature, cross_names: Sequence[str]
) -> None:
    """Give the decoder the source: its mask, and what the encoder wrote."""
    decode.input("encoder_padding_mask")[:] = encode.input("encoder_padding_mask")
    for name in cross_names:
        decode.input(name)[:] = encode.output(name)


def decode_in_place(
    decode: InterpreterSignature,
    cache_names: Sequence[str],
    position: int,
    token_ids: IntArray,
    beam_index: IntArray,
) -> FloatArray:
    """Decode one token of every beam, keep the caches in the inputs, and return the logits."""
    decode.input("decoder_token_ids")[:] = token_ids[:, None]
    decode.input("position")[:] = position
    if "beam_index" in decode.inputs:
        decode.input("beam_index")[:] = beam_index
    decode.invoke()
    in_place = np.array_equal(beam_index, np.arange(len(beam_index)))
    changed = slice(position if in_place else 0, position + 1)
    for name in cache_names:
        decode.input(name)[:, :, changed] = decode.output(name)[:, :, changed]
    logits: FloatArray = decode.output("logits").copy()
    return logits


def open_signatures(
    package: str,
    path: pathlib.Path,
    num_threads: int | None,
    delegates: Sequence[str],
    kernels: str,
) -> dict[str, InterpreterSignature]:
    """Open a `.tflite` file and return its signatures by name; see `InterpreterEngine`.

    `kernels` are those of `INTERPRETERS`, or `ALL_KERNELS`.
    """
    module_name, extra, _ = INTERPRETERS[package]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise MissingExtra("This engine", package, extra) from error
    if package == TFLITE_RUNTIME and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        raise EngineError(
            f"{package} was built for NumPy 1, received NumPy {np.__version__}. "
            f"Install both with: {pip_install(extra)}"
        )
    try:
        with native_stderr_silenced():
            loaded = [load_delegate(module, library) for library in delegates]
            interpreter = module.Interpreter(
                model_path=str(path),
                experimental_delegates=loaded,
                num_threads=num_threads or available_cores(),
                experimental_op_resolver_type=module.OpResolverType[kernels],
            )
            interpreter.allocate_tensors()  # at the file's own shapes: weights are packed here
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{package} cannot open {path}: {one_line(error)}") from error
    return {
        name: InterpreterSignature(interpreter, package, name)
        for name in interpreter.get_signature_list()
    }


def load_delegate(module: Any, library: str) -> Any:
    """Load the shared library of a delegate.

    What is no delegate is found out here: the package's own class, half made, complains once more
    when it is collected.
    """
    try:
        if not hasattr(ctypes.CDLL(library), "tflite_plugin_create_delegate"):
            raise ValueError("it is no external delegate of TFLite")
        return module.load_delegate(library)
    except (OSError, ValueError) as error:
        raise EngineError(f"Cannot load the delegate {library}: {one_line(error)}.") from error


def one_line(error: Exception) -> str:
    """Return an error's message, which native code may spread over lines, as one."""
    return " ".join(str(error).split())
