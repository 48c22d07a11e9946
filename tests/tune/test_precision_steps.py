"""The order of precision steps: what takes away most loss for a byte comes first."""

import pytest

from bart_export.checkpoints.names import layer_names
from bart_export.recipes.table import STORAGES
from bart_export.tune.sensitivity import (
    LayerSensitivity,
    StorageOption,
    apply_steps,
    measure_storage,
    precision_steps,
    write_uniform,
)


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


def test_the_layer_that_loses_most_for_a_byte_is_widened_first():
    start, steps = steps_of(a=0.16, b=0.32)
    assert start == {"a": "int4", "b": "int4"}
    # For b the option between is not worth its bytes: both steps at once gain more for a byte.
    assert [(step.layer, step.storage, step.size) for step in steps] == [
        ("b", "int8", 60),
        ("a", "int8_tensorwise", 50),
        ("a", "int8", 10),
    ]
    assert [step.gain for step in steps] == pytest.approx([0.31, 0.15, 0.005])
    assert apply_steps(start, steps[:2]) == {"a": "int8_tensorwise", "b": "int8"}
    assert apply_steps(start, steps) == {"a": "int8", "b": "int8"}


def test_what_gains_nothing_or_is_no_smaller_is_no_step():
    options = [
        option("int4", 50, {"a": 16.0}),
        option("int8_tensorwise", 100, {"a": 16.0}),
        option("int8", 40, {"a": 1.0}),
    ]
    assert steps_of(options, a=0.1) == ({"a": "int8"}, [])
    _, steps = steps_of(a=0.0, b=0.1)
    assert {step.layer for step in steps} == {"b"}


def test_the_bytes_of_layers_are_what_files_differ_by(mini_artifact, tmp_path):
    float_file = mini_artifact.path("tflite/float32.tflite")
    layers = layer_names(mini_artifact.config)
    sizes, options = {}, {}
    for storage in ("int4", "int8_tensorwise", "int8"):
        path = tmp_path / f"{storage}.tflite"
        write_uniform(float_file, STORAGES[storage], layers, path)
        sizes[storage] = path.stat().st_size
        options[storage] = measure_storage(storage, path, float_file)
    assert set(options["int8"].sizes) == set(layers)
    for one, other in (("int8", "int4"), ("int8", "int8_tensorwise")):
        difference = sum(options[one].sizes.values()) - sum(options[other].sizes.values())
        assert difference == pytest.approx(sizes[one] - sizes[other], rel=0.02)
    for layer in layers:
        int4, tensor, row = (options[name].errors[layer] for name in options)
        assert int4 > tensor > row > 0, layer
