"""The backend on LiteRT's `CompiledModel`.

`encode` writes where `decode` reads, and two sets of cache buffers alternate, so that nothing is
copied between calls.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket
from bart_export.runtime import litert
from bart_export.runtime.engine import FileEngine, threads_of
from bart_export.runtime.sizing import Buckets, Dynamic, Fitted

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Buffers = dict[str, Any]  # tensor name -> LiteRT's TensorBuffer
Caches = tuple[Buffers, Buffers]  # what the next step reads, and what it writes


def open_compiled_model(
    path: pathlib.Path,
    config: BartConfig,
    buckets: Sequence[Bucket] | None = None,
    *,
    num_threads: int | None = None,
    weight_cache: str = "",
) -> FileEngine:
    """Open a `.tflite` file on LiteRT.

    Args:
        path: the file.
        config: the model's architecture, as the artifact's manifest gives it.
        buckets: those of a static build; None for a dynamic one.
        num_threads: threads for the CPU kernels; None takes all cores this process may use.
        weight_cache: file for XNNPACK's packed weights, whole or absent; "" for none. Without one
            every signature of a static build has a copy of its own of the weights in memory.

    Raises:
        EngineError: if LiteRT cannot open the file.
    """
    model = litert.open_model(path, threads_of(num_threads), weight_cache)
    backend = CompiledModelBackend(model, config, resizes=buckets is None)
    sizing = Dynamic(config) if buckets is None else Buckets(config, buckets)
    return FileEngine(config, backend, sizing)


def resized(
    config: BartConfig,
    signature: contract.Signature,
    current: Mapping[str, int],
    wanted: Mapping[str, int],
) -> dict[str, tuple[int, ...]]:
    """Return the new shapes of a signature's inputs that depend on an axis whose size changes."""
    changed = {axis for axis, size in wanted.items() if current.get(axis) != size}
    sizes = {**contract.sizes(config), **wanted}
    return {
        tensor.name: tuple(sizes[axis] for axis in tensor.axes)
        for tensor in signature.inputs
        if changed & set(tensor.axes)
    }


class BufferedSignature:
    """A signature of a compiled model, the sizes of its dynamic axes, and buffers that fit them.

    Cross tensors that the signature puts out go to another one's inputs: they have no buffers here.

    Args:
        model: LiteRT's `CompiledModel`.
        config: the model's architecture.
        name: what the signature is called in the file.
        signature: its tensors, by the contract.
        resizes: whether the file's tensors take other sizes; a static build's have theirs.
    """

    def __init__(
        self,
        model: Any,
        config: BartConfig,
        name: str,
        signature: contract.Signature,
        *,
        resizes: bool = True,
    ) -> None:
        self.model = model
        self.config = config
        self.name = name
        self.signature = signature
        self.resizes = resizes
        self.cache_names = [tensor.name for tensor in contract.cache_tensors(config)]
        self.cross_names = [tensor.name for tensor in contract.cross_tensors(config)]
        self.sizes: Mapping[str, int] = {}
        self.inputs: Buffers = {}
        self.outputs: Buffers = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that an input has now."""
        sizes = {**contract.sizes(self.config), **self.sizes}
        axes = next(tensor.axes for tensor in self.signature.inputs if tensor.name == name)
        return tuple(sizes[axis] for axis in axes)

    def read(self, name: str) -> FloatArray:
        """Return what an input holds, float32 in the shape that it has now."""
        shape = self.shape(name)
        flat: FloatArray = self.inputs[name].read(int(np.prod(shape)), np.float32)
        return flat.reshape(shape)

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Take other sizes, and make new buffers for the tensors that depend on what changes."""
        with litert.failures(f"cannot resize {self.name}"):
            if self.resizes:
                shapes = resized(self.config, self.signature, self.sizes, sizes)
                for name, shape in shapes.items():
                    self.model.resize_input_tensor_by_name(
                        self.name, name, list(shape), strict=False
                    )
            changed = {axis for axis, size in sizes.items() if self.sizes.get(axis) != size}
            for tensor in self.signature.inputs:
                if tensor.name not in self.inputs or changed & set(tensor.axes):
                    buffer = self.model.create_input_buffer_by_name(self.name, tensor.name)
                    self.inputs[tensor.name] = buffer
            for tensor in self.signature.outputs:
                if tensor.name in self.cross_names:
                    continue
                if tensor.name not in self.outputs or changed & set(tensor.axes):
                    buffer = self.model.create_output_buffer_by_name(self.name, tensor.name)
                    self.outputs[tensor.name] = buffer
        self.sizes = sizes

    def caches(self) -> Caches:
        """Return the two sets of buffers that steps read and write in turns."""
        return (
            {name: self.inputs[name] for name in self.cache_names},
            {name: self.outputs[name] for name in self.cache_names},
        )

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run the signature on its buffers, with some others in the place of its own."""
        with litert.failures(f"failed to run {self.name}"):
            self.model.run_by_name(self.name, self.inputs | inputs, self.outputs | outputs)


class CompiledModelBackend:
    """An `engine.Backend` over `ai_edge_litert.compiled_model.CompiledModel`.

    Args:
        model: the compiled model.
        config: the model's architecture.
        resizes: whether the file is a dynamic build.
    """

    def __init__(self, model: Any, config: BartConfig, *, resizes: bool) -> None:
        self.model = model
        self.config = config
        self.resizes = resizes
        self.signatures: dict[str, BufferedSignature] = {}  # with buffers from their first use on

    def signature(self, bucket: Bucket) -> BufferedSignature:
        """Return a signature with buffers of the sizes that it is to have."""
        if bucket.name not in self.signatures:
            self.signatures[bucket.name] = BufferedSignature(
                self.model, self.config, bucket.name, bucket.signature, resizes=self.resizes
            )
        signature = self.signatures[bucket.name]
        if signature.sizes != bucket.sizes:
            signature.resize(bucket.sizes)
        return signature

    def begin(self, fitted: Fitted) -> Caches:
        """Encode a source where `decode` reads; see `Backend.begin`."""
        return self.encode(fitted, {"encoder_token_ids": fitted.token_ids})

    def encode(self, fitted: Fitted, given: Mapping[str, npt.NDArray[Any]]) -> Caches:
        """Run what puts out cross tensors on some inputs beside the mask; return empty caches."""
        encode, decode = self.signature(fitted.encode), self.signature(fitted.decode)
        for name, array in given.items():
            encode.inputs[name].write(array)
        for signature in (encode, decode):
            if "encoder_padding_mask" in signature.inputs:
                signature.inputs["encoder_padding_mask"].write(fitted.padding_mask)
        encode.run({}, {name: decode.inputs[name] for name in encode.cross_names})
        caches = decode.caches()
        empty = np.zeros(decode.shape(decode.cache_names[0]), np.float32)
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
        """Decode one token of every beam; see `Backend.decode`."""
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
        """Return the caches with more room, and as much room to write."""
        decode = self.signatures[fitted.decode.name]
        shape = decode.shape(decode.cache_names[0])
        old = {
            name: buffer.read(int(np.prod(shape)), np.float32).reshape(shape)
            for name, buffer in caches[0].items()
        }
        decode = self.signature(fitted.decode)
        room = ((0, 0), (0, 0), (0, decode.shape(decode.cache_names[0])[2] - shape[2]), (0, 0))
        caches = decode.caches()
        for name, cache in old.items():
            caches[0][name].write(np.pad(cache, room))
        return caches

    def cross(self, bucket: Bucket) -> dict[str, FloatArray]:
        """Return what a signature reads of the source; see `Backend.cross`."""
        decode = self.signatures[bucket.name]
        return {name: decode.read(name) for name in decode.cross_names}
