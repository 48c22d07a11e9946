"""The backend on an `Interpreter`, of tflite-runtime or of LiteRT.

An interpreter keeps its tensors to itself: nothing is shared between `encode` and `decode`, and
what `decode` writes is not what it reads. The caches therefore stay in `decode`'s inputs, and after
a step only the positions that it changed are brought over from its outputs: one for beams that stay
where they are, all of them for beams that change places.

In a static build nothing is ever resized, so that XNNPACK can be used where a dynamic build must do
without: with one thread, tflite-runtime 2.14 took 9.0 ms for a float32 step of bart_mini_en in the
dynamic build, 3.3 ms in the static one.
"""

import contextlib
import importlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket
from bart_export.errors import EngineError, MissingExtra, pip_install
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime.compiled_model import Native, resized
from bart_export.runtime.engine import (
    FileEngine,
    Fitted,
    FloatArray,
    IntArray,
    sizing,
    thread_count,
)

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
) -> FileEngine:
    """Open a `.tflite` file on the `Interpreter` of a package, a key of `INTERPRETERS`.

    Other arguments are those of `open_compiled_model`.

    Raises:
        EngineError: if the package cannot be used, or the file not be opened.
        MissingExtra: if the package is not installed.
    """
    name, extra, kernels = INTERPRETERS[interpreter]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra("This engine", interpreter, extra) from error
    if interpreter == TFLITE_RUNTIME and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        raise EngineError(
            f"{interpreter} was built for NumPy 1, received NumPy {np.__version__}. "
            f"Install both with: {pip_install(extra)}"
        )
    resolver = module.OpResolverType[kernels if buckets is None else ALL_KERNELS]
    with native_stderr_silenced(), failures(f"{interpreter} cannot open {path}"):
        opened = module.Interpreter(
            model_path=str(path),
            num_threads=thread_count(num_threads),
            experimental_op_resolver_type=resolver,
        )
        opened.allocate_tensors()  # at the file's own shapes: weights are packed here
    signatures = {
        name: InterpreterSignature(opened, interpreter, name)
        for name in opened.get_signature_list()
    }
    backend = InterpreterBackend(signatures, config, resizes=buckets is None)
    return FileEngine(config, backend, sizing(config, buckets))


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """Raise what an interpreter says in a block as an EngineError of one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{what}: {' '.join(str(error).split())}") from error


class InterpreterSignature:
    """One signature of an open file: its tensors in place, by name.

    The public signature runner resizes, allocates, and copies every tensor in and out at each call.
    The interpreter's private wrapper, the same in both packages, gives the memory itself.
    """

    def __init__(self, interpreter: Native, package: str, name: str) -> None:
        self.interpreter, self.wrapper = interpreter, interpreter._interpreter
        self.package, self.name = package, name
        self.sizes: Mapping[str, int] = {}
        self.subgraph = self.wrapper.GetSubgraphIndexFromSignature(name)
        tensors = self.wrapper.GetSignatureDefs()[name]
        self.inputs, self.outputs = tensors["inputs"], tensors["outputs"]  # name -> index

    def input(self, name: str) -> Native:
        """Return an input's memory as an array, good until the next `resize` or `invoke`."""
        return self.wrapper.tensor(self.wrapper, self.inputs[name], self.subgraph)

    def output(self, name: str) -> Native:
        """Return an output's memory as an array, good until the next `resize` or `invoke`."""
        return self.wrapper.tensor(self.wrapper, self.outputs[name], self.subgraph)

    def resize(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Give some inputs new shapes; what any input held is lost."""
        with failures(f"{self.package} cannot resize the signature {self.name} to {shapes}"):
            for name, shape in shapes.items():
                size = np.array(shape, np.int32)
                self.wrapper.ResizeInputTensor(self.inputs[name], size, False, self.subgraph)
            self.wrapper.AllocateTensors(self.subgraph)

    def invoke(self) -> None:
        """Run the signature on what its inputs hold."""
        with failures(f"{self.package} failed to run the signature {self.name}"):
            self.wrapper.Invoke(self.subgraph)


class InterpreterBackend:
    """An `engine.Backend` over the signatures of an open interpreter; the caches are in place."""

    def __init__(
        self, signatures: Mapping[str, InterpreterSignature], config: BartConfig, *, resizes: bool
    ) -> None:
        self.signatures = signatures
        self.fixed = contract.sizes(config)
        self.resizes = resizes
        self.cache_names = [tensor.name for tensor in contract.cache_tensors(config)]
        self.cross_names = [tensor.name for tensor in contract.cross_tensors(config)]

    def signature(self, bucket: Bucket) -> InterpreterSignature:
        """Return a signature of the right sizes; what it held is lost if they change."""
        signature = self.signatures[bucket.name]
        if signature.sizes != bucket.sizes:
            sizes = {**self.fixed, **bucket.sizes}
            changed = resized(bucket.signature.inputs, signature.sizes, bucket.sizes)
            shapes = {tensor.name: [sizes[axis] for axis in tensor.axes] for tensor in changed}
            signature.resize(shapes if self.resizes else {})
            signature.sizes = bucket.sizes
        return signature

    def begin(self, fitted: Fitted) -> None:
        """Encode a source; see `Backend.begin`."""
        encode = self.signature(fitted.encode)
        encode.input("encoder_token_ids")[:] = fitted.token_ids
        encode.input("encoder_padding_mask")[:] = fitted.padding_mask
        encode.invoke()
        decode = self.hand_over_source(fitted)
        for name in self.cache_names:
            decode.input(name)[:] = 0

    def hand_over_source(self, fitted: Fitted) -> InterpreterSignature:
        """Give the decoder the source: its mask, and what the encoder wrote; return the decoder."""
        encode, decode = self.signature(fitted.encode), self.signature(fitted.decode)
        decode.input("encoder_padding_mask")[:] = fitted.padding_mask
        for name in self.cross_names:
            decode.input(name)[:] = encode.output(name)
        return decode

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
        decode = self.hand_over_source(fitted)
        for name, cache in old.items():
            filled = cache.shape[2]
            decode.input(name)[:, :, :filled] = cache
            decode.input(name)[:, :, filled:] = 0

    def cross(self, bucket: Bucket) -> dict[str, FloatArray]:
        """Return what a signature reads of the source; see `Backend.cross`."""
        decode = self.signature(bucket)
        return {name: decode.input(name).copy() for name in self.cross_names}
