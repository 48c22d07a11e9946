"""The backend for LiteRT's `CompiledModel`, with LiteRT's logging silenced.

`encode` writes into the inputs of `decode`, and two sets of cache buffers alternate, so that calls
copy no data. LiteRT logs from C++ to standard error when a model is opened, when the first buffer
is written, and when the process ends.
"""

import atexit
import contextlib
import dataclasses
import importlib.metadata
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket, Signature, Tensor
from bart_export.errors import EngineError, MissingExtra
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT
from bart_export.runtime.engine import (
    FileEngine,
    Fitted,
    FloatArray,
    IntArray,
    sizing,
    thread_count,
)

Native = Any  # an object from a library without type hints
Buffers = dict[str, Native]  # tensor name -> LiteRT's TensorBuffer
Caches = tuple[Buffers, Buffers]  # the next step's inputs and outputs

# One for all models, created with the first: creating and deleting one takes time and is logged.
ENVIRONMENTS: list[Native] = []


def litert_version() -> str:
    """Return LiteRT's name and version."""
    return f"{LITERT} {importlib.metadata.version(LITERT)}"


def open_compiled_model(
    path: pathlib.Path,
    config: BartConfig,
    buckets: Sequence[Bucket] | None = None,
    *,
    num_threads: int | None = None,
    weight_cache: str = "",
) -> FileEngine:
    """Open a `.tflite` file on LiteRT, or raise EngineError.

    `buckets` belong to a static build; None means a dynamic build. `num_threads` is None for
    all available cores. `weight_cache` is a file for XNNPACK's packed weights, complete or absent,
    or "" for no cache: every signature of a static build then has its own copy of the weights.
    """
    model = open_model(path, num_threads, weight_cache)
    backend = CompiledModelBackend(model=model, config=config, resizes=buckets is None)
    return FileEngine(config, backend, sizing(config, buckets))


def open_model(path: pathlib.Path, num_threads: int | None, weight_cache: str) -> Native:
    """Return a `CompiledModel` on the CPU; see `open_compiled_model`."""
    try:
        with native_stderr_silenced():
            from ai_edge_litert import __file__ as litert_file
            from ai_edge_litert.compiled_model import (
                CompiledModel,
                CpuOptions,
                HardwareAccelerator,
                Options,
            )
            from ai_edge_litert.environment import Environment
    except ImportError:
        raise MissingExtra("Running a .tflite file", LITERT, "") from None

    threads = thread_count(num_threads)
    cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=weight_cache)
    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
    with native_stderr_silenced(), failures(f"cannot open {path}"):
        if not ENVIRONMENTS:
            ENVIRONMENTS.append(Environment.create(runtime_path=os.path.dirname(litert_file)))
        model = CompiledModel.from_file(str(path), environment=ENVIRONMENTS[0], options=options)
        write_first_buffer(model)
    return model


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn LiteRT's errors in a block into an EngineError: "LiteRT cannot …"."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].lstrip("└ ").removeprefix("ERROR: ")
        raise EngineError(f"LiteRT {what}: {reason}.") from error


def write_first_buffer(model: Native) -> None:
    """Write to a buffer, so that LiteRT initializes, and logs, now."""
    signature, tensors = next(iter(model.get_signature_list().items()))
    name = tensors["inputs"][0]
    details = model.get_input_tensor_details(signature)[name]
    shape = [max(1, size) for size in details["shape"]]
    model.resize_input_tensor_by_name(signature, name, shape, strict=False)
    buffer = model.create_input_buffer_by_name(signature, name)
    buffer.write(np.zeros(shape, details["dtype"]))


@atexit.register
def silence_the_end() -> None:
    """Silence LiteRT's logging while its libraries are unloaded, after Python has finished."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def resized(
    tensors: Iterable[Tensor], old: Mapping[str, int], new: Mapping[str, int]
) -> list[Tensor]:
    """Return the tensors with an axis whose size changes."""
    changed = {axis for axis, size in new.items() if old.get(axis) != size}
    return [tensor for tensor in tensors if changed & set(tensor.axes)]


class BufferedSignature:
    """A signature of a `CompiledModel`, the sizes of its dynamic axes, and its buffers.

    Cross tensors are written into another signature's inputs, and have no output buffers.
    `resizes` is False for a static build.
    """

    def __init__(
        self,
        model: Native,
        config: BartConfig,
        name: str,
        signature: Signature,
        *,
        resizes: bool = True,
    ) -> None:
        self.model = model
        self.name = name
        self.signature = signature
        self.resizes = resizes
        self.cache_names = [tensor.name for tensor in contract.cache_tensors(config)]
        self.cross_names = [tensor.name for tensor in contract.cross_tensors(config)]
        self.fixed = contract.sizes(config)
        self.sizes: dict[str, int] = {}
        self.inputs: Buffers = {}
        self.outputs: Buffers = {}

    def shape(self, tensor: Tensor) -> list[int]:
        """Return a tensor's current shape."""
        return [(self.fixed | self.sizes)[axis] for axis in tensor.axes]

    def read(self, names: Iterable[str]) -> dict[str, FloatArray]:
        """Return inputs by name, float32 in their current shapes."""
        shapes = {tensor.name: self.shape(tensor) for tensor in self.signature.inputs}
        return {
            name: self.inputs[name].read(math.prod(shapes[name]), np.float32).reshape(shapes[name])
            for name in names
        }

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Change sizes, and create new buffers for the tensors that depend on them."""
        model, before, self.sizes = self.model, self.sizes, dict(sizes)
        try:
            with failures(f"cannot resize {self.name}"):
                for tensor in resized(self.signature.inputs, before, sizes):
                    self.inputs.pop(tensor.name, None)
                    if self.resizes:
                        shape = self.shape(tensor)
                        model.resize_input_tensor_by_name(
                            self.name, tensor.name, shape, strict=False
                        )
                for tensor in resized(self.signature.outputs, before, sizes):
                    self.outputs.pop(tensor.name, None)
                for tensor in self.signature.inputs:
                    if tensor.name not in self.inputs:
                        buffer = model.create_input_buffer_by_name(self.name, tensor.name)
                        self.inputs[tensor.name] = buffer
                for tensor in self.signature.outputs:
                    if tensor.name not in self.outputs and tensor.name not in self.cross_names:
                        buffer = model.create_output_buffer_by_name(self.name, tensor.name)
                        self.outputs[tensor.name] = buffer
        except EngineError:
            self.sizes = {}
            raise

    def caches(self) -> Caches:
        """Return the two sets of cache buffers, which steps read and write alternately."""
        return (
            {name: self.inputs[name] for name in self.cache_names},
            {name: self.outputs[name] for name in self.cache_names},
        )

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run the signature, with some of its buffers replaced."""
        with failures(f"failed to run {self.name}"):
            self.model.run_by_name(self.name, self.inputs | inputs, self.outputs | outputs)


@dataclasses.dataclass(eq=False, kw_only=True)
class CompiledModelBackend:
    """An `engine.Backend` for LiteRT's `CompiledModel`.

    `resizes` is True for a dynamic build. `encoder` maps token ids (one, source) to hidden states
    (source, hidden), for a file that only computes the cross tensors. `signatures` are created when
    first used.
    """

    model: Native
    config: BartConfig
    resizes: bool
    encoder: Callable[[IntArray], FloatArray] | None = None
    signatures: dict[str, BufferedSignature] = dataclasses.field(default_factory=dict)

    def signature(self, bucket: Bucket) -> BufferedSignature:
        """Return a bucket's signature with buffers of its sizes."""
        if bucket.name not in self.signatures:
            self.signatures[bucket.name] = BufferedSignature(
                self.model, self.config, bucket.name, bucket.signature, resizes=self.resizes
            )
        signature = self.signatures[bucket.name]
        if signature.sizes != bucket.sizes:
            signature.resize(bucket.sizes)
        return signature

    def begin(self, fitted: Fitted) -> Caches:
        """Encode a source into the inputs of `decode`; see `Backend.begin`."""
        encode, decode = self.signature(fitted.encode), self.signature(fitted.decode)
        source: dict[str, IntArray | FloatArray] = {"encoder_token_ids": fitted.token_ids}
        if self.encoder is not None:
            source = {"hidden": self.encoder(fitted.token_ids)}
        for name, array in source.items():
            encode.inputs[name].write(array)
        for signature in (encode, decode):
            if "encoder_padding_mask" in signature.inputs:
                signature.inputs["encoder_padding_mask"].write(fitted.padding_mask)
        encode.run({}, {name: decode.inputs[name] for name in encode.cross_names})
        caches = decode.caches()
        empty = np.zeros(decode.shape(contract.cache_tensors(self.config)[0]), np.float32)
        for buffer in caches[0].values():
            buffer.write(empty)
        return caches

    def decode(
        self,
        bucket: Bucket,
        caches: Caches,
        position: int,
        token_ids: IntArray,
        beam_index: IntArray,
    ) -> tuple[FloatArray, Caches]:
        """Decode one token per beam; see `Backend.decode`."""
        decode, (read, written) = self.signature(bucket), caches
        decode.inputs["decoder_token_ids"].write(token_ids[:, None])
        decode.inputs["position"].write(np.array([position], np.int32))
        if "beam_index" in decode.inputs:
            decode.inputs["beam_index"].write(beam_index)
        decode.run(read, written)
        shape = len(token_ids), self.config.vocabulary_size
        logits: FloatArray = decode.outputs["logits"].read(shape[0] * shape[1], np.float32)
        return logits.reshape(shape), (written, read)

    def grow(self, fitted: Fitted, caches: Caches) -> Caches:
        """Return larger caches; see `Backend.grow`."""
        decode = self.signatures[fitted.decode.name]
        decode.inputs |= caches[0]
        old = decode.read(decode.cache_names)
        capacity = fitted.decode.sizes[contract.CAPACITY]
        caches = self.signature(fitted.decode).caches()
        for name, cache in old.items():
            room = ((0, 0), (0, 0), (0, capacity - cache.shape[2]), (0, 0))
            caches[0][name].write(np.pad(cache, room))
        return caches

    def cross(self, bucket: Bucket) -> dict[str, FloatArray]:
        """Return the cross tensors; see `Backend.cross`."""
        decode = self.signatures[bucket.name]
        return decode.read(decode.cross_names)
