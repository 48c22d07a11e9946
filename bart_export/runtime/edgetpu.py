"""The engine for an Edge TPU export: the encoder's segments, and all else on LiteRT's CPU kernels.

Segments process a source's rows in int8 pieces, on the Edge TPU if its library, a device and
compiled segments are present, and otherwise on the CPU; `notice` says which. Embeddings, attention,
norms and the decoder run on LiteRT. `edgetpu.parts` explains the division.
"""

import ctypes
import importlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket
from bart_export.edgetpu import parts
from bart_export.edgetpu.parts import Segment
from bart_export.errors import EngineError
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT
from bart_export.runtime.buffered_signature import BufferedSignature, Native
from bart_export.runtime.compiled_model import CompiledModelBackend, open_model
from bart_export.runtime.engine import FileEngine, thread_count
from bart_export.runtime.interpreter import INTERPRETERS, failures
from bart_export.runtime.sizing import Dynamic, FloatArray, IntArray

Arrays = Mapping[str, FloatArray]

LIBRARY = "libedgetpu.so.1"
INT8 = np.iinfo(np.int8)


def open_edgetpu(
    path: pathlib.Path,
    config: BartConfig,
    buckets: Sequence[Bucket] | None = None,
    *,
    num_threads: int | None = None,
    weight_cache: str = "",
) -> FileEngine:
    """Open an artifact's Edge TPU export, which has no static build.

    `path` is the path of `parts.HOST`, the CPU's file; `buckets` are those of the contract. See
    `open_compiled_model`.
    """
    model = open_model(path, num_threads, weight_cache)
    directory = path.parents[1]
    with np.load(directory / parts.CONSTANTS) as file:
        constants = dict(file)
    runners, notice = open_segments(directory, config, constants, thread_count(num_threads))
    tflite = None if buckets is None else [bucket.signature for bucket in buckets]
    signatures = parts.host_signatures(config, tflite)
    encoder = SegmentedEncoder(model, config, runners, constants)
    backend = CompiledModelBackend(model=model, config=config, resizes=True, encoder=encoder)
    return FileEngine(config, backend, Dynamic(config, signatures[3:]), notice)


def open_segments(
    directory: pathlib.Path, config: BartConfig, constants: Arrays, num_threads: int
) -> tuple[dict[str, "SegmentRunner"], str]:
    """Open all segments on the Edge TPU, or all on the CPU; return them and a notice."""

    def open_all(delegate: str | None, threads: int) -> dict[str, SegmentRunner]:
        return {
            segment.name: SegmentRunner(
                directory / (segment.compiled_file if delegate else segment.file),
                constants[f"{segment.name}/centre"],
                constants[f"{segment.name}/reach"],
                threads,
                delegate,
            )
            for segment in segments
        }

    segments = parts.segments(config)
    try:
        if not all((directory / segment.compiled_file).is_file() for segment in segments):
            raise EngineError("the artifact was exported without edgetpu_compiler")
        return open_all(LIBRARY, 1), "The encoder's segments run on the Edge TPU."
    except EngineError as error:
        reason = str(error).rstrip(".")
    return open_all(None, num_threads), f"The encoder's segments run on the CPU: {reason}."


class SegmentRunner:
    """An open segment, which maps float rows (any, width) to float rows.

    `centre` and `reach` are the offset and scale of each output channel; `delegate` is the Edge TPU
    library, or None for the CPU.
    """

    def __init__(
        self,
        path: pathlib.Path,
        centre: FloatArray,
        reach: FloatArray,
        num_threads: int,
        delegate: str | None,
    ) -> None:
        module = importlib.import_module(INTERPRETERS[LITERT][0])
        with native_stderr_silenced():
            delegates = [] if delegate is None else [load_delegate(module, delegate)]
            with failures(f"{LITERT} cannot open {path}"):
                self.interpreter = module.Interpreter(
                    model_path=str(path), experimental_delegates=delegates, num_threads=num_threads
                )
                self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()
        scale, self.output_zero = self.output["quantization"]
        self.output_scale = reach * np.float32(scale)
        self.centre = centre

    def run(self, x: FloatArray) -> FloatArray:
        """Run the segment on any number of rows."""
        scale, zero = self.input["quantization"]
        numbers = np.clip(np.rint(x / np.float32(scale)) + zero, INT8.min, INT8.max)
        rows = self.input["shape"][2]
        pieces = [
            self.run_piece(numbers[begin : begin + rows].astype(np.int8))
            for begin in range(0, len(x), rows)
        ]
        computed = np.concatenate(pieces).astype(np.float32)
        result: FloatArray = (computed - self.output_zero) * self.output_scale + self.centre
        return result

    def run_piece(self, numbers: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Run the segment on at most as many rows as its input has."""
        piece = np.full(self.input["shape"], self.input["quantization"][1], np.int8)
        piece[0, 0, : len(numbers)] = numbers
        self.interpreter.set_tensor(self.input["index"], piece)
        self.interpreter.invoke()
        computed: npt.NDArray[np.int8] = self.interpreter.get_tensor(self.output["index"])
        return computed[0, 0, : len(numbers)]


def load_delegate(module: Native, library: str) -> Native:
    """Load a delegate's shared library, or raise EngineError."""
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        raise EngineError(f"{library} is not installed.") from None
    try:
        # If the package noticed this itself, its half-initialized object would log another error.
        if not hasattr(loaded, "tflite_plugin_create_delegate"):
            raise ValueError("it is not a TFLite external delegate")
        return module.load_delegate(library)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"Cannot load the delegate {library}: {reason}.") from error


class SegmentedEncoder:
    """The encoder of an Edge TPU export; `runners` are the segments by name."""

    def __init__(
        self,
        model: Native,
        config: BartConfig,
        runners: Mapping[str, SegmentRunner],
        constants: Arrays,
    ) -> None:
        self.config = config
        self.runners = runners
        self.constants = constants
        self.embed, self.attend, self.add_and_norm = (
            BufferedSignature(model, config, signature.name, signature)
            for signature in parts.host_signatures(config)[:3]
        )

    def __call__(self, token_ids: IntArray) -> FloatArray:
        """Return the encoder's output (source, hidden) for token ids (one, source)."""
        hidden = self.call(self.embed, token_ids.shape[1], encoder_token_ids=token_ids)
        for layer in range(self.config.num_layers):
            projected = self.runners[Segment(layer, parts.ATTENTION_INPUT).name].run(hidden)
            query, key, value = np.split(projected, 3, axis=-1)
            context = self.call(self.attend, len(hidden), query=query, key=key, value=value)
            hidden = self.add(layer, parts.ATTENTION_OUTPUT, hidden, context)
            hidden = self.add(layer, parts.FEEDFORWARD, hidden, hidden)
        return hidden

    def add(self, layer: int, kind: str, hidden: FloatArray, source: FloatArray) -> FloatArray:
        """Return the sum of the hidden states and a segment's output, normalized."""
        name = Segment(layer, kind).name
        return self.call(
            self.add_and_norm,
            len(hidden),
            hidden=hidden,
            update=self.runners[name].run(source),
            gamma=self.constants[f"{name}/gamma"],
            beta=self.constants[f"{name}/beta"],
        )

    def call(
        self, signature: BufferedSignature, rows: int, **inputs: IntArray | FloatArray
    ) -> FloatArray:
        """Run a signature of the CPU's file; return its output (rows, hidden)."""
        signature.resize({contract.SOURCE: rows})
        for name, array in inputs.items():
            signature.inputs[name].array[:] = array
        signature.run({}, {})
        (output,) = signature.outputs.values()
        return output.array.copy()
