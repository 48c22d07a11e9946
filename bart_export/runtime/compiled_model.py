"""The backend for LiteRT's `CompiledModel`, with LiteRT's logging silenced.

For a single source, `encode` writes into the inputs of `decode`; two sets of cache buffers
alternate, so that steps copy no data. LiteRT logs from C++ to standard error when a model is
opened, when the first buffer is written, and when the process ends.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import functools
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
from bart_export.runtime.engine import FileEngine, thread_count
from bart_export.runtime.sizing import FloatArray, IntArray, sizing_of

Native = Any  # an object from a library without type hints
Buffers = dict[str, Native]  # tensor name -> LiteRT's TensorBuffer
READ_WRITE = 2  # LiteRT's lock mode

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

    `buckets` are the file's signatures; None means those of a new dynamic build. `num_threads` is
    None for all available cores. `weight_cache` is a file for XNNPACK's packed weights, complete
    or absent, or "" for no cache: every signature of a static build then has its own copy of the
    weights.
    """
    model = open_model(path, num_threads, weight_cache)
    sizing = sizing_of(config, buckets)
    backend = CompiledModelBackend(model=model, config=config, resizes=sizing.resizes)
    return FileEngine(config, backend, sizing)


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

    Cross tensors are written into another signature's inputs and have no output buffers. `borrowed`
    tensors also use another signature's buffers. `resizes` is False for a static build.
    """

    def __init__(
        self,
        model: Native,
        config: BartConfig,
        name: str,
        signature: Signature,
        *,
        resizes: bool = True,
        borrowed: Iterable[str] = (),
    ) -> None:
        self.model = model
        self.name = name
        self.signature = signature
        self.resizes = resizes
        self.cache_names = [tensor.name for tensor in contract.cache_tensors(config)]
        self.cross_names = [tensor.name for tensor in contract.cross_tensors(config)]
        self.borrowed = tuple(borrowed)
        self.fixed = contract.sizes(config)
        self.sizes: dict[str, int] = {}
        self.inputs: Buffers = {}
        self.outputs: Buffers = {}

    def shape(self, tensor: Tensor) -> list[int]:
        """Return a tensor's current shape."""
        return [(self.fixed | self.sizes)[axis] for axis in tensor.axes]

    def shape_of(self, name: str) -> list[int]:
        """Return the current shape of an input or output; caches have the same as both."""
        tensors = (*self.signature.inputs, *self.signature.outputs)
        return next(self.shape(tensor) for tensor in tensors if tensor.name == name)

    def cross_outputs(self) -> Buffers:
        """Return new buffers for the cross tensors, to be copied into a slot."""
        with failures(f"cannot allocate outputs of {self.name}"):
            return {
                name: self.model.create_output_buffer_by_name(self.name, name)
                for name in self.cross_names
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
                    if tensor.name not in (*self.inputs, *self.borrowed):
                        buffer = model.create_input_buffer_by_name(self.name, tensor.name)
                        self.inputs[tensor.name] = buffer
                for tensor in self.signature.outputs:
                    if tensor.name not in (*self.outputs, *self.cross_names, *self.borrowed):
                        buffer = model.create_output_buffer_by_name(self.name, tensor.name)
                        self.outputs[tensor.name] = buffer
        except EngineError:
            self.sizes = {}
            raise

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run the signature, with some of its buffers replaced."""
        with failures(f"failed to run {self.name}"):
            self.model.run_by_name(self.name, self.inputs | inputs, self.outputs | outputs)


@contextlib.contextmanager
def mapped(buffer: Native, shape: Sequence[int]) -> Iterator[FloatArray]:
    """Map a float32 buffer into memory, because LiteRT's Python API can only copy whole buffers."""
    api, library = ctypes.pythonapi, litert_library()
    capsule = ctypes.py_object(buffer.capsule)
    handle = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    address = ctypes.c_void_p()
    status = library.LiteRtLockTensorBuffer(handle, ctypes.byref(address), READ_WRITE)
    if status != 0 or not address.value:
        raise EngineError("LiteRT cannot map a tensor buffer into memory.")
    try:
        floats = (ctypes.c_float * math.prod(shape)).from_address(address.value)
        yield np.ctypeslib.as_array(floats).reshape(shape)
    finally:
        library.LiteRtUnlockTensorBuffer(handle)


@functools.cache
def litert_library() -> ctypes.CDLL:
    """Return LiteRT's C library, which the package has loaded."""
    import ai_edge_litert

    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    library = ctypes.CDLL(str(pathlib.Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))
    pointer = ctypes.POINTER(ctypes.c_void_p)
    library.LiteRtLockTensorBuffer.argtypes = [ctypes.c_void_p, pointer, ctypes.c_int]
    library.LiteRtUnlockTensorBuffer.argtypes = [ctypes.c_void_p]
    return library


def move_slots(old: FloatArray, new: FloatArray, kept: Sequence[int], rows: int) -> None:
    """Copy the slots in `kept`, of `rows` rows each, to the front of `new`.

    If `old` and `new` are the same array, `kept` must be in ascending order.
    """
    inner = tuple(slice(min(sizes)) for sizes in zip(old.shape[1:], new.shape[1:], strict=True))
    for index, slot in enumerate(kept):
        target = (slice(index * rows, (index + 1) * rows), *inner)
        new[target] = old[(slice(slot * rows, (slot + 1) * rows), *inner)]


@dataclasses.dataclass(eq=False, kw_only=True)
class CompiledModelBackend:
    """A `batch.Backend` for LiteRT's `CompiledModel`.

    `resizes` is True for a dynamic build. `encoder` maps token ids (one, source) to hidden states
    (source, hidden), for a file that only computes the cross tensors. `signatures` are created when
    first used. A step reads the caches from `caches` and writes them to `next_caches`.
    """

    model: Native
    config: BartConfig
    resizes: bool
    encoder: Callable[[IntArray], FloatArray] | None = None
    signatures: dict[str, BufferedSignature] = dataclasses.field(default_factory=dict)
    decoder: BufferedSignature | None = None
    caches: Buffers = dataclasses.field(default_factory=dict)
    next_caches: Buffers = dataclasses.field(default_factory=dict)
    mask: IntArray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))

    def signature(self, bucket: Bucket, borrowed: Iterable[str] = ()) -> BufferedSignature:
        """Return a bucket's signature with buffers of its sizes, except for `borrowed` tensors."""
        if bucket.name not in self.signatures:
            self.signatures[bucket.name] = BufferedSignature(
                self.model,
                self.config,
                bucket.name,
                bucket.signature,
                resizes=self.resizes,
                borrowed=borrowed,
            )
        signature = self.signatures[bucket.name]
        if signature.sizes != bucket.sizes:
            signature.resize(bucket.sizes)
        return signature

    def resize(self, bucket: Bucket, kept: Sequence[int]) -> None:
        """Resize the decoder; see `Backend.resize`."""
        old, before, self.decoder = self.decoder, {}, None  # its buffers are lost if this fails
        if old is not None:
            buffers = {name: old.inputs[name] for name in old.cross_names} | self.caches
            before = {name: (buffer, old.shape_of(name)) for name, buffer in buffers.items()}
        self.decoder = decoder = self.signature(bucket)
        rows = dict.fromkeys(decoder.cross_names, 1)
        rows |= dict.fromkeys(decoder.cache_names, bucket.sizes[contract.BEAMS])
        for name, beams in rows.items():
            shape = decoder.shape_of(name)
            buffer, old_shape = before.get(name, (None, []))
            same = old is decoder and shape == old_shape
            if name in decoder.cache_names and not same:
                self.caches[name] = decoder.inputs[name]
                self.next_caches[name] = decoder.outputs[name]
            if same and kept == list(range(len(kept))):
                continue
            if not kept and bucket.sizes[contract.SOURCES] == 1:
                continue  # `admit` writes all of it
            with mapped(buffer if same else decoder.inputs[name], shape) as new:
                if not same:
                    new[:] = 0  # new memory may contain NaN, which masks do not hide
                if same:
                    move_slots(new, new, kept, beams)
                elif kept:
                    with mapped(buffer, old_shape) as array:
                        move_slots(array, new, kept, beams)
        mask = np.zeros(decoder.shape_of("encoder_padding_mask"), np.int32)
        width = min(mask.shape[1], self.mask.shape[1])
        mask[: len(kept), :width] = self.mask[kept, :width]
        self.mask = mask
        decoder.inputs["encoder_padding_mask"].write(mask)

    def admit(self, encode: Bucket, token_ids: IntArray, mask: IntArray, slot: int) -> None:
        """Encode a source into a slot; see `Backend.admit`."""
        encoder, decoder = self.signature(encode), self.decoder
        assert decoder is not None
        source: dict[str, IntArray | FloatArray] = {"encoder_token_ids": token_ids}
        if self.encoder is not None:
            source = {"hidden": self.encoder(token_ids)}
        if "encoder_padding_mask" in encoder.inputs:
            source["encoder_padding_mask"] = mask
        for name, array in source.items():
            encoder.inputs[name].write(array)
        if self.mask.shape == mask.shape:
            encoder.run({}, {name: decoder.inputs[name] for name in encoder.cross_names})
        else:
            encoded = encoder.cross_outputs()
            encoder.run({}, encoded)
            for name, buffer in encoded.items():
                with (
                    mapped(buffer, encoder.shape_of(name)) as array,
                    mapped(decoder.inputs[name], decoder.shape_of(name)) as slots,
                ):
                    move_slots(array, slots[slot : slot + 1], [0], 1)
        self.mask[slot] = 0
        self.mask[slot, : mask.shape[1]] = mask
        decoder.inputs["encoder_padding_mask"].write(self.mask)
        self.clear(slot, 0, decoder.sizes[contract.CAPACITY])

    def decode(self, token_ids: IntArray, position: IntArray, beam_index: IntArray) -> FloatArray:
        """Decode one token per row; see `Backend.decode`."""
        decoder = self.decoder
        assert decoder is not None
        inputs = {"decoder_token_ids": token_ids, "position": position, "beam_index": beam_index}
        for name, array in inputs.items():
            if name in decoder.inputs:
                shape = decoder.shape_of(name)
                # In version 1 of the contract, all rows share one position.
                decoder.inputs[name].write(array[: math.prod(shape)].reshape(shape))
        decoder.run(self.caches, self.next_caches)
        self.caches, self.next_caches = self.next_caches, self.caches
        return self.logits(decoder, len(token_ids))

    def decode_draft(self, bucket: Bucket, token_ids: IntArray, position: int) -> FloatArray:
        """Decode several tokens of the only row; see `Backend.decode_draft`."""
        decoder = self.decoder
        assert decoder is not None
        source = ["encoder_padding_mask", *decoder.cross_names]
        draft = self.signature(bucket, [*source, *decoder.cache_names])
        draft.inputs["decoder_token_ids"].write(token_ids[None, :])
        draft.inputs["position"].write(
            np.arange(position, position + len(token_ids), dtype=np.int32)
        )
        inputs = {name: decoder.inputs[name] for name in source}
        draft.run(inputs | self.caches, self.next_caches)
        self.caches, self.next_caches = self.next_caches, self.caches
        return self.logits(draft, len(token_ids))

    def logits(self, decoder: BufferedSignature, rows: int) -> FloatArray:
        """Return the logits, (rows, vocabulary), that a signature computed."""
        size = rows * self.config.vocabulary_size
        logits: FloatArray = decoder.outputs["logits"].read(size, np.float32)
        return logits.reshape(rows, self.config.vocabulary_size)

    def clear(self, slot: int, begin: int, end: int) -> None:
        """Set positions of a slot's caches to 0; see `Backend.clear`."""
        decoder = self.decoder
        assert decoder is not None
        beams = decoder.sizes[contract.BEAMS]
        for name, buffer in self.caches.items():
            with mapped(buffer, decoder.shape_of(name)) as cache:
                cache[slot * beams : (slot + 1) * beams, :, begin:end] = 0

    def cross(self, slot: int) -> dict[str, FloatArray]:
        """Return a slot's cross tensors; see `Backend.cross`."""
        decoder = self.decoder
        assert decoder is not None
        cross = {}
        for name in decoder.cross_names:
            with mapped(decoder.inputs[name], decoder.shape_of(name)) as array:
                cross[name] = array[slot : slot + 1].copy()
        return cross
