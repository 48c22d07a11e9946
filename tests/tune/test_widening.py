"""The order of widening: what takes away most loss for a byte comes first."""

import pytest

from bart_export.checkpoints.names import layer_names
from bart_export.recipes.table import STORAGES
from bart_export.tune import precision_steps
from bart_export.tune.precision_steps import Rung, Widening, after, order
from bart_export.tune.sensitivity import LayerSensitivity, write_everywhere


def sensitivities(**losses):
    return [LayerSensitivity(layer, 100, "int4", kl, 0.0) for layer, kl in losses.items()]


def rung(storage, size, errors):
    return Rung(storage, dict.fromkeys(errors, size), errors)


RUNGS = [
    rung("int4", 50, {"a": 16.0, "b": 16.0}),
    rung("int8_tensorwise", 100, {"a": 1.0, "b": 8.0}),
    rung("int8", 110, {"a": 0.5, "b": 0.5}),
]


def test_the_layer_that_loses_most_for_a_byte_is_widened_first():
    start, steps = order(sensitivities(a=0.16, b=0.32), RUNGS)
    assert start == {"a": "int4", "b": "int4"}
    # Of b the way between is not worth its bytes: all at once takes away more for a byte.
    assert [(step.layer, step.storage, step.size) for step in steps] == [
        ("b", "int8", 60),
        ("a", "int8_tensorwise", 50),
        ("a", "int8", 10),
    ]
    assert [step.loss for step in steps] == pytest.approx([0.31, 0.15, 0.005])


def test_a_way_that_is_no_better_or_no_smaller_is_not_taken():
    rungs = [
        rung("int4", 50, {"a": 16.0}),
        rung("int8_tensorwise", 100, {"a": 16.0}),
        rung("int8", 40, {"a": 1.0}),
    ]
    start, steps = order(sensitivities(a=0.1), rungs)
    assert start == {"a": "int8"}
    assert steps == []


def test_a_layer_that_loses_nothing_stays_narrow():
    start, steps = order(sensitivities(a=0.0, b=0.1), RUNGS)
    assert {step.layer for step in steps} == {"b"}
    assert after(start, steps) == {"a": "int4", "b": "int8"}


def test_the_last_step_of_a_layer_counts():
    steps = [Widening("a", "int8_tensorwise", 1, 0.1), Widening("a", "int8", 1, 0.1)]
    assert after({"a": "int4", "b": "int4"}, steps[:1]) == {"a": "int8_tensorwise", "b": "int4"}
    assert after({"a": "int4", "b": "int4"}, steps) == {"a": "int8", "b": "int4"}


def test_the_bytes_of_layers_are_what_files_differ_by(mini_artifact, tmp_path):
    float_file = mini_artifact.path("tflite/float32.tflite")
    layers = layer_names(mini_artifact.config)
    sizes, surveyed = {}, {}
    for storage in ("int4", "int8_tensorwise", "int8"):
        path = tmp_path / f"{storage}.tflite"
        write_everywhere(float_file, STORAGES[storage], layers, path)
        sizes[storage] = path.stat().st_size
        surveyed[storage] = precision_steps.survey(storage, path, float_file)
    assert list(surveyed["int8"].sizes) and set(surveyed["int8"].sizes) == set(layers)
    for one, other in (("int8", "int4"), ("int8", "int8_tensorwise")):
        difference = sum(surveyed[one].sizes.values()) - sum(surveyed[other].sizes.values())
        assert difference == pytest.approx(sizes[one] - sizes[other], rel=0.02)
    for layer in layers:
        int4, tensor, row = (surveyed[name].errors[layer] for name in surveyed)
        assert int4 > tensor > row > 0, layer
