"""The engine for an export to the Edge TPU: it runs segments in turns with what stays on the CPU.

The protocol is that of `bart_export.runtime.engine`. A source's rows go through each segment in
pieces, as int8, on the Edge TPU where its library, a device and compiled segments are there and on
the CPU otherwise; `notice` says which. Embeddings, the attention itself, norms and the decoder run
on LiteRT in between. Why the parts are what they are is not known here (`edgetpu.parts`).
"""

import ctypes
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import BartConfig
from bart_export.edgetpu import parts
from bart_export.edgetpu.parts import Segment
from bart_export.errors import EngineError
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LITERT
from bart_export.runtime import litert
from bart_export.runtime.buffers import BufferedSignature, Caches, IntArray, begin_decoding
from bart_export.runtime.engine import CompiledModelEngine, available_cores
from bart_export.runtime.graph_rules import checked_path
from bart_export.runtime.interpreter import INTERPRETERS, load_delegate, one_line
from bart_export.runtime.weight_cache import open_with_cache

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


class EdgeTpuEngine(CompiledModelEngine):
    """Encodes with segments; decodes as the engine for a whole `.tflite` file does.

    `notice` is a line about where the segments run.

    Args:
        directory: the artifact's.
        config: the model's architecture, as its manifest gives it.
        num_threads: threads for the CPU kernels; None takes all cores this process may use.
        weight_cache: file for XNNPACK's packed weights, "" for none.

    Raises:
        EngineError: if LiteRT cannot open a file.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        config: BartConfig,
        *,
        num_threads: int | None = None,
        weight_cache: str = "",
    ) -> None:
        self.config = config
        self.serial = 0
        threads = num_threads or available_cores()
        model = litert.open_model(directory / parts.HOST, threads, weight_cache)
        with np.load(directory / parts.CONSTANTS) as file:
            constants = {name: file[name] for name in file.files}
        runners, self.notice = open_segments(directory, config, constants, threads)
        self.encoder = SegmentedEncoder(model, config, runners, constants)
        self.encode, self.decode, self.decode_single = (
            BufferedSignature(model, config, signature.name, signature)
            for signature in parts.host_signatures(config)[3:]
        )

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, name: str, *, num_threads: int | None = None
    ) -> "EdgeTpuEngine":
        """Open an artifact's export for the Edge TPU; `name` is that of the host's file."""
        artifact.folder(parts.DIRECTORY)
        sizes = contract.sizes(artifact.config)
        signatures = {one.name: (one, sizes) for one in parts.host_signatures(artifact.config)}
        for file in artifact.files(parts.TARGET):
            if file.endswith(".tflite"):
                checked_path(artifact, file, signatures if file == name else None)
        return open_with_cache(
            lambda cache: cls(
                artifact.directory, artifact.config, num_threads=num_threads, weight_cache=cache
            ),
            artifact,
            name,
        )

    def encode_for(self, decode: BufferedSignature, ids: IntArray) -> Caches:
        """Encode a source segment by segment; see `CompiledModelEngine.encode_for`."""
        self.encode.inputs["hidden"].write(self.encoder.run(ids))
        return begin_decoding(self.encode, decode, np.ones_like(ids))


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
