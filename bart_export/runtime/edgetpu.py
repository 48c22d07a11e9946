"""The backend for an export to the Edge TPU: it runs segments in turns with what stays on the CPU.

A source's rows go through each segment in
pieces, as int8, on the Edge TPU where its library, a device and compiled segments are there and on
the CPU otherwise; `notice` says which. Embeddings, the attention itself, norms and the decoder run
on LiteRT in between. `edgetpu.parts` says
why the parts are what they are.
"""

import ctypes
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.edgetpu import parts
from bart_export.edgetpu.parts import Segment
from bart_export.errors import EngineError
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT
from bart_export.runtime import litert
from bart_export.runtime.compiled_model import BufferedSignature, Caches, CompiledModelBackend
from bart_export.runtime.engine import FileEngine, threads_of
from bart_export.runtime.interpreter import INTERPRETERS, load_delegate, one_line
from bart_export.runtime.sizing import Dynamic, Fitted

FloatArray = npt.NDArray[np.float32]
Vectors = Mapping[str, FloatArray]

LIBRARY = "libedgetpu.so.1"
LEAST, MOST = -128, 127  # of an int8


class SegmentRunner:
    """One segment, open: float rows go in and come out, (any, width).

    Args:
        path: the segment's file.
        centre, reach: of each output channel, what the file's output is relative to.
        num_threads: threads of the CPU kernels.
        delegate: the library of the Edge TPU, None for the CPU.

    Raises:
        EngineError: if the file cannot be opened, or the delegate not be used.
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
        loaded = [] if delegate is None else [load_delegate(module, delegate)]
        try:
            self.interpreter = module.Interpreter(
                model_path=str(path), experimental_delegates=loaded, num_threads=num_threads
            )
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{LITERT} cannot open {path}: {one_line(error)}") from error
        (self.input,) = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()
        scale, self.output_zero = self.output["quantization"]
        self.output_scale = reach * np.float32(scale)
        self.centre = centre

    def run(self, x: FloatArray) -> FloatArray:
        """Compute every row."""
        scale, zero = self.input["quantization"]
        numbers = np.clip(np.rint(x / np.float32(scale)) + zero, LEAST, MOST).astype(np.int8)
        rows = self.input["shape"][2]
        pieces = [self.run_piece(numbers[begin : begin + rows]) for begin in range(0, len(x), rows)]
        computed = np.concatenate(pieces).astype(np.float32)
        result: FloatArray = (computed - self.output_zero) * self.output_scale + self.centre
        return result

    def run_piece(self, numbers: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Compute as many rows as the segment takes, or fewer."""
        piece = np.full(self.input["shape"], self.input["quantization"][1], np.int8)
        piece[0, 0, : len(numbers)] = numbers
        self.interpreter.set_tensor(self.input["index"], piece)
        self.interpreter.invoke()
        computed: npt.NDArray[np.int8] = self.interpreter.get_tensor(self.output["index"])
        return computed[0, 0, : len(numbers)]


class SegmentedEncoder:
    """The encoder of an export for the Edge TPU, put together of its parts.

    Args:
        model: the host's file on LiteRT.
        config: the model's architecture.
        runners: every segment, open, by name.
        constants: what `parts.CONSTANTS` holds.
    """

    def __init__(
        self,
        model: Any,
        config: BartConfig,
        runners: Mapping[str, SegmentRunner],
        constants: Vectors,
    ) -> None:
        self.config = config
        self.runners = runners
        self.constants = constants
        self.embed, self.mix, self.add_and_norm = (
            BufferedSignature(model, config, signature.name, signature)
            for signature in parts.host_signatures(config)[:3]
        )

    def run(self, ids: npt.NDArray[np.int32]) -> FloatArray:
        """Return the encoder's output for a source (one, source): (source, hidden)."""
        hidden = self.call(self.embed, {"encoder_token_ids": ids}, ids.shape[1])
        for layer in range(self.config.num_layers):
            projected = self.segment(layer, parts.ATTENTION_INPUT).run(hidden)
            query, key, value = np.split(projected, 3, axis=-1)
            mixed = self.call(self.mix, {"query": query, "key": key, "value": value}, len(hidden))
            hidden = self.add(layer, parts.ATTENTION_OUTPUT, hidden, mixed)
            hidden = self.add(layer, parts.FEEDFORWARD, hidden, hidden)
        return hidden

    def add(self, layer: int, kind: str, hidden: FloatArray, source: FloatArray) -> FloatArray:
        """Add to the hidden states what a segment makes of its source, and norm them."""
        name = Segment(layer, kind).name
        given = {
            "hidden": hidden,
            "update": self.runners[name].run(source),
            "gamma": self.constants[f"{name}/gamma"],
            "beta": self.constants[f"{name}/beta"],
        }
        return self.call(self.add_and_norm, given, len(hidden))

    def segment(self, layer: int, kind: str) -> SegmentRunner:
        """Return a segment."""
        return self.runners[Segment(layer, kind).name]

    def call(
        self, signature: BufferedSignature, given: Mapping[str, npt.NDArray[Any]], rows: int
    ) -> FloatArray:
        """Run one of the host's signatures over so many rows; return its output, as many."""
        signature.resize({contract.SOURCE: rows})
        for name, array in given.items():
            signature.inputs[name].write(np.ascontiguousarray(array))
        signature.run({}, {})
        (output,) = signature.outputs.values()
        width = self.config.hidden_dim
        result: FloatArray = output.read(rows * width, np.float32)
        return result.reshape(rows, width)


class EdgeTpuBackend:
    """An `engine.Backend` that encodes with segments and decodes as a whole `.tflite` file does.

    Args:
        encoder: the segments, and what runs between them.
        host: the host's file, which has the decoder.
    """

    def __init__(self, encoder: SegmentedEncoder, host: CompiledModelBackend) -> None:
        self.encoder, self.host = encoder, host
        self.decode, self.grow, self.cross = host.decode, host.grow, host.cross

    def begin(self, fitted: Fitted) -> Caches:
        """Encode a source segment by segment; see `Backend.begin`."""
        return self.host.encode(fitted, {"hidden": self.encoder.run(fitted.token_ids)})


def open_edgetpu(
    directory: pathlib.Path,
    config: BartConfig,
    *,
    num_threads: int | None = None,
    weight_cache: str = "",
) -> FileEngine:
    """Open an artifact's export for the Edge TPU.

    Args:
        directory: the artifact's.
        config: the model's architecture, as its manifest gives it.
        num_threads: threads for the CPU kernels; None takes all cores this process may use.
        weight_cache: file for XNNPACK's packed weights, "" for none.

    Raises:
        EngineError: if LiteRT cannot open a file.
    """
    threads = threads_of(num_threads)
    model = litert.open_model(directory / parts.HOST, threads, weight_cache)
    with np.load(directory / parts.CONSTANTS) as file:
        constants = {name: file[name] for name in file.files}
    runners, notice = open_segments(directory, config, constants, threads)
    backend = EdgeTpuBackend(
        SegmentedEncoder(model, config, runners, constants),
        CompiledModelBackend(model, config, resizes=True),
    )
    sizing = Dynamic(config, parts.host_signatures(config)[3:])
    return FileEngine(config, backend, sizing, notice)


def open_segments(
    directory: pathlib.Path, config: BartConfig, constants: Vectors, num_threads: int
) -> tuple[dict[str, SegmentRunner], str]:
    """Open every segment on the Edge TPU, or all of them on the CPU; return them and a notice."""
    segments = parts.segments(config)
    why = obstacle(directory, segments)
    if not why:
        try:
            opened = {
                one.name: open_segment(directory, one.compiled_file, one, constants, 1, LIBRARY)
                for one in segments
            }
            return opened, "The encoder's segments run on the Edge TPU."
        except EngineError as error:
            why = str(error).rstrip(".")
    on_cpu = {
        one.name: open_segment(directory, one.file, one, constants, num_threads, None)
        for one in segments
    }
    return on_cpu, f"The encoder's segments run on the CPU: {why}."


def obstacle(directory: pathlib.Path, segments: Sequence[Segment]) -> str:
    """Return why the segments of an artifact cannot run on an Edge TPU here, "" if they may."""
    if not all((directory / one.compiled_file).is_file() for one in segments):
        return "the artifact was exported where there is no edgetpu_compiler"
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return f"{LIBRARY} is not installed"
    return ""


def open_segment(
    directory: pathlib.Path,
    file: str,
    segment: Segment,
    constants: Vectors,
    num_threads: int,
    delegate: str | None,
) -> SegmentRunner:
    """Open one segment's file."""
    centre, reach = (constants[f"{segment.name}/{part}"] for part in ("centre", "reach"))
    with native_stderr_silenced():
        return SegmentRunner(directory / file, centre, reach, num_threads, delegate)
