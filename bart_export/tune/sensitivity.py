"""The divergence of a model if only one of its layers is stored narrower.

Rounded matrices are read from a file that the quantizer wrote. The divergences are computed with
the teacher-forced Keras model on batches of texts; for a decoder layer only the decoder is rerun.
"""

import pathlib
from collections.abc import Collection, Sequence

import numpy as np
import tensorflow as tf

from bart_export.artifact.figures import LayerSensitivity
from bart_export.checkpoints.weight_names import layer_names
from bart_export.config import BartConfig
from bart_export.convert.quantize import quantize
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.recipes.table import LITERT_ONLY, Recipe, Storage
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.sizing import FloatArray
from bart_export.verify import golden
from bart_export.verify.golden import Question
from bart_export.verify.reference import encoder_and_decoder
from bart_export.verify.traces import StepFigures, Trace
from bart_export.verify.weights import stored_matrices

BATCH = 8  # texts
# Prefixes of weights that only the decoder reads; the encoder shares the token embedding.
DECODER = ("transformer_decoder_layer_", "decoder_position_embedding")


def greedy_questions(info: ModelInfo, texts: Sequence[str]) -> list[Question]:
    """Return a greedy question for each text, as long as the settings and the model allow."""
    longest = min(info.generation.max_length, info.config.max_sequence_length)
    settings = golden.greedy(info, longest)
    return [Question(text, info.encode(text), "greedy", settings) for text in texts]


def write_uniform(
    float_file: pathlib.Path, storage: Storage, layers: Collection[str], path: pathlib.Path
) -> None:
    """Write a copy of a float file with every matrix quantized to the same storage."""
    layout = ((".*", storage.name),)
    recipe = Recipe(storage.name, "", "dynamic", layout, tolerance={}, runtimes=LITERT_ONLY)
    path.write_bytes(quantize(float_file, recipe, layers))


def measure_sensitivities(
    backbone: BartBackbone, path: pathlib.Path, traces: Sequence[Trace], storage: Storage
) -> list[LayerSensitivity]:
    """Measure the sensitivity of every layer, in the order of `layer_names`.

    The backbone's weights are replaced one at a time by those of a file that stores all matrices in
    `storage`, and restored. About 20 traces are enough to rank layers.
    """
    stored, probe = stored_matrices(path), SensitivityProbe(backbone, traces)
    measured = []
    for layer, weight in layer_names(backbone.config).items():
        matrix = stored(layer)
        figures = probe.compare_with_matrix(weight, matrix)
        kl, relative = figures["kl"], figures["relative"]
        measured.append(LayerSensitivity(layer, matrix.size, storage.name, kl, relative))
    return measured


class SensitivityProbe:
    """A teacher-forced model, compared with itself after one of its matrices is replaced."""

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
            # Logits without padding, (steps, vocabulary).
            return backbone.logits(tf.boolean_mask(output, mask > 0)[None])[0]

        self.encode = tf.function(encode, input_signature=[ids, ids])
        self.decode = tf.function(decode, input_signature=[hidden, ids, ids, ids])
        # Sorted by length, so that batches have little padding.
        ordered = sorted(traces, key=lambda trace: len(trace.source_token_ids))
        batches = [ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH)]
        self.sources = [padded([trace.source_token_ids for trace in batch]) for batch in batches]
        self.fed = [padded([trace.fed_token_ids for trace in batch]) for batch in batches]
        self.encoded = [self.encode(*source) for source in self.sources]
        self.expected = self.logits(self.encoded)

    def logits(self, encoded: Sequence[tf.Tensor]) -> list[FloatArray]:
        """Return the logits of each batch, (steps, vocabulary), from its encoded sources."""
        return [
            np.asarray(self.decode(hidden, mask, *fed))
            for hidden, (_, mask), fed in zip(encoded, self.sources, self.fed, strict=True)
        ]

    def compare_with_matrix(self, weight: str, matrix: FloatArray) -> dict[str, float]:
        """Compare the model with itself after a weight is replaced by a file's stored matrix."""
        variable, encoded = self.weights[weight], self.encoded
        before = np.asarray(variable).copy()
        variable.assign(checkpoint_layout(self.config, weight, matrix))
        try:
            if not weight.startswith(DECODER):
                encoded = [self.encode(*source) for source in self.sources]
            received = self.logits(encoded)
        finally:
            variable.assign(before)
        figures = StepFigures()
        for pair in zip(self.expected, received, strict=True):
            figures.add(*pair)
        return figures.figures()


def padded(rows: Sequence[Sequence[int]]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return ids padded to one length, and their mask (1 for a token), both int32."""
    ids = tf.ragged.constant(rows, tf.int32)
    return ids.to_tensor(), tf.sequence_mask(ids.row_lengths(), dtype=tf.int32)


def checkpoint_layout(config: BartConfig, weight: str, matrix: FloatArray) -> FloatArray:
    """Return a stored matrix in its weight's layout: the inverse of `InferenceParameters`."""
    rows = InferenceParameters(config, lambda name: ()).rows
    if "/query/" in weight:
        encoder = weight.startswith("transformer_encoder")
        size = config.head_size if encoder else config.decoder_head_size
        matrix = matrix / np.float32(size**-0.5)
    if weight.endswith("/kernel"):
        matrix = matrix.T
    return np.ascontiguousarray(matrix).reshape(rows[weight].shape)
