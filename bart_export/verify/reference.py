"""The Keras model as what exported files are compared with, in float32 and in float64.

It computes the whole decoder again at every step, without caches: slow, and with nothing in common
with the graphs that it judges but the weights. Where the tokens are known it computes all steps in
one call.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import ops

from bart_export.artifact.artifact import Artifact
from bart_export.checkpoints import resolve
from bart_export.convert import tflite
from bart_export.errors import ConfigurationError
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.model.layers import weights_left_at_zero
from bart_export.progress import Stage
from bart_export.recipes.table import RECIPES, with_bounds
from bart_export.runtime.engine import FloatArray, IntArray, check_source
from bart_export.runtime.generator import ModelInfo
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import golden
from bart_export.verify.compare import Baseline, Cases, TfliteFile, compare
from bart_export.verify.golden import Question
from bart_export.verify.traces import Trace, TraceOutput
from bart_export.verify.weights import checkpoint_matrices


def encoder_and_decoder(backbone: BartBackbone) -> tuple[keras.Model, keras.Model]:
    """Return a backbone in two halves.

    The encoder takes ids and mask (batch, source) and returns hidden states; the decoder takes
    those, the source's mask, and ids and mask (batch, length), and returns hidden states.
    """
    inputs = {tensor.name: tensor for tensor in backbone.inputs}
    source = [inputs["encoder_token_ids"], inputs["encoder_padding_mask"]]
    fed = [inputs["decoder_token_ids"], inputs["decoder_padding_mask"]]
    encoded = backbone.output["encoder_sequence_output"]
    decoded = backbone.output["decoder_sequence_output"]
    return keras.Model(source, encoded), keras.Model([encoded, source[1], *fed], decoded)


@dataclasses.dataclass(frozen=True)
class ReferenceState:
    """The encoded source and the tokens so far, int32 (rows, length)."""

    encoded: tf.Tensor
    token_ids: IntArray


class KerasReference:
    """An engine (see `runtime.engine.Engine`) over a `BartBackbone`."""

    def __init__(self, backbone: BartBackbone) -> None:
        self.backbone = backbone
        self.config = backbone.config
        encoder, decoder = encoder_and_decoder(backbone)
        ids = tf.TensorSpec([None, None], tf.int32)
        hidden = tf.TensorSpec([None, None, self.config.hidden_dim], encoder.output.dtype)

        def encode(source: tf.Tensor) -> tf.Tensor:
            return encoder([source, tf.ones_like(source)], training=False)

        def decode_all(encoded: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
            rows = tf.shape(tokens)[0]
            encoded = tf.repeat(encoded, rows, axis=0)
            mask = tf.ones(tf.shape(encoded)[:2], tf.int32)
            return decoder([encoded, mask, tokens, tf.ones_like(tokens)], training=False)

        def decode(encoded: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
            return backbone.logits(decode_all(encoded, tokens)[:, -1:])[:, 0]

        def score(encoded: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
            return backbone.logits(decode_all(encoded, tokens))[0]

        weights = backbone.named_weights()

        def cross(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
            projected = {}
            for layer in range(self.config.decoder_layers):
                for part in ("key", "value"):
                    name = f"transformer_decoder_layer_{layer}/cross_attention/{part}"
                    # kernel (hidden, heads, head_size), bias (heads, head_size)
                    rows = tf.einsum("bsd,dhk->bshk", encoded, weights[f"{name}/kernel"])
                    rows += weights[f"{name}/bias"]
                    projected[f"cross_{part}_{layer}"] = tf.transpose(rows, [0, 2, 1, 3])
            return projected

        self.encode = tf.function(encode, input_signature=[ids])
        self.decode = tf.function(decode, input_signature=[hidden, ids])
        self.score = tf.function(score, input_signature=[hidden, ids])
        self.cross = tf.function(cross, input_signature=[hidden])

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> ReferenceState:
        """Encode a source."""
        source = check_source(self.config, token_ids)
        return ReferenceState(self.encode(source), np.zeros((num_beams, 0), np.int32))

    def step(
        self, state: ReferenceState, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, ReferenceState]:
        """Return the logits after one more token of every row, float32 (rows, vocabulary)."""
        tokens = np.concatenate([state.token_ids[beam_index], token_ids[:, None]], axis=1)
        logits = np.array(self.decode(state.encoded, tokens), np.float32)
        return logits, ReferenceState(state.encoded, tokens)

    def teacher_force(self, trace: Trace) -> TraceOutput:
        """Compute all steps of a trace, and the keys and values of its source."""
        encoded = self.encode(check_source(self.config, trace.source_token_ids))
        logits = self.score(encoded, np.array([trace.fed_token_ids], np.int32))
        cross = {name: np.asarray(tensor) for name, tensor in self.cross(encoded).items()}
        return TraceOutput(cross, np.array(logits, np.float32))

    def ask(self, tokenizer: BartTokenizer, questions: Sequence[Question]) -> Cases:
        """Ask the model all questions; traces are also known in float64."""
        float64 = Float64Reference(self.backbone)
        return Cases.ask(self, tokenizer, questions, self.teacher_force, float64.teacher_force)


ROWS = 8192  # of the token embedding, widened at a time
KEPT = 12  # traces: three texts, and their beginnings that the buckets of a static build take


class Float64Reference:
    """A `BartBackbone` in float64: what float32 rounds, before it is rounded.

    Layers are widened one after another, each in the place of the one before: of bart_large 240 MB,
    where the whole model in float64 has 3.2 GB.
    """

    def __init__(self, backbone: BartBackbone) -> None:
        self.backbone = backbone
        self.kinds: dict[
            object, keras.layers.Layer
        ] = {}  # a layer in float64 of each type and shapes
        self.teacher_force = functools.lru_cache(KEPT)(self.compute)

    def compute(self, trace: Trace) -> TraceOutput:
        """Compute all steps of a trace, and the keys and values of its source."""
        source = np.array([trace.source_token_ids], np.int32)
        fed = np.array([trace.fed_token_ids], np.int32)
        masks = np.ones_like(source), np.ones_like(fed)
        encoded = self.embed("encoder", source)
        for layer in self.backbone.encoder_transformer_layers:
            encoded = self.widened(layer)(encoded, padding_mask=masks[0])
        decoded, cross = self.embed("decoder", fed), {}
        for number, layer in enumerate(self.backbone.decoder_transformer_layers):
            wide = self.widened(layer)
            decoded = wide(
                decoded, encoded, decoder_padding_mask=masks[1], encoder_padding_mask=masks[0]
            )
            attention = wide._cross_attention_layer
            for part, project in (("key", attention.key_dense), ("value", attention.value_dense)):
                heads = np.asarray(project(encoded))  # (1, source, heads, head_size)
                cross[f"cross_{part}_{number}"] = heads.transpose(0, 2, 1, 3)
        return TraceOutput(cross, self.logits(np.asarray(decoded)[0]))

    def embed(self, side: str, token_ids: IntArray) -> tf.Tensor:
        """Turn ids (1, length) into the first hidden states (1, length, hidden)."""
        backbone = self.backbone
        hidden = ops.cast(ops.take(backbone.token_embedding.embeddings, token_ids, 0), "float64")
        if backbone.token_embedding_scale is not None:
            hidden = self.widened(backbone.token_embedding_scale)(hidden)
        hidden += self.widened(getattr(backbone, f"{side}_position_embedding"))(hidden)
        return self.widened(getattr(backbone, f"{side}_embeddings_layer_norm"))(hidden)

    def logits(self, hidden: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Turn the decoder's hidden states (length, hidden) into logits (length, vocabulary)."""
        table = self.backbone.token_embedding.embeddings
        blocks = [
            hidden @ np.asarray(table[first : first + ROWS], np.float64).T
            for first in range(0, table.shape[0], ROWS)
        ]
        logits: npt.NDArray[np.float64] = np.concatenate(blocks, axis=-1)
        if self.backbone.logits_bias is not None:
            logits += np.asarray(self.backbone.logits_bias.bias, np.float64)
        return logits

    def widened(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """Return a layer of the same weights in float64, good until the next of its kind."""
        kind = type(layer), *(tuple(variable.shape) for variable in layer.weights)
        if kind not in self.kinds:
            with weights_left_at_zero():
                wide = type(layer).from_config({**layer.get_config(), "dtype": "float64"})
                if layer.weights:
                    wide.build_from_config(layer.get_build_config())
            self.kinds[kind] = wide
        wide = self.kinds[kind]
        for variable, stored in zip(wide.weights, layer.weights, strict=True):
            variable.assign(ops.cast(stored, "float64"))
        return wide


def preset_baseline(
    artifact: Artifact,
    info: ModelInfo,
    files: Sequence[TfliteFile],
    preset: str,
    tolerance: Mapping[str, float],
    scratch: pathlib.Path,
    stage: Stage,
) -> Baseline:
    """Return a preset as what the files of an artifact are compared with.

    Float files are built anew and held to the Keras model before anything is compared with them.

    Args:
        artifact: whose files they are.
        info: about it.
        files: what will be compared.
        preset: what `resolve.find` takes.
        tolerance: bounds in the place of those that float files are held to.
        scratch: a directory for float files, which must stay while the baseline is used.
        stage: told the name of each stage as it begins.

    Raises:
        ConfigurationError: for a preset of another architecture.
        VerificationFailed: if a float file does not say what the Keras model says.
    """
    stage(f"read {preset}")
    checkpoint = resolve.read(resolve.find(preset).directory)
    if checkpoint.config != info.config:
        raise ConfigurationError(
            f"--against must be the preset that {artifact.directory} was made of, "
            f"{artifact.manifest.preset}, or one of its architecture; {preset} has another."
        )
    keras = KerasReference(BartBackbone.from_checkpoint(checkpoint))
    parameters = InferenceParameters(info.config, lambda name: checkpoint.weights[name])
    matrices = checkpoint_matrices(info.config, parameters)
    stage("ask the Keras model")
    asked = keras.ask(info.tokenizer, golden.questions(info))
    float_files = {}
    for number, shapes in enumerate(dict.fromkeys(file.shapes for file in files)):
        stage("convert the graph")
        path = scratch / f"float32_{number}.tflite"
        tflite.write_float(parameters, path, shapes)
        name = f"The float32 file that this version makes of {preset}"
        recipe = with_bounds(RECIPES["float32"], tolerance)
        file = TfliteFile.of_draft(name, path, recipe, info.config, shapes)
        compare(file, Baseline(info, {shapes: file}, matrices), asked).passed()
        float_files[shapes] = file
    return Baseline(info, float_files, matrices, asked)
