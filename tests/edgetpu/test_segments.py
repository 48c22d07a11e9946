"""Segments pass the compiler's rules and compute what the layer they are of computes."""

import dataclasses

import numpy as np
import pytest
from support.paths import SYMMETRIC

from bart_export.checkpoints import resolve
from bart_export.convert import edgetpu
from bart_export.edgetpu import parts
from bart_export.edgetpu.compiler import check_file
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.runtime.edgetpu import SegmentRunner

ROWS = 16
# Operators of the feed-forward segment with each activation, and the error of its output over the
# output's spread: int8 alone, and what is x sigmoid(1.702 x) besides.
ACTIVATIONS = {
    "gelu": (["CONV_2D", "LOGISTIC", "MUL", "CONV_2D"], 0.04),
    "gelu_new": (["CONV_2D", "LOGISTIC", "MUL", "CONV_2D"], 0.04),
    "silu": (["CONV_2D", "LOGISTIC", "MUL", "CONV_2D"], 0.03),
    "tanh": (["CONV_2D", "TANH", "CONV_2D"], 0.03),
    "relu": (["CONV_2D", "CONV_2D"], 0.03),
}


@pytest.fixture(scope="module")
def backbone():
    return BartBackbone.from_checkpoint(resolve.read(SYMMETRIC))


@pytest.fixture(scope="module")
def sources(backbone):
    """Return token ids of texts of which none is as long as a segment's rows, or a multiple."""
    draw = np.random.default_rng(7)
    return [draw.integers(4, backbone.config.vocabulary_size, 45).tolist() for _ in range(3)]


@pytest.fixture(params=ACTIVATIONS)
def layers(request, backbone, sources, tmp_path):
    """Return, for an activation, what each segment reads and is to write, with its file written."""
    weights = backbone.named_weights()
    config = dataclasses.replace(backbone.config, activation_function=request.param, num_layers=1)
    parameters = InferenceParameters(config, lambda name: np.asarray(weights[name]))
    (tmp_path / parts.DIRECTORY).mkdir()
    edgetpu.write_segments(parameters, sources, ROWS, tmp_path)
    own = edgetpu.layer_weights(parameters, 0)
    runs = [edgetpu.run_layer(config, own, edgetpu.embed_source(parameters, ids))[0]
            for ids in sources]  # fmt: skip
    expected = {parts.Segment(0, kind): [run[kind] for run in runs] for kind in parts.KINDS}
    return request.param, tmp_path, expected


def test_segments_pass_the_rules_and_compute_their_part(layers):
    activation, directory, expected = layers
    operators, bound = ACTIVATIONS[activation]
    with np.load(directory / parts.CONSTANTS) as constants:
        vectors = {name: constants[name] for name in constants.files}
    for segment, pairs in expected.items():
        report = check_file(directory / segment.file)
        assert report.passes, report
        if segment.kind == parts.FEEDFORWARD:
            assert [row.operator for row in report.rows] == operators
        centre, reach = vectors[f"{segment.name}/centre"], vectors[f"{segment.name}/reach"]
        runner = SegmentRunner(directory / segment.file, centre, reach, 1, None)
        for source, result in pairs:
            computed = runner.run(source)
            assert computed.shape == result.shape
            error = np.sqrt(np.mean((computed - result) ** 2)) / result.std()
            assert error < bound, (segment.name, error)
