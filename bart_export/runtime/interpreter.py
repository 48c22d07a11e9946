"""The backend on an `Interpreter`: tflite-runtime, and LiteRT with delegates.

An interpreter keeps its tensors to itself: nothing is shared between `encode` and `decode`, and
what `decode` writes is not what it reads. The caches therefore stay in `decode`'s inputs, and after
a step only the positions that it changed are brought over from its outputs: one for beams that stay
where they are, all of them for beams that change places.

In a static build nothing is ever resized, so that XNNPACK can be used where a dynamic build must do
without: with one thread, tflite-runtime 2.14 took 9.0 ms for a float32 step of bart_mini_en in the
dynamic build, 3.3 ms in the static one.
"""

import ctypes
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket
from bart_export.errors import EngineError, MissingExtra, pip_install
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime.compiled_model import resized
from bart_export.runtime.engine import FileEngine, threads_of
from bart_export.runtime.sizing import Buckets, Dynamic, Fitted

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

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


def open_interpreter(
    path: pathlib.Path,
    config: BartConfig,
    buckets: Sequence[Bucket] | None = None,
    *,
    num_threads: int | None = None,
    interpreter: str = TFLITE_RUNTIME,
    delegates: Sequence[str] = (),
) -> FileEngine:
    """Open a `.tflite` file on the `Interpreter` of tflite-runtime or ai-edge-litert.

    Args:
        path: the file.
        config: the model's architecture, as the artifact's manifest gives it.
        buckets: those of a static build; None for a dynamic one.
        num_threads: threads for the CPU kernels; None takes all cores this process may use.
        interpreter: the package to take `Interpreter` from, a key of `INTERPRETERS`.
        delegates: shared libraries of delegates, `libedgetpu.so.1` for one, first come first
            served.

    Raises:
        EngineError: if the package cannot be used, a delegate not be loaded, or the file not be
            opened.
        MissingExtra: if the package is not installed.
    """
    kernels = INTERPRETERS[interpreter][2] if buckets is None else ALL_KERNELS
    signatures = open_signatures(interpreter, path, num_threads, delegates, kernels)
    backend = InterpreterBackend(signatures, config, resizes=buckets is None)
    sizing = Dynamic(config) if buckets is None else Buckets(config, buckets)
    return FileEngine(config, backend, sizing)


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


class InterpreterBackend:
    """An `engine.Backend` over the signatures of an open interpreter; the caches are in place.

    Args:
        signatures: by their names in the file.
        config: the model's architecture.
        resizes: whether the file is a dynamic build.
    """

    def __init__(
        self, signatures: Mapping[str, InterpreterSignature], config: BartConfig, *, resizes: bool
    ) -> None:
        self.signatures = signatures
        self.config = config
        self.resizes = resizes
        self.sizes: dict[str, Mapping[str, int]] = {}  # of the signatures that were used
        self.cache_names = tuple(tensor.name for tensor in contract.cache_tensors(config))
        self.cross_names = tuple(tensor.name for tensor in contract.cross_tensors(config))

    def signature(self, bucket: Bucket) -> InterpreterSignature:
        """Return a signature of the sizes that it is to have; what it held is lost if they change.

        A signature's tensors take room in memory from its first use on.
        """
        signature, sizes = self.signatures[bucket.name], self.sizes.get(bucket.name)
        if sizes != bucket.sizes:
            shapes = resized(self.config, bucket.signature, sizes or {}, bucket.sizes)
            signature.resize(shapes if self.resizes else {})
            self.sizes[bucket.name] = bucket.sizes
        return signature

    def begin(self, fitted: Fitted) -> None:
        """Encode a source; see `Backend.begin`."""
        encode, decode = self.signature(fitted.encode), self.signature(fitted.decode)
        encode.input("encoder_token_ids")[:] = fitted.token_ids
        encode.input("encoder_padding_mask")[:] = fitted.padding_mask
        encode.invoke()
        self.hand_over_source(fitted)
        for name in self.cache_names:
            decode.input(name)[:] = 0

    def hand_over_source(self, fitted: Fitted) -> None:
        """Give the decoder the source: its mask, and what the encoder wrote."""
        encode, decode = self.signature(fitted.encode), self.signature(fitted.decode)
        decode.input("encoder_padding_mask")[:] = fitted.padding_mask
        for name in self.cross_names:
            decode.input(name)[:] = encode.output(name)

    def decode(
        self,
        bucket: Bucket,
        caches: None,
        position: int,
        token_ids: IntArray,
        beam_index: IntArray,
    ) -> tuple[FloatArray, None]:
        """Decode one token of every beam; see `Backend.decode`."""
        decode = self.signature(bucket)
        decode.input("decoder_token_ids")[:] = token_ids[:, None]
        decode.input("position")[:] = position
        if "beam_index" in decode.inputs:
            decode.input("beam_index")[:] = beam_index
        decode.invoke()
        in_place = np.array_equal(beam_index, np.arange(len(beam_index)))
        changed = slice(position if in_place else 0, position + 1)
        for name in self.cache_names:
            decode.input(name)[:, :, changed] = decode.output(name)[:, :, changed]
        logits: FloatArray = decode.output("logits").copy()
        return logits, None

    def grow(self, fitted: Fitted, caches: None) -> None:
        """Make room for more positions; what the caches hold stays."""
        decode = self.signatures[fitted.decode.name]
        old = {name: decode.input(name).copy() for name in self.cache_names}
        decode = self.signature(fitted.decode)
        self.hand_over_source(fitted)
        for name, cache in old.items():
            filled = cache.shape[2]
            decode.input(name)[:, :, :filled] = cache
            decode.input(name)[:, :, filled:] = 0

    def cross(self, bucket: Bucket) -> dict[str, FloatArray]:
        """Return what a signature reads of the source; see `Backend.cross`."""
        decode = self.signature(bucket)
        return {name: decode.input(name).copy() for name in self.cross_names}


def open_signatures(
    package: str,
    path: pathlib.Path,
    num_threads: int | None,
    delegates: Sequence[str],
    kernels: str,
) -> dict[str, InterpreterSignature]:
    """Open a `.tflite` file and return its signatures by name; see `open_interpreter`.

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
                num_threads=threads_of(num_threads),
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
