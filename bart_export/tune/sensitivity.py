"""Sensitivity: how much a model loses when the matrix of one layer alone is stored narrower.

A backbone, its float file, greedy traces and a storage go in; for every layer come out the
divergence and the relative error of the logits with that matrix rounded and all else as it was.
The rounded values are read from a file that the quantizer wrote, so that they are what it stores.
All texts are computed at once, teacher forced, and of decoder layers the decoder alone. What is
done about a sensitive layer is not known here.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bart_export.artifact.figures import LayerSensitivity
from bart_export.checkpoints.names import layer_names
from bart_export.convert.quantize import quantize
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.recipes.table import LITERT_ONLY, Recipe, Storage
from bart_export.verify.evaluation import StepFigures
from bart_export.verify.traces import Trace
from bart_export.verify.weights import matrices_of

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

BATCH = 8  # texts computed together, of about the same length


def measure(
    backbone: BartBackbone,
    float_file: pathlib.Path,
    traces: Sequence[Trace],
    storage: Storage,
    tick: Callable[[], None] = lambda: None,
) -> list[LayerSensitivity]:
    """Measure every layer of a model, in the order of `layer_names`.

    Args:
        backbone: the model; its weights are changed one after the other, and put back.
        float_file: the model's dynamic build in float32.
        traces: what the model is fed; some 20 texts rank layers well.
        storage: how the one matrix is stored.
        tick: called whenever another layer has been measured.
    """
    with tempfile.TemporaryDirectory(dir=float_file.parent) as directory:
        path = pathlib.Path(directory) / f"{storage.name}.tflite"
        write_everywhere(float_file, storage, layer_names(backbone.config), path)
        return measure_file(backbone, path, traces, storage, tick)


def write_everywhere(
    float_file: pathlib.Path, storage: Storage, layers: Collection[str], path: pathlib.Path
) -> None:
    """Write a file that stores every matrix of a float file in one way."""
    recipe = Recipe(
        storage.name,
        purpose="one storage for all",
        mode="dynamic",
        layers=((".*", storage.name),),
        tolerance={},
        runtimes=LITERT_ONLY,
    )
    path.write_bytes(quantize(float_file, recipe, layers))


def measure_file(
    backbone: BartBackbone,
    path: pathlib.Path,
    traces: Sequence[Trace],
    storage: Storage,
    tick: Callable[[], None] = lambda: None,
) -> list[LayerSensitivity]:
    """Measure every layer with the matrices of a file that stores all of them as `storage`."""
    stored = matrices_of(path)
    forced = TeacherForced(backbone, traces)
    measured = []
    for layer, weight in layer_names(backbone.config).items():
        matrix = stored(layer)
        figures = forced.with_matrix(weight, matrix)
        measured.append(
            LayerSensitivity(layer, matrix.size, storage.name, figures.kl, figures.errors.relative)
        )
        tick()
    return measured


class TeacherForced:
    """A model that is fed whole traces, and compared with itself when one matrix has changed."""

    def __init__(self, backbone: BartBackbone, traces: Sequence[Trace]) -> None:
        self.config = backbone.config
        self.weights = backbone.named_weights()
        self.encode, self.decode = halves(backbone)
        self.batches = list(batches(traces))
        self.encoded = [self.encode(*batch.source) for batch in self.batches]
        self.expected = [
            np.asarray(self.decode(encoded, batch.source[1], *batch.fed))
            for encoded, batch in zip(self.encoded, self.batches, strict=True)
        ]

    def with_matrix(self, weight: str, matrix: FloatArray) -> StepFigures:
        """Compare the model with itself when a weight is the matrix that a file holds for it."""
        variable = self.weights[weight]
        before = np.asarray(variable).copy()
        variable.assign(checkpoint_layout(self.config, weight, matrix))
        try:
            return self.figures(weight.startswith(DECODER))
        finally:
            variable.assign(before)

    def figures(self, decoder_only: bool) -> StepFigures:
        """Compare the model as it is now with what it was; its encoder may be known unchanged."""
        figures = StepFigures()
        for batch, encoded, expected in zip(self.batches, self.encoded, self.expected, strict=True):
            if not decoder_only:
                encoded = self.encode(*batch.source)
            figures.add(expected, np.asarray(self.decode(encoded, batch.source[1], *batch.fed)))
        return figures


# Weights that the encoder does not read; the tied table it reads.
DECODER = ("transformer_decoder_layer_", "decoder_position_embedding")


def halves(backbone: BartBackbone) -> tuple[Any, Any]:
    """Return the encoder, and the decoder with its logits of the real positions, as functions.

    The first takes ids and mask (batch, source) and returns hidden states; the second takes those,
    the source's mask, and ids and mask (batch, length), and returns logits (steps, vocabulary).
    """
    inputs = {tensor.name: tensor for tensor in backbone.inputs}
    source = [inputs["encoder_token_ids"], inputs["encoder_padding_mask"]]
    fed = [inputs["decoder_token_ids"], inputs["decoder_padding_mask"]]
    encoded = backbone.output["encoder_sequence_output"]
    encoder = keras.Model(source, encoded)
    decoder = keras.Model([encoded, source[1], *fed], backbone.output["decoder_sequence_output"])
    ids = tf.TensorSpec([None, None], tf.int32)
    hidden = tf.TensorSpec([None, None, backbone.config.hidden_dim], encoded.dtype)

    def encode(token_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return encoder([token_ids, mask], training=False)

    def decode(
        encoded: tf.Tensor, source_mask: tf.Tensor, token_ids: tf.Tensor, mask: tf.Tensor
    ) -> tf.Tensor:
        output = decoder([encoded, source_mask, token_ids, mask], training=False)
        return backbone.logits(tf.boolean_mask(output, mask > 0)[None])[0]

    return (
        tf.function(encode, input_signature=[ids, ids]),
        tf.function(decode, input_signature=[hidden, ids, ids, ids]),
    )


@dataclasses.dataclass(frozen=True)
class Batch:
    """Ids and masks, int32 (batch, length), of sources and of the tokens that are fed."""

    source: tuple[IntArray, IntArray]
    fed: tuple[IntArray, IntArray]


def batches(traces: Sequence[Trace]) -> Iterator[Batch]:
    """Yield traces side by side, sources of about the same length together."""
    ordered = sorted(traces, key=lambda trace: len(trace.source_token_ids))
    for first in range(0, len(ordered), BATCH):
        together = ordered[first : first + BATCH]
        yield Batch(
            padded([trace.source_token_ids for trace in together]),
            padded([trace.fed_token_ids for trace in together]),
        )


def padded(rows: Sequence[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Return ids in rows of one length, and a mask with 1 where they are real."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask = np.zeros_like(ids)
    for row, token_ids in enumerate(rows):
        ids[row, : len(token_ids)] = token_ids
        mask[row, : len(token_ids)] = 1
    return ids, mask


def checkpoint_layout(config: Any, weight: str, matrix: FloatArray) -> FloatArray:
    """Return a file's matrix in the shape of the weight: the reverse of `InferenceParameters`."""
    rows = InferenceParameters(config, lambda name: ()).rows
    if "/query/" in weight:
        encoder = weight.startswith("transformer_encoder")
        size = config.head_size if encoder else config.decoder_head_size
        matrix = matrix / np.float32(size**-0.5)
    if weight.endswith("/kernel"):
        matrix = matrix.T
    return np.ascontiguousarray(matrix).reshape(rows[weight].shape)
