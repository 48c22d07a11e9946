"""Inputs that would be computed wrongly, or fail with a traceback, are refused with a line."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.small_bart import random_inputs

from bart_export import errors


def with_id(name, place, token_id):
    inputs = random_inputs(2, 9, 5)
    inputs[name][place] = token_id
    return inputs


def with_mask(name, *shape):
    return {**random_inputs(2, 9, 5), name: np.ones(shape, np.int32)}


def without(name):
    return {key: value for key, value in random_inputs(2, 9, 5).items() if key != name}


def with_sides_of(encoder_batch, decoder_batch):
    encoder, decoder = random_inputs(encoder_batch, 9, 5), random_inputs(decoder_batch, 9, 5)
    return {name: (encoder if "encoder" in name else decoder)[name] for name in encoder}


REFUSED = {
    "long source": (random_inputs(1, 25, 3), "at most 24 tokens.*received 25"),
    "long target": (random_inputs(1, 3, 30), "at most 24 tokens.*received 30"),
    "id too large": (
        with_id("encoder_token_ids", (1, 2), 97),
        "encoder_token_ids must be ids from 0 to 96, received 97",
    ),
    "id negative": (with_id("decoder_token_ids", (0, 0), -1), "decoder_token_ids.*received -1"),
    "input missing": (without("decoder_padding_mask"), "needs the input decoder_padding_mask"),
    "one axis": (with_mask("encoder_padding_mask", 9), r"axes \(batch, length\)"),
    "short mask": (with_mask("encoder_padding_mask", 2, 1), "shape of encoder_token_ids"),
    "mask of one row": (with_mask("decoder_padding_mask", 1, 5), "shape of decoder_token_ids"),
    "batches": (with_sides_of(2, 1), "same batch size, received 2 and 1"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", [np.asarray, tf.constant, np.ndarray.tolist])
def test_inputs_the_model_cannot_take_are_refused(backbone, case, kind):
    inputs, message = REFUSED[case]
    with pytest.raises(errors.InputError, match=message) as caught:
        backbone({name: kind(value) for name, value in inputs.items()})
    assert "\n" not in str(caught.value)


def test_a_graph_of_known_length_is_refused_when_it_is_built(backbone):
    inputs = {
        name: keras.Input((25 if "encoder" in name else 5,), dtype="int32")
        for name in random_inputs(1, 1, 1)
    }
    with pytest.raises(errors.InputError, match="at most 24 tokens.*received 25"):
        backbone(inputs)


def test_a_graph_of_unknown_length_fails_with_both_numbers_when_it_runs(backbone):
    inputs = random_inputs(2, 25, 5)
    unknown = {name: tf.TensorSpec((None, None), tf.int32) for name in inputs}
    graph = tf.function(backbone, input_signature=[unknown], autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"at most 24 tokens.*\[25\]"):
        graph(inputs)
    assert graph(random_inputs(2, 24, 5))["encoder_sequence_output"].shape == (2, 24, 32)


def test_layers_refuse_too_long_inputs_without_the_model(backbone):
    layer = backbone.get_layer("encoder_position_embedding")
    with pytest.raises(errors.InputError, match="at most 24 tokens.*received 25"):
        layer(np.zeros((1, 25, 32), np.float32))


def test_the_longest_input_is_taken(backbone):
    inputs = random_inputs(2, 24, 24)
    assert backbone(inputs)["encoder_sequence_output"].shape == (2, 24, 32)
