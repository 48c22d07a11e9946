"""A signature of a compiled model with its buffers, and what engines do with two of them.

LiteRT's `CompiledModel` and a signature of the contract go in, a callable with input and output
buffers that fit comes out. `encode` writes where `decode` reads, and two sets of cache buffers
alternate, so that nothing is copied between calls. Which signature is right for a source, and how
large its axes should be, is not known here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.runtime import litert

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Buffers = dict[str, Any]  # tensor name -> LiteRT's TensorBuffer
Caches = tuple[Buffers, Buffers]  # what the next step reads, and what it writes


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
    """

    def __init__(
        self, model: Any, config: BartConfig, name: str, signature: contract.Signature
    ) -> None:
        self.model = model
        self.config = config
        self.name = name
        self.signature = signature
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

    def resize(self, wanted: Mapping[str, int]) -> None:
        """Resize what depends on an axis that changes, and make new buffers for it."""
        shapes = resized(self.config, self.signature, self.sizes, wanted)
        with litert.failures(f"cannot resize {self.name}"):
            for name, shape in shapes.items():
                self.model.resize_input_tensor_by_name(self.name, name, list(shape), strict=False)
            self.fit(wanted)

    def fit(self, sizes: Mapping[str, int]) -> None:
        """Make new buffers for tensors of these sizes where they have changed."""
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


def encode_source(
    encode: BufferedSignature, decode: BufferedSignature, ids: IntArray, mask: IntArray
) -> Caches:
    """Encode a source into the buffers that `decode` reads, and return its caches, emptied.

    `ids` and `mask` are int32 (one, source), of the size that both signatures have.
    """
    encode.inputs["encoder_token_ids"].write(ids)
    encode.inputs["encoder_padding_mask"].write(mask)
    return begin_decoding(encode, decode, mask)


def begin_decoding(encode: BufferedSignature, decode: BufferedSignature, mask: IntArray) -> Caches:
    """Run what puts out cross tensors on what its inputs hold; see `encode_source`."""
    decode.inputs["encoder_padding_mask"].write(mask)
    encode.run({}, {name: decode.inputs[name] for name in encode.cross_names})
    caches = decode.caches()
    empty = np.zeros(decode.shape(decode.cache_names[0]), np.float32)
    for buffer in caches[0].values():
        buffer.write(empty)
    return caches


def decode_rows(
    decode: BufferedSignature,
    read: Buffers,
    written: Buffers,
    position: int,
    token_ids: IntArray,
    beam_index: IntArray,
) -> FloatArray:
    """Decode one token of every beam from the caches in `read` to those in `written`.

    Returns logits, float32 (beams, vocabulary).
    """
    decode.inputs["decoder_token_ids"].write(token_ids[:, None])
    decode.inputs["position"].write(np.array([position], np.int32))
    if "beam_index" in decode.inputs:
        decode.inputs["beam_index"].write(beam_index)
    decode.run(read, written)
    shape = len(token_ids), decode.config.vocabulary_size
    logits: FloatArray = decode.outputs["logits"].read(shape[0] * shape[1], np.float32)
    return logits.reshape(shape)
