"""The backend for an `Interpreter` of tflite-runtime or LiteRT.

An interpreter shares no buffers, neither between `encode` and `decode` nor between inputs and
outputs. The caches therefore stay in the inputs of `decode`, and after a step only the changed
positions are copied from its outputs: the last one, or all of them if beams were reordered.

A static build is never resized, so it can use XNNPACK: with tflite-runtime 2.14 and one thread, a
float32 step of bart_mini_en took 9.0 ms in the dynamic build and 3.3 ms in the static build.
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
# Package -> the module with its `Interpreter`, the extra that installs it, and the kernels for a
# dynamic build: after a resize, XNNPACK in tflite-runtime 2.14 still uses the old sizes, computes
# wrong results without an error, or writes out of bounds.
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
    """Open a `.tflite` file on a package's `Interpreter`; `interpreter` is a key of `INTERPRETERS`.

    The other arguments are as for `open_compiled_model`. Raises EngineError or MissingExtra.
    """
    name, extra, kernels = INTERPRETERS[interpreter]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra("This engine", interpreter, extra) from error
    if interpreter == TFLITE_RUNTIME and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        raise EngineError(
            f"{interpreter} was built for NumPy 1, but NumPy {np.__version__} is installed. "
            f"Install both with: {pip_install(extra)}"
        )
    resolver = module.OpResolverType[kernels if buckets is None else ALL_KERNELS]
    with native_stderr_silenced(), failures(f"{interpreter} cannot open {path}"):
        opened = module.Interpreter(
            model_path=str(path),
            num_threads=thread_count(num_threads),
            experimental_op_resolver_type=resolver,
        )
        opened.allocate_tensors()  # with the file's shapes; packs the weights
    signatures = {
        name: InterpreterSignature(opened, interpreter, name)
        for name in opened.get_signature_list()
    }
    backend = InterpreterBackend(signatures, config, resizes=buckets is None)
    return FileEngine(config, backend, sizing(config, buckets))


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn an interpreter's errors in a block into an EngineError of one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{what}: {' '.join(str(error).split())}") from error


class InterpreterSignature:
    """A signature of an open file, with access to its tensors' memory.

    The public signature runner resizes, allocates and copies every tensor at each call. The private
    wrapper of the interpreter, the same in both packages, does not copy.
    """

    def __init__(self, interpreter: Native, package: str, name: str) -> None:
        self.interpreter, self.wrapper = interpreter, interpreter._interpreter
        self.package, self.name = package, name
        self.sizes: Mapping[str, int] = {}
        self.subgraph = self.wrapper.GetSubgraphIndexFromSignature(name)
        tensors = self.wrapper.GetSignatureDefs()[name]
        self.inputs, self.outputs = tensors["inputs"], tensors["outputs"]  # name -> index

    def input(self, name: str) -> Native:
        """Return an input's memory as an array, valid until the next `resize` or `invoke`."""
        return self.wrapper.tensor(self.wrapper, self.inputs[name], self.subgraph)

    def output(self, name: str) -> Native:
        """Return an output's memory as an array, valid until the next `resize` or `invoke`."""
        return self.wrapper.tensor(self.wrapper, self.outputs[name], self.subgraph)

    def resize(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Change the shapes of inputs; the content of all inputs is lost."""
        with failures(f"{self.package} cannot resize the signature {self.name} to {shapes}"):
            for name, shape in shapes.items():
                size = np.array(shape, np.int32)
                self.wrapper.ResizeInputTensor(self.inputs[name], size, False, self.subgraph)
            self.wrapper.AllocateTensors(self.subgraph)

    def invoke(self) -> None:
        """Run the signature."""
        with failures(f"{self.package} failed to run the signature {self.name}"):
            self.wrapper.Invoke(self.subgraph)


class InterpreterBackend:
    """An `engine.Backend` for an interpreter, whose caches stay in the inputs of `decode`."""

    def __init__(
        self, signatures: Mapping[str, InterpreterSignature], config: BartConfig, *, resizes: bool
    ) -> None:
        self.signatures = signatures
        self.fixed = contract.sizes(config)
        self.resizes = resizes
        self.cache_names = [tensor.name for tensor in contract.cache_tensors(config)]
        self.cross_names = [tensor.name for tensor in contract.cross_tensors(config)]

    def signature(self, bucket: Bucket) -> InterpreterSignature:
        """Return a bucket's signature; if its sizes change, the content of its tensors is lost."""
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
        """Copy the mask and cross tensors to the decoder, and return the decoder."""
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
        """Decode one token per beam; see `Backend.decode`."""
        decode = self.signature(bucket)
        decode.input("decoder_token_ids")[:] = token_ids[:, None]
        decode.input("position")[:] = position
        if "beam_index" in decode.inputs:
            decode.input("beam_index")[:] = beam_index
        decode.invoke()
        in_order = np.array_equal(beam_index, np.arange(len(beam_index)))
        changed = slice(position if in_order else 0, position + 1)
        for name in self.cache_names:
            decode.input(name)[:, :, changed] = decode.output(name)[:, :, changed]
        logits: FloatArray = decode.output("logits").copy()
        return logits, None

    def grow(self, fitted: Fitted, caches: None) -> None:
        """Enlarge the caches; see `Backend.grow`."""
        decode = self.signatures[fitted.decode.name]
        old = {name: decode.input(name).copy() for name in self.cache_names}
        decode = self.hand_over_source(fitted)
        for name, cache in old.items():
            filled = cache.shape[2]
            decode.input(name)[:, :, :filled] = cache
            decode.input(name)[:, :, filled:] = 0

    def cross(self, bucket: Bucket) -> dict[str, FloatArray]:
        """Return the cross tensors; see `Backend.cross`."""
        decode = self.signature(bucket)
        return {name: decode.input(name).copy() for name in self.cross_names}
