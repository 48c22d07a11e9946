"""The backend for LiteRT's `CompiledModel`, with LiteRT's logging silenced.

The caches stay in the inputs of `decode`; for a single source, `encode` writes into them, too.
LiteRT logs from C++ to standard error when a model is opened, when the first buffer is written, and
when the process ends.
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
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket, Signature, Tensor
from bart_export.errors import EngineError, MissingExtra
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT
from bart_export.runtime.batch import Rows
from bart_export.runtime.caches import copy_rows, move_slots, write_draft, write_entries
from bart_export.runtime.engine import FileEngine, processor_features, thread_count
from bart_export.runtime.sizing import FloatArray, IntArray, sizing_of

Native = Any  # an object from a library without type hints
READ_WRITE = 2  # LiteRT's lock mode

# One for all models, created with the first: creating and deleting one takes time and is logged.
ENVIRONMENTS: list[Native] = []


def litert_version() -> str:
    """Return LiteRT's name and version."""
    return f"{LITERT} {importlib.metadata.version(LITERT)}"


# What LiteRT 2.3's GPU library was compiled for, on 64-bit ARM, in the words of /proc/cpuinfo.
GPU_LIBRARY = "libLiteRtWebGpuAccelerator.so"
NEEDED = {"aes", "asimddp", "asimdhp", "asimdrdm", "atomics", "crc32", "lrcpc", "sha2"}


def has_compiled_model() -> bool:
    """Return whether LiteRT can create a `CompiledModel` on this processor.

    LiteRT loads its GPU library for any of them. It ends the process on processors that lack one of
    the features it was compiled for, such as a Raspberry Pi 4's.
    """
    if platform.machine() != "aarch64" or NEEDED.issubset(processor_features().split()):
        return True
    import ai_edge_litert

    return not pathlib.Path(ai_edge_litert.__file__).with_name(GPU_LIBRARY).exists()


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

    if not has_compiled_model():
        raise EngineError(
            f"LiteRT cannot open {path}: on this processor, its {GPU_LIBRARY} ends the process. "
            "Delete that library from the package ai_edge_litert: only GPUs need it."
        )
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


@dataclasses.dataclass(eq=False)
class Buffer:
    """A tensor's memory: LiteRT's TensorBuffer."""

    native: Native
    shape: Sequence[int]

    def write(self, array: npt.NDArray[Any]) -> None:
        """Write the whole tensor."""
        self.native.write(array)

    @functools.cached_property
    def array(self) -> FloatArray:
        """A float32 tensor's memory, because LiteRT's Python API can only copy whole buffers.

        It is valid as long as the buffer, and does not move.
        """
        api, library = ctypes.pythonapi, litert_library()
        capsule = ctypes.py_object(self.native.capsule)
        handle = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
        address = ctypes.c_void_p()
        status = library.LiteRtLockTensorBuffer(handle, ctypes.byref(address), READ_WRITE)
        if status != 0 or not address.value:
            raise EngineError("LiteRT cannot map a tensor buffer into memory.")
        library.LiteRtUnlockTensorBuffer(handle)
        floats = (ctypes.c_float * math.prod(self.shape)).from_address(address.value)
        return np.ctypeslib.as_array(floats).reshape(self.shape)


Buffers = dict[str, Buffer]  # by tensor name


class BufferedSignature:
    """A signature of a `CompiledModel`, the sizes of its dynamic axes, and its buffers.

    Cross tensors are written into another signature's inputs and have no output buffers. `borrowed`
    inputs also use another signature's buffers. `resizes` is False for a static build.
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

    def cross_outputs(self) -> Buffers:
        """Return new buffers for the cross tensors, to be copied into a slot."""
        with failures(f"cannot allocate outputs of {self.name}"):
            return {
                tensor.name: self.new_output(tensor)
                for tensor in self.signature.outputs
                if tensor.name in self.cross_names
            }

    def new_output(self, tensor: Tensor) -> Buffer:
        """Return a new buffer for an output."""
        native = self.model.create_output_buffer_by_name(self.name, tensor.name)
        return Buffer(native, self.shape(tensor))

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
                        native = model.create_input_buffer_by_name(self.name, tensor.name)
                        self.inputs[tensor.name] = Buffer(native, self.shape(tensor))
                for tensor in self.signature.outputs:
                    if tensor.name not in (*self.outputs, *self.cross_names):
                        self.outputs[tensor.name] = self.new_output(tensor)
        except BaseException:  # such as Ctrl-C
            self.sizes = {}
            raise

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run the signature, with some of its buffers replaced."""
        both = (self.inputs | inputs, self.outputs | outputs)
        natives = ({name: buffer.native for name, buffer in each.items()} for each in both)
        with failures(f"failed to run {self.name}"):
            self.model.run_by_name(self.name, *natives)


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


@dataclasses.dataclass(eq=False, kw_only=True)
class CompiledModelBackend:
    """A `batch.Backend` for LiteRT's `CompiledModel`.

    `resizes` is True for a dynamic build. `encoder` maps token ids (one, source) to hidden states
    (source, hidden), for a file that only computes the cross tensors. `signatures` are created when
    first used. The caches stay in the inputs of `decoder`.
    """

    model: Native
    config: BartConfig
    resizes: bool
    encoder: Callable[[IntArray], FloatArray] | None = None
    signatures: dict[str, BufferedSignature] = dataclasses.field(default_factory=dict)
    decoder: BufferedSignature | None = None
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
        old, self.decoder = self.decoder, None  # its buffers are lost if this fails
        before = {} if old is None else dict(old.inputs)
        decoder = self.signature(bucket)
        rows = dict.fromkeys(decoder.cross_names, 1)
        rows |= dict.fromkeys(decoder.cache_names, bucket.sizes[contract.BEAMS])
        for name, beams in rows.items():
            buffer, earlier = decoder.inputs[name], before.get(name)
            if buffer is earlier:
                move_slots(buffer.array, buffer.array, kept, beams)
            elif kept or bucket.sizes[contract.SOURCES] > 1:  # or else `admit` writes all of it
                buffer.array[:] = 0  # new memory may contain NaN, which masks do not hide
                if earlier is not None:
                    move_slots(earlier.array, buffer.array, kept, beams)
        mask = np.zeros(decoder.inputs["encoder_padding_mask"].shape, np.int32)
        width = min(mask.shape[1], self.mask.shape[1])
        mask[: len(kept), :width] = self.mask[kept, :width]
        self.mask = mask
        decoder.inputs["encoder_padding_mask"].write(mask)
        self.decoder = decoder

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
                move_slots(buffer.array, decoder.inputs[name].array[slot : slot + 1], [0], 1)
        self.mask[slot] = 0
        self.mask[slot, : mask.shape[1]] = mask
        decoder.inputs["encoder_padding_mask"].write(self.mask)
        beams = decoder.sizes[contract.BEAMS]
        for name in decoder.cache_names:
            decoder.inputs[name].array[slot * beams : (slot + 1) * beams] = 0

    def decode(self, rows: Rows) -> FloatArray:
        """Decode one token per row; see `Backend.decode`."""
        decoder = self.decoder
        assert decoder is not None
        for name, array in rows.inputs.items():
            decoder.inputs[name].write(array)
        for name in decoder.cache_names:
            copy_rows(decoder.inputs[name].array, rows.copied, rows.position)
        decoder.run({}, {})
        for name in decoder.cache_names:
            cache, outputs = decoder.inputs[name].array, decoder.outputs[name].array
            write_entries(cache, outputs, rows.used, rows.position)
        logits: FloatArray = decoder.outputs["logits"].array[rows.used]
        return logits

    def decode_draft(self, bucket: Bucket, token_ids: IntArray, position: int) -> FloatArray:
        """Decode several tokens of the only row; see `Backend.decode_draft`."""
        decoder = self.decoder
        assert decoder is not None
        borrowed = ["encoder_padding_mask", *decoder.cross_names, *decoder.cache_names]
        draft = self.signature(bucket, borrowed)
        draft.inputs["decoder_token_ids"].write(token_ids[None, :])
        draft.inputs["position"].write(
            np.arange(position, position + len(token_ids), dtype=np.int32)
        )
        draft.run({name: decoder.inputs[name] for name in borrowed}, {})
        for name in decoder.cache_names:
            write_draft(decoder.inputs[name].array, draft.outputs[name].array, position)
        return draft.outputs["logits"].array.copy()

    def cross(self, slot: int) -> dict[str, FloatArray]:
        """Return a slot's cross tensors; see `Backend.cross`."""
        decoder = self.decoder
        assert decoder is not None
        return {
            name: decoder.inputs[name].array[slot : slot + 1].copy() for name in decoder.cross_names
        }
