"""Sensitivities are those of a real file, and the most sensitive layer is found."""

import numpy as np
import pytest
from support.golden_cases import preset_of

from bart_export.checkpoints import resolve
from bart_export.checkpoints.weight_names import layer_names
from bart_export.convert.quantize import quantize
from bart_export.convert.tflite import write_float
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.recipes.table import LITERT_ONLY, STORAGES, Recipe
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.tune.sensitivity import (
    SensitivityProbe,
    checkpoint_layout,
    measure_sensitivities,
    write_uniform,
)
from bart_export.verify.traces import StepFigures, Trace, teacher_force
from bart_export.verify.weights import stored_matrices

INT4 = STORAGES["int4"]
MADE_SENSITIVE = "decoder/layer_0/feedforward_output"


def traces_of(config, lengths=(7, 5, 9)):
    random = np.random.default_rng(1)
    return [
        Trace(
            tuple(random.integers(5, config.vocabulary_size, 3 * length).tolist()),
            (2, *random.integers(5, config.vocabulary_size, length).tolist()),
        )
        for length in lengths
    ]


def backbone_of(artifact):
    preset = resolve.find(preset_of(artifact))
    return BartBackbone.from_checkpoint(resolve.read(preset.directory))


@pytest.fixture(scope="module")
def tiny(symmetric_artifact):
    """Return the model of a tiny checkpoint and its float file."""
    return backbone_of(symmetric_artifact), symmetric_artifact.path("tflite/float32.tflite")


def measured_rows(backbone, float_file, path):
    write_uniform(float_file, INT4, layer_names(backbone.config), path)
    return measure_sensitivities(backbone, path, traces_of(backbone.config), INT4)


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    backbone, float_file = tiny
    before = {name: np.asarray(weight).copy() for name, weight in backbone.named_weights().items()}
    path = tmp_path_factory.mktemp("sensitivity") / "int4.tflite"
    return measured_rows(backbone, float_file, path), before


def stored_alone(tiny, layer, storage, mode, path):
    """Write a file with one layer's matrix in a narrower storage."""
    backbone, float_file = tiny
    recipe = Recipe("one", "", mode, ((layer, storage),), {}, LITERT_ONLY)
    path.write_bytes(quantize(float_file, recipe, layer_names(backbone.config)))
    return path


def test_every_layer_is_measured_in_order(tiny, measured):
    backbone, _ = tiny
    rows, before = measured
    assert [row.layer for row in rows] == list(layer_names(backbone.config))
    assert {row.storage for row in rows} == {"int4"}
    assert all(row.kl > 0 and row.relative > 0 for row in rows)
    weights = backbone.named_weights()
    sizes = [int(np.prod(weights[name].shape)) for name in layer_names(backbone.config).values()]
    assert [row.parameters for row in rows] == sizes
    for name, weight in weights.items():  # the model is as it was
        assert np.array_equal(np.asarray(weight), before[name]), name


@pytest.mark.parametrize(
    "layer",
    [
        "token_embedding",
        "encoder/layer_0/feedforward_output",
        "decoder/layer_1/cross_attention_key",
    ],
)
def test_figures_equal_those_of_a_file_with_one_narrow_layer(tiny, layer, tmp_path):
    backbone, float_file = tiny
    expected = open_compiled_model(float_file, backbone.config)
    # Weight-only files dequantize matrices, so that only the rounding of weights counts.
    path = stored_alone(tiny, layer, "int8", "weight_only", tmp_path / "one.tflite")
    received = open_compiled_model(path, backbone.config)
    sums, traces = StepFigures(), traces_of(backbone.config)
    for trace in traces:
        sums.add(teacher_force(expected, trace).logits, teacher_force(received, trace).logits)
    weight, matrix = layer_names(backbone.config)[layer], stored_matrices(path)(layer)
    probe, figures = (
        SensitivityProbe(backbone, traces).compare_with_matrix(weight, matrix),
        sums.figures(),
    )
    for name in ("kl", "relative"):
        assert probe[name] == pytest.approx(figures[name], rel=0.02)
    assert figures["kl"] > 1e-7


def test_measured_matrices_are_those_of_a_dynamic_file_bit_for_bit(tiny, tmp_path):
    backbone, float_file = tiny
    layers = layer_names(backbone.config)
    everywhere = tmp_path / "everywhere.tflite"
    write_uniform(float_file, INT4, layers, everywhere)
    for layer in ("token_embedding", MADE_SENSITIVE):
        alone = stored_alone(tiny, layer, "int4", "dynamic", tmp_path / "one.tflite")
        assert np.array_equal(stored_matrices(alone)(layer), stored_matrices(everywhere)(layer))
        assert not np.array_equal(stored_matrices(alone)(layer), stored_matrices(float_file)(layer))


def test_checkpoint_layout_inverts_the_inference_parameters(tiny):
    backbone, float_file = tiny
    stored = stored_matrices(float_file)
    for layer, weight in layer_names(backbone.config).items():
        laid_out = checkpoint_layout(backbone.config, weight, stored(layer))
        assert laid_out.shape == tuple(backbone.named_weights()[weight].shape)
        parameters = InferenceParameters(backbone.config, lambda name, array=laid_out: array)
        assert np.array_equal(parameters[weight], stored(layer)), layer


def test_a_layer_that_was_made_sensitive_comes_first(symmetric_artifact, measured, tmp_path):
    rows, _ = measured
    assert max(rows, key=lambda row: row.kl).layer != MADE_SENSITIVE
    backbone = backbone_of(symmetric_artifact)
    weights = backbone.named_weights()
    variable = weights[layer_names(backbone.config)[MADE_SENSITIVE]]
    kernel = np.asarray(variable).copy()
    # A few large weights in every block of 32 round the others to zero. Their inputs are zero, so
    # that the float model does not change.
    kernel[::4] = 40.0
    variable.assign(kernel)
    bias = weights["transformer_decoder_layer_0/feedforward_intermediate_dense/bias"]
    silenced = np.asarray(bias).copy()
    silenced[::4] = -1000.0
    bias.assign(silenced)
    parameters = InferenceParameters(backbone.config, lambda name: np.asarray(weights[name]))
    float_file = tmp_path / "float32.tflite"
    write_float(parameters, float_file)
    spoilt = measured_rows(backbone, float_file, tmp_path / "int4.tflite")
    assert max(spoilt, key=lambda row: row.kl).layer == MADE_SENSITIVE
