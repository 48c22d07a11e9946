"""The reference: a Keras `BartBackbone` behind the step function that the search is written for.

It computes the whole decoder again at every step, without caches: slow, and with nothing in common
with the graphs it is there to judge but the weights. Where the tokens are known it computes all
steps in one call.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bart_export.model import BartBackbone
from bart_export.quality.traces import Seen, Trace
from bart_export.runtime.engine import FloatArray, IntArray, check_source


@dataclasses.dataclass(frozen=True)
class ReferenceState:
    """The encoded source and the tokens so far, int32 (rows, length)."""

    encoded: Any
    token_ids: IntArray


class KerasReference:
    """Generates with a `BartBackbone`; `start` and `step` are those of `runtime.engine.Engine`."""

    def __init__(self, backbone: BartBackbone) -> None:
        self.backbone = backbone
        self.config = backbone.config
        inputs = {tensor.name: tensor for tensor in backbone.inputs}
        encoded = backbone.output["encoder_sequence_output"]
        encoder = keras.Model(
            [inputs["encoder_token_ids"], inputs["encoder_padding_mask"]], encoded
        )
        decoder = keras.Model(
            [
                encoded,
                inputs["encoder_padding_mask"],
                inputs["decoder_token_ids"],
                inputs["decoder_padding_mask"],
            ],
            backbone.output["decoder_sequence_output"],
        )
        ids = tf.TensorSpec([None, None], tf.int32)
        hidden = tf.TensorSpec([None, None, self.config.hidden_dim], encoded.dtype)

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

    def along(self, trace: Trace) -> Seen:
        """Return the logits of all steps of a trace, and the keys and values of its source."""
        encoded = self.encode(check_source(self.config, trace.source_token_ids))
        logits = self.score(encoded, np.array([trace.fed_token_ids], np.int32))
        cross = {name: np.asarray(tensor) for name, tensor in self.cross(encoded).items()}
        return Seen(cross, np.array(logits, np.float32))
