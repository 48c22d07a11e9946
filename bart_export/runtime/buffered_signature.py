"""A signature of LiteRT's `CompiledModel`, and the memory of its tensors."""

import contextlib
import ctypes
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Signature, Tensor
from bart_export.errors import EngineError
from bart_export.runtime.sizing import FloatArray

Native = Any  # an object from a library without type hints
READ_WRITE = 2  # LiteRT's lock mode


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn LiteRT's errors in a block into an EngineError: "LiteRT cannot …"."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].lstrip("└ ").removeprefix("ERROR: ")
        raise EngineError(f"LiteRT {what}: {reason}.") from error


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


@dataclasses.dataclass(eq=False)
class Buffer:
    """A tensor's memory: LiteRT's TensorBuffer."""

    native: Native
    shape: Sequence[int]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size: every dtype of the contract has four bytes."""
        return 4 * math.prod(self.shape)

    @functools.cached_property
    def array(self) -> npt.NDArray[Any]:
        """The tensor's memory, because LiteRT's Python API can only copy whole buffers.

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
        memory = (ctypes.c_byte * self.nbytes).from_address(address.value)
        return np.ctypeslib.as_array(memory).view(self.dtype).reshape(self.shape)


Buffers = dict[str, Buffer]  # by tensor name
Fill = Callable[[str, Buffer | None, Buffer], None]


def leave(name: str, old: Buffer | None, new: Buffer) -> None:
    """Leave a new buffer as it is."""


def resized(
    tensors: Iterable[Tensor], old: Mapping[str, int], new: Mapping[str, int]
) -> list[Tensor]:
    """Return the tensors with an axis whose size changes."""
    changed = {axis for axis, size in new.items() if old.get(axis) != size}
    return [tensor for tensor in tensors if changed & set(tensor.axes)]


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
        self.natives: tuple[dict[str, Native], dict[str, Native]] = ({}, {})

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
        return Buffer(native, self.shape(tensor), tensor.dtype)

    def resize(self, sizes: Mapping[str, int], fill: Fill = leave) -> None:
        """Change sizes, and create new buffers for the tensors that depend on them.

        `fill` gets the name, the old buffer and the new one of each input before the next one is
        created, so that only one old buffer is kept at a time.
        """
        model, before, self.sizes = self.model, self.sizes, dict(sizes)
        self.natives = ({}, {})  # would keep the old buffers
        try:
            with failures(f"cannot resize {self.name}"):
                for tensor in resized(self.signature.outputs, before, sizes):
                    self.outputs.pop(tensor.name, None)
                changed = {each.name for each in resized(self.signature.inputs, before, sizes)}
                for tensor in self.signature.inputs:
                    name, shape = tensor.name, self.shape(tensor)
                    if name in changed and self.resizes:
                        model.resize_input_tensor_by_name(self.name, name, shape, strict=False)
                    if name not in self.borrowed and (name in changed or name not in self.inputs):
                        old = self.inputs.pop(name, None)
                        native = model.create_input_buffer_by_name(self.name, name)
                        self.inputs[name] = Buffer(native, shape, tensor.dtype)
                        fill(name, old, self.inputs[name])
                for tensor in self.signature.outputs:
                    if tensor.name not in (*self.outputs, *self.cross_names):
                        self.outputs[tensor.name] = self.new_output(tensor)
                self.natives = (natives(self.inputs), natives(self.outputs))
        except BaseException:  # such as Ctrl-C
            self.sizes = {}
            raise

    def caches(self) -> list[tuple[FloatArray, FloatArray]]:
        """Return the memory of each cache and of its output."""
        inputs, outputs = self.inputs, self.outputs
        return [(inputs[name].array, outputs[name].array) for name in self.cache_names]

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run the signature, with some of its buffers replaced."""
        own_inputs, own_outputs = self.natives
        with failures(f"failed to run {self.name}"):
            self.model.run_by_name(
                self.name, own_inputs | natives(inputs), own_outputs | natives(outputs)
            )


def natives(buffers: Buffers) -> dict[str, Native]:
    """Return LiteRT's objects by tensor name."""
    return {name: buffer.native for name, buffer in buffers.items()}
