"""The batched encoder and decoder: golden answers, masks, padding and single steps."""

import numpy as np
import pytest
import tensorflow as tf
from support.golden_cases import GOLDEN, MODELS, GoldenCases
from support.graph_bart import GraphBart, batch

from bart_export import BartBackbone
from bart_export.checkpoints import resolve
from bart_export.graph import saved_model_signatures, sequences
from bart_export.graph.layers import MASK_BIAS, Bart
from bart_export.graph.parameters import BatchParameters, InferenceParameters


class Golden(GoldenCases):
    def __init__(self, name):
        super().__init__(name)
        self.directory = GOLDEN / name
        self.bart = GraphBart(self.directory).bart
        self.sources = [self.source(row).tolist() for row in range(len(self))]
        self.targets = self.forward["decoder_token_ids"].tolist()

    def call(self, function, *tensors):
        return function(self.bart, *tensors)

    def encode(self, sources, filler=1):
        return self.call(sequences.encode, *sequences.clear_padding(*batch(sources, filler)))


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    return Golden(request.param)


@pytest.fixture(scope="module")
def symmetric():
    return Golden(MODELS[0])


def log_softmax(logits):
    peaks = logits.max(-1, keepdims=True)
    return logits - peaks - np.log(np.exp(logits - peaks).sum(-1, keepdims=True))


def assert_same(golden, output, received, expected):
    """Compare two float32 computations of an output."""
    allowed = 2 * golden.allowed(output).max()
    np.testing.assert_allclose(np.asarray(received), expected, rtol=0, atol=allowed)


def test_encoder_decoder_and_logits_match_golden_values(golden):
    encoded = golden.encode(golden.sources)
    golden.assert_close("encoder_sequence_output", encoded)

    _, source_mask = sequences.clear_padding(*batch(golden.sources))
    targets = sequences.clear_padding(*batch(golden.targets))
    hidden = golden.call(sequences.decode, encoded, source_mask, *targets)
    golden.assert_close("decoder_sequence_output", hidden)
    logits = golden.call(sequences.logits, tf.reshape(hidden, [-1, hidden.shape[-1]]))
    golden.assert_close("logits", tf.reshape(logits, golden.forward["logits"].shape))


def test_scores_are_conditional_log_probabilities(golden, monkeypatch):
    expected = log_softmax(golden.forward["logits"].astype(np.float64))
    ids = golden.forward["decoder_token_ids"]
    expected = np.take_along_axis(expected[:, :-1], ids[:, 1:, None], 2)[..., 0]
    expected = np.pad(expected, ((0, 0), (1, 0)))
    inputs = (*batch(golden.sources), tf.constant(ids))
    for rows in (sequences.SCORED_ROWS, 5):  # one block, and several
        monkeypatch.setattr(sequences, "SCORED_ROWS", rows)
        assert_same(golden, "logits", golden.call(sequences.score, *inputs, [9, 9, 9]), expected)
    expected[0, 4:] = expected[2, 1:] = 0
    assert_same(golden, "logits", golden.call(sequences.score, *inputs, [4, 9, 1]), expected)


@pytest.mark.parametrize("filler", [3, 1000000, -1])
def test_ids_beyond_a_length_are_ignored(symmetric, filler):
    targets = [target[: 9 - row] for row, target in enumerate(symmetric.targets)]
    plain, filled = (
        symmetric.call(
            sequences.score, *batch(symmetric.sources, one), *batch(targets, one)
        ).numpy()
        for one in (1, filler)
    )
    np.testing.assert_array_equal(filled, plain)
    real = symmetric.forward["encoder_padding_mask"] > 0
    plain, filled = (symmetric.encode(symmetric.sources, one).numpy()[real] for one in (1, filler))
    np.testing.assert_array_equal(filled, plain)


def masks(case, shape):
    mask = np.ones(shape, np.int32)
    if case == "padded on the left":
        mask[0, :5] = 0
    elif case == "with holes":
        mask = np.random.default_rng(2).integers(0, 2, shape, np.int32)
    elif case == "with nothing to see":
        mask[1] = 0
    elif case == "true is any number":
        mask[:] = 7
    return mask


@pytest.mark.parametrize(
    "case", ["padded on the left", "with holes", "with nothing to see", "true is any number"]
)
def test_outputs_equal_the_keras_model_under_any_mask(golden, case):
    inputs = {
        "encoder_token_ids": golden.forward["encoder_token_ids"],
        "encoder_padding_mask": masks(case, (3, 20)),
        "decoder_token_ids": golden.forward["decoder_token_ids"],
        "decoder_padding_mask": masks(case, (3, 9)),
    }
    keras_model = BartBackbone.from_preset(str(golden.directory))
    expected = keras_model(inputs)
    served = saved_model_signatures.Served(
        golden.bart.config, golden.bart.parameters, None, None, 0
    )
    received = saved_model_signatures.backbone(served, inputs)
    assert received.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same(golden, name, received[name], np.asarray(tensor))


@pytest.mark.parametrize("beams", [1, 3])
def test_steps_equal_the_decoder_while_caches_grow(golden, beams):
    # The beams have no common ancestors, so each is a separate sequence.
    config = golden.bart.config
    random = np.random.default_rng(0)
    targets = random.integers(3, 1000, (3, beams, 7), np.int32)
    token_ids, lengths = batch(golden.sources)
    token_ids, source_mask = sequences.clear_padding(token_ids, lengths)
    encoded = golden.call(sequences.encode, token_ids, source_mask)
    whole = golden.call(
        sequences.decode,
        tf.repeat(encoded, beams, 0),
        tf.repeat(source_mask, beams, 0),
        targets.reshape(-1, 7),
        np.ones((3 * beams, 7), np.int32),
    )
    source = sequences.project_source(golden.bart, encoded, source_mask)
    capacity = 2
    caches = sequences.first_caches(config, 3, beams, capacity)
    for position in range(7):
        if position == capacity:
            capacity += 3
            width = beams * config.decoder_head_size
            caches = sequences.grow_caches(caches, position, capacity, width)
        past = np.arange(capacity)[None, :, None] <= position
        mask_bias = np.where(past & np.eye(beams, dtype=bool)[:, None, :], 0, MASK_BIAS)
        hidden, caches = sequences.decode_step(
            golden.bart,
            source,
            caches,
            capacity,
            position,
            tf.constant(targets[:, :, position]),
            mask_bias.reshape(1, 1, beams, -1).astype(np.float32),
        )
        assert_same(golden, "decoder_sequence_output", hidden, whole[:, position].numpy())


@pytest.mark.parametrize("token", [-1, 1024])
def test_unknown_ids_are_invalid_arguments(symmetric, token):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{token} is not in \[0, 1024\)"):
        symmetric.encode([[0, token, 2]])


def test_too_long_rows_are_invalid_arguments(symmetric):
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 64 tokens per row"):
        symmetric.encode([[5] * 65])
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 64 tokens per row"):
        symmetric.call(sequences.score, *batch([[5]]), *batch([[5] * 65]))


def test_bfloat16_weights_are_computed_in_float32(symmetric):
    rounded = {
        name: tf.Variable(tf.cast(variable, tf.bfloat16))
        for name, variable in symmetric.bart.parameters.items()
    }
    inputs = (*batch(symmetric.sources), *batch(symmetric.targets))
    received = sequences.score(
        Bart(symmetric.bart.config, sequences.cast_to_float32(rounded)), *inputs
    )
    assert received.dtype == tf.float32
    as_float32 = {name: tf.cast(variable, tf.float32) for name, variable in rounded.items()}
    expected = sequences.score(Bart(symmetric.bart.config, as_float32), *inputs)
    np.testing.assert_array_equal(received, expected)
    assert np.abs(received - symmetric.call(sequences.score, *inputs)).max() > 1e-4


def test_batch_parameters_concatenate_the_same_weights(golden):
    checkpoint = resolve.read(golden.directory, tokenizer=False)
    one = InferenceParameters(checkpoint.config, checkpoint.weights.__getitem__)
    many = BatchParameters(one)
    joined = 0
    for name, array in many.items():
        parts = many.parts[name]
        joined += len(parts) > 1
        kernels = [one[part].T if part.endswith("/kernel") else one[part] for part in parts]
        for received, kernel in zip(np.split(array, len(parts), -1), kernels, strict=True):
            np.testing.assert_array_equal(received, kernel)
    assert sorted(part for name in many for part in many.parts[name]) == sorted(one)
    layers = checkpoint.config.num_layers + 2 * checkpoint.config.decoder_layers
    assert joined == 2 * layers  # a matrix and a bias per attention
