"""The Keras model as the reference for exported files, in float32 and in float64.

It has no caches: every step runs the decoder on all tokens, or one call runs all steps of a trace.
This is slow, but shares nothing with the exported graphs except the weights.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from bart_export.artifact.artifact import Artifact
from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.convert import tflite
from bart_export.errors import ConfigurationError
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.model.layers import weights_left_at_zero
from bart_export.progress import Stage
from bart_export.recipes.table import RECIPES, with_bounds
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.sizing import FloatArray, IntArray, check_source
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import golden
from bart_export.verify.compare import Baseline, Cases, TfliteFile, compare
from bart_export.verify.data import Floats
from bart_export.verify.golden import Question
from bart_export.verify.traces import Trace, TraceOutput
from bart_export.verify.weights import checkpoint_matrices


def encoder_and_decoder(backbone: BartBackbone) -> tuple[keras.Model, keras.Model]:
    """Return a backbone's encoder and decoder.

    The encoder maps ids and mask (batch, source) to hidden states; the decoder maps these, the
    source's mask, and ids and mask (batch, length) to hidden states.
    """
    inputs = {tensor.name: tensor for tensor in backbone.inputs}
    source = [inputs["encoder_token_ids"], inputs["encoder_padding_mask"]]
    fed = [inputs["decoder_token_ids"], inputs["decoder_padding_mask"]]
    encoded = backbone.output["encoder_sequence_output"]
    decoded = backbone.output["decoder_sequence_output"]
    return keras.Model(source, encoded), keras.Model([encoded, source[1], *fed], decoded)


@dataclasses.dataclass(frozen=True)
class ReferenceState:
    """The encoder's output and the tokens so far, int32 (rows, length)."""

    encoded: tf.Tensor
    token_ids: IntArray


class KerasReference:
    """An engine (see `runtime.engine.Engine`) that runs a `BartBackbone`."""

    def __init__(self, backbone: BartBackbone) -> None:
        self.backbone, self.config = backbone, backbone.config
        encoder, decoder = encoder_and_decoder(backbone)
        ids = tf.TensorSpec([None, None], tf.int32)
        hidden = tf.TensorSpec([None, None, self.config.hidden_dim], encoder.output.dtype)

        def encode(source: tf.Tensor) -> tf.Tensor:
            return encoder([source, tf.ones_like(source)], training=False)

        def decoded(encoded: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
            encoded = tf.repeat(encoded, tf.shape(tokens)[0], axis=0)
            mask = tf.ones(tf.shape(encoded)[:2], tf.int32)
            return decoder([encoded, mask, tokens, tf.ones_like(tokens)], training=False)

        def decode(encoded: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
            return backbone.logits(decoded(encoded, tokens)[:, -1:])[:, 0]

        def score(encoded: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
            return backbone.logits(decoded(encoded, tokens))[0]

        self.encode = tf.function(encode, input_signature=[ids])
        self.decode = tf.function(decode, input_signature=[hidden, ids])
        self.score = tf.function(score, input_signature=[hidden, ids])

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
        """Compute all steps of a trace, and its cross-attention keys and values."""
        encoded = self.encode(check_source(self.config, trace.source_token_ids))
        logits = self.score(encoded, np.array([trace.fed_token_ids], np.int32))
        cross: dict[str, Floats] = {}
        for number, layer in enumerate(self.backbone.decoder_transformer_layers):
            cross |= cross_tensors(number, layer, encoded)
        return TraceOutput(cross, np.array(logits, np.float32))

    def ask(self, tokenizer: BartTokenizer, questions: Sequence[Question]) -> Cases:
        """Ask the model all questions; the cases have a float64 teacher."""
        float64 = Float64Reference(self.backbone)
        return Cases.ask(self, tokenizer, questions, self.teacher_force, float64.teacher_force)


def cross_tensors(number: int, layer: keras.layers.Layer, encoded: tf.Tensor) -> dict[str, Floats]:
    """Return a decoder layer's cross-attention keys and values (1, heads, source, head_size)."""
    attention = layer._cross_attention_layer
    projected = {"key": attention.key_dense(encoded), "value": attention.value_dense(encoded)}
    return {  # from (1, source, heads, head_size)
        f"cross_{part}_{number}": np.asarray(heads).transpose(0, 2, 1, 3)
        for part, heads in projected.items()
    }


ROWS = 8192  # rows of the token embedding that are converted to float64 at a time
CACHED = 12  # traces: those of three texts, and the same cut to the buckets of a static build


class Float64Reference:
    """A `BartBackbone` that computes in float64.

    Layers with the same shapes share one float64 layer, into which their weights are copied in
    turn. This takes 240 MB for bart_large instead of 3.2 GB.
    """

    def __init__(self, backbone: BartBackbone) -> None:
        self.backbone = backbone
        self.kinds: dict[object, keras.layers.Layer] = {}  # by type and shapes
        self.teacher_force = functools.lru_cache(CACHED)(self.compute)

    def compute(self, trace: Trace) -> TraceOutput:
        """Compute all steps of a trace, and its cross-attention keys and values."""
        source = np.array([trace.source_token_ids], np.int32)
        fed = np.array([trace.fed_token_ids], np.int32)
        masks = {
            "decoder_padding_mask": np.ones_like(fed),
            "encoder_padding_mask": np.ones_like(source),
        }
        encoded = self.embed("encoder", source)
        for layer in self.backbone.encoder_transformer_layers:
            encoded = self.widened(layer)(encoded, padding_mask=masks["encoder_padding_mask"])
        decoded = self.embed("decoder", fed)
        cross: dict[str, Floats] = {}
        for number, layer in enumerate(self.backbone.decoder_transformer_layers):
            wide = self.widened(layer)
            decoded = wide(decoded, encoded, **masks)
            cross |= cross_tensors(number, wide, encoded)
        return TraceOutput(cross, self.logits(np.asarray(decoded)[0]))

    def embed(self, side: str, token_ids: IntArray) -> tf.Tensor:
        """Return the embeddings (1, length, hidden) of ids (1, length)."""
        backbone = self.backbone
        hidden = ops.cast(ops.take(backbone.token_embedding.embeddings, token_ids, 0), "float64")
        if backbone.token_embedding_scale is not None:
            hidden = self.widened(backbone.token_embedding_scale)(hidden)
        hidden += self.widened(getattr(backbone, f"{side}_position_embedding"))(hidden)
        return self.widened(getattr(backbone, f"{side}_embeddings_layer_norm"))(hidden)

    def logits(self, hidden: Floats) -> Floats:
        """Return the logits (length, vocabulary) of hidden states (length, hidden)."""
        table, bias = self.backbone.token_embedding.embeddings, self.backbone.logits_bias
        blocks = [
            hidden @ np.asarray(table[first : first + ROWS], np.float64).T
            for first in range(0, table.shape[0], ROWS)
        ]
        logits: Floats = np.concatenate(blocks, axis=-1)
        return logits if bias is None else logits + np.asarray(bias.bias, np.float64)

    def widened(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """Return a layer in float64, valid until the next call for a layer of the same kind."""
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
    resolved: ResolvedPreset,
    tolerance: Mapping[str, float],
    scratch: pathlib.Path,
    stage: Stage,
) -> Baseline:
    """Return a preset's model as the baseline of an artifact's files.

    Float files are converted into `scratch`, which must exist while the baseline is used, and
    checked against the Keras model; `tolerance` overrides their bounds.

    Raises:
        ConfigurationError: if the preset has a different architecture.
        VerificationFailed: if a float file differs from the Keras model.
    """
    checkpoint, preset = resolved.checkpoint, resolved.preset
    if checkpoint.config != info.config:
        raise ConfigurationError(
            f"--against must be the preset that {artifact.directory} was exported from, "
            f"{artifact.manifest.preset}, or one with the same architecture, received {preset}, "
            "whose architecture is different."
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
        name = f"The float32 file that this version exports from {preset}"
        recipe = with_bounds(RECIPES["float32"], tolerance)
        file = TfliteFile.of_draft(name, path, recipe, info.config, shapes)
        compare(file, Baseline(info, {shapes: file}, matrices), asked).require_passed()
        float_files[shapes] = file
    return Baseline(info, float_files, matrices, asked)
