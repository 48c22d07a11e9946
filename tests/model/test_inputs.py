"""Inputs that would be computed wrongly or fail with a traceback are rejected in one line."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.small_bart import random_inputs

from bart_export import errors

GIVEN = random_inputs(2, 9, 5)
ENCODER, DECODER = (GIVEN[f"{side}_token_ids"] for side in ("encoder", "decoder"))
WITHOUT = {name: value for name, value in GIVEN.items() if name != "decoder_padding_mask"}
SMALL = {name: value for name, value in random_inputs(1, 9, 5).items() if "decoder" in name}
REFUSED = {
    "long source": (random_inputs(1, 25, 3), "at most 24 tokens.*received 25"),
    "long target": (random_inputs(1, 3, 30), "at most 24 tokens.*received 30"),
    "id too large": (
        {**GIVEN, "encoder_token_ids": np.where(ENCODER[1, 2] == ENCODER, 97, ENCODER)},
        "encoder_token_ids must be from 0 to 96, received 97",
    ),
    "id negative": ({**GIVEN, "decoder_token_ids": -1 - DECODER}, "decoder_token_ids.*received -"),
    "input missing": (WITHOUT, "needs the input decoder_padding_mask"),
    "one axis": (
        {**GIVEN, "encoder_padding_mask": np.ones(9, np.int32)},
        r"shape \(batch, length\)",
    ),
    "short mask": (
        {**GIVEN, "encoder_padding_mask": np.ones((2, 1), np.int32)},
        "shape of encoder_token_ids",
    ),
    "mask of one row": (
        {**GIVEN, "decoder_padding_mask": np.ones((1, 5), np.int32)},
        "shape of decoder_token_ids",
    ),
    "batches": ({**GIVEN, **SMALL}, "same batch size, received 2 and 1"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", [np.asarray, tf.constant, np.ndarray.tolist])
def test_invalid_inputs_are_rejected(backbone, case, kind):
    inputs, message = REFUSED[case]
    with pytest.raises(errors.InputError, match=message):
        backbone({name: kind(value) for name, value in inputs.items()})


def test_a_too_long_static_length_is_rejected_when_the_graph_is_built(backbone):
    inputs = {
        name: keras.Input((25 if "encoder" in name else 5,), dtype="int32")
        for name in random_inputs(1, 1, 1)
    }
    with pytest.raises(errors.InputError, match="at most 24 tokens.*received 25"):
        backbone(inputs)


def test_a_too_long_dynamic_length_fails_when_the_graph_runs(backbone):
    inputs = random_inputs(2, 25, 5)
    unknown = {name: tf.TensorSpec((None, None), tf.int32) for name in inputs}
    graph = tf.function(backbone, input_signature=[unknown], autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"at most 24 tokens.*\[25\]"):
        graph(inputs)
    assert graph(random_inputs(2, 24, 5))["encoder_sequence_output"].shape == (2, 24, 32)


def test_the_position_embedding_rejects_long_inputs(backbone):
    layer = backbone.get_layer("encoder_position_embedding")
    with pytest.raises(errors.InputError, match="at most 24 tokens.*received 25"):
        layer(np.zeros((1, 25, 32), np.float32))
