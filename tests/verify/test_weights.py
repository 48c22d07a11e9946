"""Every row of a correct file is within half a step, and wrong rows are not."""

import dataclasses

import numpy as np
import pytest
from support import judged_models, tflite_files
from support.judged_models import INT8, swap_rows, triple_one_scale, triple_the_scales

from bart_export.errors import VerificationFailed
from bart_export.recipes.table import STORAGES
from bart_export.verify import weights

# Storage -> the lowest and highest error of the worst row in a correct file.
ERRORS = {
    "float32": (0.0, 0.0),
    "float16": (0.0, 0.5),
    "int8": (0.29, 0.5),
    "int8_tensorwise": (0.29, 0.5),
    "int4": (0.25, 0.5),
}


@pytest.fixture(scope="module")
def stored(tiny, base):
    """Return a file of each storage."""
    files = {"float32": base}
    for name in list(ERRORS)[1:]:
        mode = "weight_only" if STORAGES[name].granularity is None else "dynamic"
        recipe = dataclasses.replace(INT8, name=name, mode=mode, layers=((".*", name),))
        files[name] = tiny.quantized(base, recipe)
    return files


def worst(tiny, file):
    return weights.worst_row(file.path, tiny.info.config, file.recipe, tiny.read)


@pytest.mark.parametrize("storage", ERRORS)
def test_a_correct_file_is_within_half_a_step(tiny, stored, storage):
    lowest, highest = ERRORS[storage]
    assert lowest <= worst(tiny, stored[storage]).error <= highest


def triple_one_block(content):
    scales = tflite_files.weight(content, f"{judged_models.KERNEL}_scales").view(np.float16)
    scales[7] *= 3


@pytest.mark.parametrize(
    ("storage", "harm", "where"),
    [
        ("int8", triple_the_scales, ("decoder/layer_0/feedforward_output", None)),
        ("int8", triple_one_scale, ("decoder/layer_0/feedforward_output", 5)),
        ("int8_tensorwise", triple_the_scales, ("decoder/layer_0/feedforward_output", None)),
        ("int4", triple_one_block, ("decoder/layer_0/feedforward_output", 1)),
        *((storage, swap_rows, ("token_embedding", None)) for storage in ERRORS),
    ],
)
def test_a_wrong_row_is_found_by_name(tiny, stored, tmp_path, storage, harm, where):
    found = worst(tiny, tiny.changed(stored[storage], harm, tmp_path / "wrong"))
    assert found.error > 1.5 * weights.BOUND
    assert found.layer == where[0]
    assert where[1] in (None, found.row)


def test_nan_is_the_worst_error(tiny, stored, tmp_path):
    def spoil(content):
        tflite_files.weight(content, judged_models.KERNEL).view(np.float32)[200] = np.nan

    found = worst(tiny, tiny.changed(stored["float32"], spoil, tmp_path / "wrong"))
    assert np.isnan(found.error)
    assert found.layer == "decoder/layer_0/feedforward_output"


def errors_of(expected, received, storage):
    return weights.row_errors(
        expected, lambda first, last: received[first:last], STORAGES[storage]
    ).tolist()


def test_a_row_of_zeros_has_no_error():
    zeros = np.zeros((3, 4), np.float32)
    assert [errors_of(zeros, zeros, name) for name in ERRORS] == [[0, 0, 0]] * len(ERRORS)
    wrong = zeros.copy()
    wrong[2, 1] = 1e-3
    first, second, third = errors_of(zeros, wrong, "int8")
    assert first == second == 0
    assert third > 1


def test_rounding_steps_follow_the_formula():
    expected = np.array([[127.0, 0, 0, 0], [-1.27, 0, 0, 0]], np.float32)
    received = expected + np.array([[0, 0.5, 0, 0], [0, 0, 0, 0.02]], np.float32)
    # One of four values is off by half a step, or by two.
    assert errors_of(expected, received, "int8") == pytest.approx([0.25, 1.0])
    assert errors_of(expected, received, "int8_tensorwise") == pytest.approx([0.25, 0.01])
    # The spacing of float16 is 2^-4 at 127 and 2^-10 at 1.27.
    assert errors_of(expected, received, "float16") == pytest.approx([4, 0.01 * 2**10])


def test_a_file_that_lacks_a_layer_is_refused(tiny, base, tmp_path):
    def rename(content):
        judged_models.replace(
            content,
            np.frombuffer(b"encoder/layer_1/self_attention_key/weights", np.uint8),
            np.frombuffer(b"encoder/layer_1/self_attention_kez/weights", np.uint8),
        )

    wrong = tiny.changed(base, rename, tmp_path / "wrong")
    with pytest.raises(
        VerificationFailed, match="a 64 x 64 matrix for the layer encoder/layer_1/self_att"
    ):
        weights.worst_row(wrong.path, tiny.info.config, wrong.recipe, tiny.read)
