"""The layer that loses most per byte is widened first."""

import pytest

from bart_export.artifact.figures import LayerSensitivity
from bart_export.checkpoints.weight_names import layer_names
from bart_export.recipes.table import STORAGES
from bart_export.tune.precision_steps import (
    StorageOption,
    apply_steps,
    measure_storage,
    precision_steps,
)
from bart_export.tune.sensitivity import write_uniform
from bart_export.tune.tune import STORAGE_OPTIONS


def option(storage, size, errors):
    return StorageOption(storage, dict.fromkeys(errors, size), errors)


OPTIONS = [
    option("int4", 50, {"a": 16.0, "b": 16.0}),
    option("int8_tensorwise", 100, {"a": 1.0, "b": 8.0}),
    option("int8", 110, {"a": 0.5, "b": 0.5}),
]


def steps_of(options=OPTIONS, **losses):
    rows = [LayerSensitivity(layer, 100, "int4", kl, 0.0) for layer, kl in losses.items()]
    return precision_steps(rows, options)


def test_the_layer_that_loses_most_per_byte_is_widened_first():
    start, steps = steps_of(a=0.16, b=0.32)
    assert start == {"a": "int4", "b": "int4"}
    # For b the middle option is not worth its bytes: skipping it gains more per byte.
    assert [(step.layer, step.storage, step.size) for step in steps] == [
        ("b", "int8", 60),
        ("a", "int8_tensorwise", 50),
        ("a", "int8", 10),
    ]
    assert [step.gain for step in steps] == pytest.approx([0.31, 0.15, 0.005])
    assert apply_steps(start, steps[:2]) == {"a": "int8_tensorwise", "b": "int8"}
    assert apply_steps(start, steps) == {"a": "int8", "b": "int8"}


def test_an_option_that_is_larger_or_gains_nothing_is_not_a_step():
    options = [
        option("int4", 50, {"a": 16.0}),
        option("int8_tensorwise", 100, {"a": 16.0}),
        option("int8", 40, {"a": 1.0}),
    ]
    assert steps_of(options, a=0.1) == ({"a": "int8"}, [])
    _, steps = steps_of(a=0.0, b=0.1)
    assert {step.layer for step in steps} == {"b"}


def test_layer_sizes_account_for_the_difference_of_file_sizes(mini_artifact, tmp_path):
    float_file = mini_artifact.path("tflite/float32.tflite")
    layers = layer_names(mini_artifact.config)
    sizes, options = {}, {}
    for storage in STORAGE_OPTIONS:
        path = tmp_path / f"{storage}.tflite"
        write_uniform(float_file, STORAGES[storage], layers, path)
        sizes[storage] = path.stat().st_size
        options[storage] = measure_storage(storage, path, float_file)
    assert set(options["int8"].sizes) == set(layers)
    for other in ("int4", "int8_tensorwise"):
        difference = sum(options["int8"].sizes.values()) - sum(options[other].sizes.values())
        assert difference == pytest.approx(sizes["int8"] - sizes[other], rel=0.02)
    for layer in layers:
        int4, tensor, row = (options[name].errors[layer] for name in options)
        assert int4 > tensor > row > 0, layer
