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
