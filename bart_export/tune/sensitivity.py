"""How much a model loses when one layer is stored narrower, and which layers to store wider first.

The rounded values of a matrix are read from a file that the quantizer wrote. Divergences are
computed with the Keras model, teacher forced over all texts at once, and of decoder layers with the
decoder alone.

Between the options of storing a layer, loss goes with the squared error of its stored matrix: on
`bart_mini_en`, rounding to nearest, both kinds of int8 lost 0.7 to 1.5 times what int4's divergence
and this rule give.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf

from bart_export.artifact.figures import LayerSensitivity
from bart_export.checkpoints.names import layer_names
from bart_export.config import BartConfig
from bart_export.convert.quantize import quantize
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.recipes.table import LITERT_ONLY, Recipe, Storage
from bart_export.runtime.engine import FloatArray, IntArray
from bart_export.verify.reference import encoder_and_decoder
from bart_export.verify.traces import StepFigures, Trace
from bart_export.verify.weights import StoredFile, layer_of, stored_matrices

BATCH = 8  # texts computed together, of about the same length
# Begin the names of weights that the encoder does not read; it reads the tied table.
DECODER = ("transformer_decoder_layer_", "decoder_position_embedding")
TINY = 1e-30  # stands for the error of a matrix that is stored exactly


def write_uniform(
    float_file: pathlib.Path, storage: Storage, layers: Collection[str], path: pathlib.Path
) -> None:
    """Write a file that stores every matrix of a float file in one way."""
    recipe = Recipe(
        storage.name,
        purpose="",
        mode="dynamic",
        layers=((".*", storage.name),),
        tolerance={},
        runtimes=LITERT_ONLY,
    )
    path.write_bytes(quantize(float_file, recipe, layers))


def measure_sensitivities(
    backbone: BartBackbone,
    path: pathlib.Path,
    traces: Sequence[Trace],
    storage: Storage,
    tick: Callable[[], None] = lambda: None,
) -> list[LayerSensitivity]:
    """Measure every layer of a model, in the order of `layer_names`.

    Args:
        backbone: the model; its weights are changed one after the other, and put back.
        path: a file that stores all matrices of the model as `storage`.
        traces: what the model is fed; some 20 texts rank layers well.
        storage: how the one matrix is stored.
        tick: called whenever another layer has been measured.
    """
    stored, forced = stored_matrices(path), TeacherForced(backbone, traces)
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
        self.config, self.weights = backbone.config, backbone.named_weights()
        encoder, decoder = encoder_and_decoder(backbone)
        ids = tf.TensorSpec([None, None], tf.int32)
        hidden = tf.TensorSpec([None, None, self.config.hidden_dim], encoder.output.dtype)

        def encode(token_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
            return encoder([token_ids, mask], training=False)

        def decode(
            encoded: tf.Tensor, source_mask: tf.Tensor, token_ids: tf.Tensor, mask: tf.Tensor
        ) -> tf.Tensor:
            output = decoder([encoded, source_mask, token_ids, mask], training=False)
            # Logits of the real positions, (steps, vocabulary).
            return backbone.logits(tf.boolean_mask(output, mask > 0)[None])[0]

        self.encode = tf.function(encode, input_signature=[ids, ids])
        self.decode = tf.function(decode, input_signature=[hidden, ids, ids, ids])
        # Sources of about the same length are computed together.
        ordered = sorted(traces, key=lambda trace: len(trace.source_token_ids))
        together = [ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH)]
        self.sources = [padded([trace.source_token_ids for trace in batch]) for batch in together]
        self.fed = [padded([trace.fed_token_ids for trace in batch]) for batch in together]
        self.encoded = [self.encode(*source) for source in self.sources]
        self.expected = self.logits(self.encoded)

    def logits(self, encoded: Sequence[tf.Tensor]) -> list[FloatArray]:
        """Return the logits of each batch, (steps, vocabulary), from its encoded sources."""
        return [
            np.asarray(self.decode(hidden, mask, *fed))
            for hidden, (_, mask), fed in zip(encoded, self.sources, self.fed, strict=True)
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
        encoded = (
            self.encoded if decoder_only else [self.encode(*source) for source in self.sources]
        )
        figures = StepFigures()
        for expected, received in zip(self.expected, self.logits(encoded), strict=True):
            figures.add(expected, received)
        return figures


def padded(rows: Sequence[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Return ids in rows of one length, and a mask with 1 where they are real."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask = np.zeros_like(ids)
    for row, token_ids in enumerate(rows):
        ids[row, : len(token_ids)] = token_ids
        mask[row, : len(token_ids)] = 1
    return ids, mask


def checkpoint_layout(config: BartConfig, weight: str, matrix: FloatArray) -> FloatArray:
    """Return a file's matrix in the shape of the weight: the reverse of `InferenceParameters`."""
    rows = InferenceParameters(config, lambda name: ()).rows
    if "/query/" in weight:
        encoder = weight.startswith("transformer_encoder")
        size = config.head_size if encoder else config.decoder_head_size
        matrix = matrix / np.float32(size**-0.5)
    if weight.endswith("/kernel"):
        matrix = matrix.T
    return np.ascontiguousarray(matrix).reshape(rows[weight].shape)


@dataclasses.dataclass(frozen=True)
class StorageOption:
    """One way of storing all layers, a key of `STORAGES`.

    `sizes` are the bytes that each layer takes in the file, scales included; `errors` are sums of
    squared errors.
    """

    storage: str
    sizes: Mapping[str, int]
    errors: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class PrecisionStep:
    """A layer that is stored wider: as what, for how many more bytes, and what that gains.

    `gain` is an estimate of the divergence that it takes away, in nats a step.
    """

    layer: str
    storage: str
    size: int
    gain: float


def measure_storage(storage: str, path: pathlib.Path, float_file: pathlib.Path) -> StorageOption:
    """Measure the layers of a file that stores all of them in one way."""
    stored, exact = stored_matrices(path), stored_matrices(float_file)
    sizes = layer_sizes(path)
    errors = {
        layer: float(np.square(stored(layer) - exact(layer), dtype=np.float64).sum())
        for layer in sizes
    }
    return StorageOption(storage, sizes, errors)


def layer_sizes(path: pathlib.Path) -> dict[str, int]:
    """Return the bytes that each layer takes in a file.

    Signatures share numbers and the scales of blocks; other scales, float32, and zero points,
    int64, are stored with every tensor.
    """
    stored = StoredFile(path)
    sizes: Counter[str] = Counter()
    shared: dict[int, tuple[str, int]] = {}  # buffer -> its layer and bytes
    for graph in stored.model.subgraphs:
        for tensor in graph.tensors:
            layer, quantization = layer_of(tensor), tensor.quantization
            if layer is None:
                continue
            parts = [tensor]
            if quantization is not None:
                own = ((quantization.scale, 4), (quantization.zeroPoint, 8))
                sizes[layer] += sum(width * len(part) for part, width in own if part is not None)
                if quantization.details is not None:
                    parts.append(graph.tensors[quantization.details.scales])
            for part in parts:
                data = stored.data(part)
                shared.setdefault(part.buffer, (layer, 0 if data is None else len(data)))
    for layer, size in shared.values():
        sizes[layer] += size
    return sizes


def precision_steps(
    sensitivities: Sequence[LayerSensitivity], options: Sequence[StorageOption]
) -> tuple[dict[str, str], list[PrecisionStep]]:
    """Return how each layer is stored at its narrowest, and the steps from there.

    Args:
        sensitivities: measured with the storage of one of the options.
        options: how a layer can be stored.

    Returns:
        Layer -> storage; and steps, the one that gains most for a byte first. Of one layer they
        come in the order in which they are to be taken.
    """
    start, steps = {}, []
    for row in sensitivities:
        measured = next(option for option in options if option.storage == row.storage)
        scale = row.kl / max(measured.errors[row.layer], TINY)
        # (bytes, loss, storage) of the layer
        choices = [
            (option.sizes[row.layer], scale * option.errors[row.layer], option.storage)
            for option in options
        ]
        size, loss, start[row.layer] = min(choices, key=lambda choice: choice[0])
        while True:
            layer_steps = [
                PrecisionStep(row.layer, storage, wider - size, loss - less)
                for wider, less, storage in choices
                if wider > size and less < loss
            ]
            if not layer_steps:
                break
            best = max(layer_steps, key=gain_per_byte)
            steps.append(best)
            size, loss = size + best.size, loss - best.gain
    # Gains for a byte fall along the steps of a layer, and sorting keeps the order of equals.
    return start, sorted(steps, key=lambda step: -gain_per_byte(step))


def gain_per_byte(step: PrecisionStep) -> float:
    """Return the divergence that a step takes away for a byte."""
    return step.gain / step.size


def apply_steps(start: Mapping[str, str], steps: Sequence[PrecisionStep]) -> dict[str, str]:
    """Return how each layer is stored after some steps."""
    return {**start, **{step.layer: step.storage for step in steps}}
