"""OpenVINO over an encoder and a stateful decoder step, with int8 weights or in float32.

Set up as its documentation advises for generation on a CPU: weights compressed by NNCF to 8 bits,
symmetric, which is the kind that goes with activations quantized on the fly; a stateful decoder
reordered by `beam_idx`; the latency hint and as many threads as asked. All other settings are the
CPU plug-in's own, by which it quantizes activations, keeps caches in 8 bits, and computes in
bfloat16 where the processor has it. The float32 build asks for exact float32. Sources are encoded
and decoded in one batch. OpenVINO has no search for this graph and is driven by the host's.
"""

import contextlib
import dataclasses
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NNCF_CI", "1")  # NNCF reports its use to its makers, but not from tests

import nncf
import numpy as np
import openvino
from openvino import properties

from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.config import BartConfig
from bart_export.graph.parameters import InferenceParameters
from bart_export.runtime.sizing import FloatArray, IntArray
from peers import openvino_operators
from peers.stepped import Stepped

EXACT = {
    properties.hint.inference_precision: openvino.Type.f32,
    properties.hint.kv_cache_precision: openvino.Type.f32,
}


@dataclasses.dataclass(frozen=True)
class OpenvinoState:
    """Which position is next, and the request that holds the caches."""

    position: int
    decoding: Any


class OpenvinoEngine:
    """Runs the models; `start` and `step` are those of `peers.stepped`."""

    def __init__(self, config: BartConfig, encoder: Any, decoder: Any, settings: Any) -> None:
        self.config = config
        core = openvino.Core()
        self.encoding = core.compile_model(encoder, "CPU", settings).create_infer_request()
        self.decoder = core.compile_model(decoder, "CPU", settings)
        self.requests: dict[int, Any] = {}

    def start(
        self, sources: Sequence[Sequence[int]], num_beams: int, max_length: int
    ) -> OpenvinoState:
        """Encode the sources; the decoder reads where the encoder wrote."""
        ids = np.array(sources, np.int32)
        self.encoding.infer({"token_ids": ids}, share_inputs=True, share_outputs=True)
        # OpenVINO 2026.4 gives NaN after some steps with a cache in 8 bits that one request held
        # for another number of rows before: each number has its own request.
        rows = num_beams * len(sources)
        if rows not in self.requests:
            self.requests[rows] = self.decoder.create_infer_request()
        decoding = self.requests[rows]
        for output in self.encoding.model_outputs:
            name = output.get_any_name()
            decoding.set_tensor(name, self.encoding.get_tensor(name))
        decoding.reset_state()
        return OpenvinoState(0, decoding)

    def step(
        self, state: OpenvinoState, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, OpenvinoState]:
        """Decode one token of every row."""
        inputs = {
            "token_ids": token_ids,
            "position": np.array([state.position], np.int32),
            "beam_idx": beam_index,
        }
        outputs = state.decoding.infer(inputs, share_inputs=True, share_outputs=True)
        return outputs[0], OpenvinoState(state.position + 1, state.decoding)


def build(checkpoint: Checkpoint, directory: Path, num_threads: int, *, int8: bool) -> Stepped:
    """Make the models, by way of files in a directory, and compile them."""
    config = checkpoint.config
    parameters = InferenceParameters(config, checkpoint.weights.__getitem__)
    models: list[Path] = []
    for make in (openvino_operators.encoder, openvino_operators.decoder):
        model = make(config, parameters)
        if int8:
            model = compressed(model)
        path = directory / f"{make.__name__}.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        models.append(path)
    settings = {
        properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
        properties.inference_num_threads: num_threads,
        **({} if int8 else EXACT),
    }
    return Stepped(OpenvinoEngine(config, models[0], models[1], settings))


def compressed(model: openvino.Model) -> openvino.Model:
    """Return a model with its weights in 8 bits, one scale for each row."""
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # a progress bar
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
