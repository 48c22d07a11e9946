"""A small configuration, random weights and random inputs, for tests of the model."""

import numpy as np

SHAPE = {
    "vocabulary_size": 97,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 48,
    "max_sequence_length": 24,
}


def randomize(model, seed=0, scale=0.2):
    """Set all weights to random values, large enough that a misplaced one changes the outputs."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(random.normal(scale=scale, size=weight.shape))


def random_inputs(batch, source, length, seed=1):
    """Return random ids, with masks without padding."""
    random = np.random.default_rng(seed)
    return {
        "encoder_token_ids": random.integers(0, 97, (batch, source), dtype=np.int32),
        "encoder_padding_mask": np.ones((batch, source), np.int32),
        "decoder_token_ids": random.integers(0, 97, (batch, length), dtype=np.int32),
        "decoder_padding_mask": np.ones((batch, length), np.int32),
    }


def masked(inputs, case="padded"):
    """Mask random inputs as `case` says; return them."""
    random = np.random.default_rng(2)
    encoder, decoder = inputs["encoder_padding_mask"], inputs["decoder_padding_mask"]
    if case == "padded":
        encoder[0, 5:] = 0
        decoder[1, 3:] = 0
    elif case == "padded on the left":
        encoder[0, :5] = 0
        decoder[1, :3] = 0
    elif case == "with holes":
        encoder[:] = random.integers(0, 2, encoder.shape)
        decoder[:] = random.integers(0, 2, decoder.shape)
    elif case == "with nothing to see":
        encoder[0] = 0
        decoder[1] = 0
    return inputs


def outputs(model, inputs):
    """Return a model's outputs as float32 arrays by name."""
    return {name: np.asarray(value, np.float32) for name, value in model(inputs).items()}


def assert_same_outputs(mine, theirs, inputs=None, tolerance=1e-5):
    """Compare two models, by default on padded random inputs."""
    inputs = masked(random_inputs(3, 11, 7)) if inputs is None else inputs
    received, expected = outputs(mine, inputs), outputs(theirs, inputs)
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        assert np.isfinite(value).all() and value.std() > 0.1
        np.testing.assert_allclose(received[name], value, rtol=0, atol=tolerance, err_msg=name)
