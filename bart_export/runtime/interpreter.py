"""The backend for an `Interpreter` of tflite-runtime or LiteRT.

An interpreter shares no buffers between `encode` and `decode`, so that all inputs are copied.

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
from bart_export.runtime.batch import Rows
from bart_export.runtime.buffered_signature import Native, resized
from bart_export.runtime.caches import copy_rows, move_slots, write_draft, write_entries
from bart_export.runtime.engine import FileEngine, thread_count
from bart_export.runtime.sizing import FloatArray, IntArray, sizing_of

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
    sizing = sizing_of(config, buckets)
    resolver = module.OpResolverType[kernels if sizing.resizes else ALL_KERNELS]
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
    backend = InterpreterBackend(signatures, config, resizes=sizing.resizes)
    return FileEngine(config, backend, sizing)


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
    """A `batch.Backend` for an interpreter, whose caches stay in the inputs of `decode`."""

    def __init__(
        self, signatures: Mapping[str, InterpreterSignature], config: BartConfig, *, resizes: bool
    ) -> None:
        self.signatures = signatures
        self.fixed = contract.sizes(config)
        self.resizes = resizes
        self.cache_names = [tensor.name for tensor in contract.cache_tensors(config)]
        self.cross_names = [tensor.name for tensor in contract.cross_tensors(config)]
        self.decoder: InterpreterSignature | None = None
        self.beams = 1

    def signature(self, bucket: Bucket) -> InterpreterSignature:
        """Return a bucket's signature; if it is resized, its content is lost."""
        signature = self.signatures[bucket.name]
        if signature.sizes != bucket.sizes:
            sizes = {**self.fixed, **bucket.sizes}
            changed = resized(bucket.signature.inputs, signature.sizes, bucket.sizes)
            shapes = {tensor.name: [sizes[axis] for axis in tensor.axes] for tensor in changed}
            signature.sizes = {}  # unknown if it fails
            signature.resize(shapes if self.resizes else {})
            signature.sizes = bucket.sizes
        return signature

    def resize(self, bucket: Bucket, kept: Sequence[int]) -> None:
        """Resize the decoder; see `Backend.resize`."""
        rows = dict.fromkeys(("encoder_padding_mask", *self.cross_names), 1)
        rows |= dict.fromkeys(self.cache_names, bucket.sizes[contract.BEAMS])
        old = self.decoder
        earlier = {name: old.input(name).copy() for name in rows} if old and kept else {}
        self.decoder, self.beams = self.signature(bucket), bucket.sizes[contract.BEAMS]
        for name, beams in rows.items():
            array = self.decoder.input(name)
            array[:] = 0  # new memory may contain NaN, which masks do not hide
            if name in earlier:
                move_slots(earlier[name], array, kept, beams)

    def admit(self, encode: Bucket, token_ids: IntArray, mask: IntArray, slot: int) -> None:
        """Encode a source into a slot; see `Backend.admit`."""
        encoder, decoder = self.signature(encode), self.decoder
        assert decoder is not None
        encoder.input("encoder_token_ids")[:] = token_ids
        encoder.input("encoder_padding_mask")[:] = mask
        encoder.invoke()
        for name in self.cross_names:
            move_slots(encoder.output(name), decoder.input(name)[slot : slot + 1], [0], 1)
        row = decoder.input("encoder_padding_mask")[slot]
        row[:] = 0
        row[: mask.shape[1]] = mask
        for name in self.cache_names:
            decoder.input(name)[slot * self.beams : (slot + 1) * self.beams] = 0

    def decode(self, rows: Rows) -> FloatArray:
        """Decode one token per row; see `Backend.decode`."""
        decoder = self.decoder
        assert decoder is not None
        for name, array in rows.inputs.items():
            decoder.input(name)[:] = array
        copy_rows((decoder.input(name) for name in self.cache_names), rows.copied)
        decoder.invoke()
        caches = [(decoder.input(name), decoder.output(name)) for name in self.cache_names]
        write_entries(caches, rows.used, rows.position)
        logits: FloatArray = decoder.output("logits")
        return logits

    def decode_draft(self, bucket: Bucket, token_ids: IntArray, position: int) -> FloatArray:
        """Decode several tokens of the only row; see `Backend.decode_draft`."""
        draft, decoder = self.signature(bucket), self.decoder
        assert decoder is not None
        kept = ("encoder_padding_mask", *self.cross_names, *self.cache_names)
        for name in kept:
            draft.input(name)[:] = decoder.input(name)
        draft.input("decoder_token_ids")[:] = token_ids
        draft.input("position")[:] = np.arange(position, position + len(token_ids))
        draft.invoke()
        for name in self.cache_names:
            write_draft(decoder.input(name), draft.output(name), position)
        logits: FloatArray = draft.output("logits").copy()
        return logits

    def cross(self, slot: int) -> dict[str, FloatArray]:
        """Return a slot's cross tensors; see `Backend.cross`."""
        decoder = self.decoder
        assert decoder is not None
        return {name: decoder.input(name)[slot : slot + 1].copy() for name in self.cross_names}
