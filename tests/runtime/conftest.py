"""A tiny random model with 256 positions, exported to `.tflite` once per session."""

import numpy as np
import pytest

from bart_export.config import BartConfig


@pytest.fixture(scope="session")
def roomy_config():
    return BartConfig(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=256,
        decoder_num_layers=2,
    )


@pytest.fixture(scope="session")
def roomy_parameters(roomy_config):
    """Return weights large enough for every cached position to count in every logit."""
    from bart_export.checkpoints import weight_names
    from bart_export.graph.parameters import InferenceParameters

    random = np.random.default_rng(0)
    weights = {
        weight.name: random.normal(size=weight.shape).astype(np.float32) * 0.5
        for weight in weight_names.weights(roomy_config)
    }
    return InferenceParameters(roomy_config, weights.__getitem__)


@pytest.fixture(scope="session")
def roomy_file(roomy_parameters, tmp_path_factory):
    from bart_export.convert import tflite

    path = tmp_path_factory.mktemp("roomy") / "float32.tflite"
    tflite.write_float(roomy_parameters, path)
    return path
