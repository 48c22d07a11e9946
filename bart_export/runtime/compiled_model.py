"""The backend for LiteRT's `CompiledModel`, with LiteRT's logging silenced.

The caches stay in the inputs of `decode`; for a single source, `encode` writes into them, too.
LiteRT logs from C++ to standard error when a model is opened, when the first buffer is written, and
when the process ends.
"""

import atexit
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket
from bart_export.errors import EngineError, MissingExtra
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT
from bart_export.runtime.batch import Rows
from bart_export.runtime.buffered_signature import (
    Buffer,
    BufferedSignature,
    Fill,
    Native,
    failures,
    leave,
)
from bart_export.runtime.caches import (
    copy_rows,
    move_slots,
    return_freed_memory,
    write_draft,
    write_entries,
)
from bart_export.runtime.engine import FileEngine, processor_features, thread_count
from bart_export.runtime.sizing import FloatArray, IntArray, sizing_of

LARGE = 32 << 20  # bytes of buffers; returning the memory of smaller ones is not worth its time

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

    def signature(
        self, bucket: Bucket, borrowed: Iterable[str] = (), fill: Fill = leave
    ) -> BufferedSignature:
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
            signature.resize(bucket.sizes, fill)
        return signature

    def resize(self, bucket: Bucket, kept: Sequence[int]) -> None:
        """Resize the decoder; see `Backend.resize`."""
        old, self.decoder = self.decoder, None  # its buffers are lost if this fails
        rows = {tensor.name: 1 for tensor in contract.cross_tensors(self.config)}
        beams = bucket.sizes[contract.BEAMS]
        rows |= {tensor.name: beams for tensor in contract.cache_tensors(self.config)}
        filled: set[str] = set()
        freed = 0  # bytes
        if old is not None and self.resizes and old.name != bucket.name:
            # The last batch had one beam and this one has several, or the other way round.
            freed = sum(buffer.nbytes for buffer in old.inputs.values())
            del self.signatures[old.name]
            old = None

        def fill(name: str, earlier: Buffer | None, buffer: Buffer) -> None:
            nonlocal freed
            filled.add(name)
            freed += 0 if earlier is None else earlier.nbytes
            # A single source needs nothing: `admit` writes all of it.
            if name in rows and (kept or bucket.sizes[contract.SOURCES] > 1):
                buffer.array[:] = 0  # new memory may contain NaN, which masks do not hide
                if earlier is not None:
                    move_slots(earlier.array, buffer.array, kept, rows[name])

        decoder = self.signature(bucket, fill=fill)
        for name in rows:
            if old is not None and decoder is not old:  # another signature of a static build
                fill(name, old.inputs[name], decoder.inputs[name])
            elif name not in filled:
                array = decoder.inputs[name].array
                move_slots(array, array, kept, rows[name])
        if freed >= LARGE:
            return_freed_memory()
        mask = np.zeros(decoder.inputs["encoder_padding_mask"].shape, np.int32)
        width = min(mask.shape[1], self.mask.shape[1])
        mask[: len(kept), :width] = self.mask[kept, :width]
        self.mask = mask
        decoder.inputs["encoder_padding_mask"].array[:] = mask
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
            encoder.inputs[name].array[:] = array
        if self.mask.shape == mask.shape:
            encoder.run({}, {name: decoder.inputs[name] for name in encoder.cross_names})
        else:
            encoded = encoder.cross_outputs()
            encoder.run({}, encoded)
            for name, buffer in encoded.items():
                move_slots(buffer.array, decoder.inputs[name].array[slot : slot + 1], [0], 1)
        self.mask[slot] = 0
        self.mask[slot, : mask.shape[1]] = mask
        decoder.inputs["encoder_padding_mask"].array[:] = self.mask
        beams = decoder.sizes[contract.BEAMS]
        for name in decoder.cache_names:
            decoder.inputs[name].array[slot * beams : (slot + 1) * beams] = 0

    def decode(self, rows: Rows) -> FloatArray:
        """Decode one token per row; see `Backend.decode`."""
        decoder = self.decoder
        assert decoder is not None
        for name, array in rows.inputs.items():
            decoder.inputs[name].array[:] = array
        caches = decoder.caches()
        copy_rows((cache for cache, _ in caches), rows.copied)
        decoder.run({}, {})
        write_entries(caches, rows.used, rows.position)
        logits: FloatArray = decoder.outputs["logits"].array
        return logits

    def decode_draft(self, bucket: Bucket, token_ids: IntArray, position: int) -> FloatArray:
        """Decode several tokens of the only row; see `Backend.decode_draft`."""
        decoder = self.decoder
        assert decoder is not None
        borrowed = ["encoder_padding_mask", *decoder.cross_names, *decoder.cache_names]
        draft = self.signature(bucket, borrowed)
        draft.inputs["decoder_token_ids"].array[:] = token_ids
        draft.inputs["position"].array[:] = np.arange(position, position + len(token_ids))
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
