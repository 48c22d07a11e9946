"""ONNX Runtime over an encoder and a decoder step with caches, in int8 or float32.

Set up as its documentation advises for transformers on a CPU: attentions fused before dynamic
quantization, signed weights per channel, all graph optimizations, one pool with the given number of
threads, and `IOBinding`, which passes caches from step to step without a copy through Python. A
step of one beam has its own graph, which reorders no cache. Sources are encoded and decoded in one
batch. ONNX Runtime has no search for this graph and is driven by the host's.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization

from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.config import BartConfig
from bart_export.graph.parameters import InferenceParameters
from bart_export.runtime.sizing import FloatArray, IntArray
from peers import onnx_operators
from peers.stepped import Stepped


@dataclasses.dataclass(frozen=True)
class OnnxState:
    """The next position, the decoder's session and binding, and the past caches."""

    position: int
    session: Any
    binding: Any
    caches: tuple[Any, ...]


class OnnxEngine:
    """Runs the files; `start` and `step` are those of `peers.stepped`."""

    def __init__(self, config: BartConfig, files: dict[str, Path], num_threads: int) -> None:
        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in files.items()
        }
        outputs = self.sessions["decode"].get_outputs()
        self.written = [output.name for output in outputs if output.name != "logits"]
        self.read = [name.removeprefix("new_") for name in self.written]

    def start(self, sources: Sequence[Sequence[int]], num_beams: int, max_length: int) -> OnnxState:
        """Encode the sources; caches start empty."""
        encoder = self.sessions["encode"]
        encoding = encoder.io_binding()
        encoding.bind_cpu_input("token_ids", np.array(sources, np.int64))
        names = [output.name for output in encoder.get_outputs()]
        for name in names:
            encoding.bind_output(name, "cpu")
        encoder.run_with_iobinding(encoding)
        session = self.sessions["decode" if num_beams > 1 else "decode_single"]
        binding = session.io_binding()
        for name, value in zip(names, encoding.get_outputs(), strict=True):
            binding.bind_ortvalue_input(name, value)
        rows = num_beams * len(sources)
        shape = rows, self.config.decoder_heads, 0, self.config.decoder_head_size
        empty = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        return OnnxState(0, session, binding, (empty,) * len(self.read))

    def step(
        self, state: OnnxState, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, OnnxState]:
        """Decode one token of every row."""
        session, binding = state.session, state.binding
        inputs = {"token_ids": token_ids, "position": np.array([state.position])}
        if session is self.sessions["decode"]:
            inputs["beam_index"] = beam_index
        bound = {name: values.astype(np.int64) for name, values in inputs.items()}
        for name, values in bound.items():
            binding.bind_cpu_input(name, values)
        for name, cache in zip(self.read, state.caches, strict=True):
            binding.bind_ortvalue_input(name, cache)
        for name in ("logits", *self.written):  # lengths change, so that memory must be new
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        logits, *caches = binding.get_outputs()
        return logits.numpy(), OnnxState(state.position + 1, session, binding, tuple(caches))


def build(checkpoint: Checkpoint, directory: Path, num_threads: int, *, int8: bool) -> Stepped:
    """Write the files to a directory and open them."""
    config = checkpoint.config
    parameters = InferenceParameters(config, checkpoint.weights.__getitem__)
    files = {}
    for name, model in (
        ("encode", lambda: onnx_operators.encoder(config, parameters)),
        ("decode", lambda: onnx_operators.decoder(config, parameters, reorders=True)),
        ("decode_single", lambda: onnx_operators.decoder(config, parameters, reorders=False)),
    ):
        files[name] = directory / f"{name}.onnx"
        onnx.save(model(), files[name])
        if int8:
            quantize(files[name])
    return Stepped(OnnxEngine(config, files, num_threads))


def quantize(path: Path) -> None:
    """Quantize a file in its place."""
    # The tool asks for shapes to be inferred beforehand, which serve only its static method.
    logging.disable(logging.WARNING)
    quantization.quantize_dynamic(
        path,
        path,
        per_channel=True,
        # It does not know what fused attentions return, which is what everything here is.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    logging.disable(logging.NOTSET)
