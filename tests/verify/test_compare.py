"""Files with wrong weights or graphs fail the comparison with the model."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from support import tflite_files
from support.judged_models import FLOAT32, swap_rows

from bart_export.artifact.figures import FileVerification, TextFile
from bart_export.convert import tflite
from bart_export.errors import VerificationFailed
from bart_export.graph import tflite_signatures
from bart_export.recipes.table import RECIPES, ROUNDING
from bart_export.runtime import compiled_model
from bart_export.verify.compare import compare_model
from bart_export.verify.tolerance import bounds_of, require_bounds

INT8 = RECIPES["dynamic_wi8_afp32"]
DECODERS = ("decode", "decode_single")


@pytest.fixture
def float_file(symmetric_artifact):
    """Return the bytes of a correct file, to be changed in place."""
    return bytearray(symmetric_artifact.path("tflite/float32.tflite").read_bytes())


def turn_a_sign(content):
    kernel = tflite_files.weight(content, "layer_1/cross_attention_query/weights").view(np.float32)
    kernel[100] *= -1


def lose_a_kernel(content):
    tflite_files.weight(content, "encoder/layer_0/self_attention_value/weights")[:] = 0


def shift_the_positions(content):
    rows = tflite_files.weight(content, "decoder/position_embedding/weights")
    rows[:] = np.roll(rows, 64 * 4)


def spoil_with_nan(content):
    tflite_files.weight(content, "layer_0/cross_attention_key/weights").view(np.float32)[0] = np.nan


@pytest.mark.parametrize(
    "harm", [swap_rows, turn_a_sign, lose_a_kernel, shift_the_positions, spoil_with_nan]
)
def test_a_file_with_a_wrong_weight_fails(tiny, float_file, tmp_path, harm):
    harm(float_file)
    with pytest.raises(VerificationFailed, match="^it "):
        tiny.check(float_file, FLOAT32, tmp_path / "it")


def rows_not_copied(monkeypatch):
    """Let every row keep its cache, whichever row it continues."""
    monkeypatch.setattr(compiled_model, "copy_rows", lambda *_: None)


def padding_seen(monkeypatch):
    """Do not mask future positions."""
    monkeypatch.setattr(tflite_signatures, "MASK_BIAS", 0.0)


def scaled(signature):
    """Return a change that makes the logits of a decoder signature 1 % too large."""

    def harm(monkeypatch):
        right = tflite_signatures.FUNCTIONS[signature]

        def wrong(config, parameters, given):
            outputs = right(config, parameters, given)
            return outputs | {"logits": outputs["logits"] * 1.01}

        monkeypatch.setitem(tflite_signatures.FUNCTIONS, signature, wrong)

    return harm


@pytest.mark.parametrize(
    "harm", [rows_not_copied, padding_seen, scaled("decode"), scaled("decode_single")]
)
def test_a_wrong_graph_or_cache_fails(tiny, tmp_path, monkeypatch, harm):
    harm(monkeypatch)
    tflite.write_float(tiny.parameters, tmp_path / "wrong")
    with pytest.raises(VerificationFailed):
        tiny.check((tmp_path / "wrong").read_bytes(), FLOAT32, tmp_path / "it")


def all_the_same(tensor):
    """Give all sources the largest numbers of any; one source alone keeps its own."""
    return tf.reduce_max(tensor, 0, keepdims=True) + tensor * 0


@pytest.mark.parametrize("tensor", ["encoder_padding_mask", "position", "cross_key_0"])
def test_sources_that_are_mixed_up_fail(tiny, tmp_path, monkeypatch, tensor):
    for signature in DECODERS:

        def wrong(config, parameters, given, right=tflite_signatures.FUNCTIONS[signature]):
            return right(config, parameters, given | {tensor: all_the_same(given[tensor])})

        monkeypatch.setitem(tflite_signatures.FUNCTIONS, signature, wrong)
    tflite.write_float(tiny.parameters, tmp_path / "it")
    with tiny.file(tmp_path / "it", FLOAT32).open() as model:
        found, _ = compare_model("it", model, tiny.info.tokenizer, tiny.asked, exact=True)
    for signature in DECODERS:
        assert found.signatures[signature]["rounding"] < ROUNDING
        assert found.signatures[f"{signature} of 3 sources"]["rounding"] > 10 * ROUNDING
    with pytest.raises(VerificationFailed, match="Keras' float32 error"):
        require_bounds("it", bounds_of(FLOAT32, found))


RIGHT = FileVerification(
    file="it", logits=9e-5, spread=0.5, relative=9e-6, rounding=3.9, float32=5e-5, kl=1e-9,
    top1=1.0, tokens=1.0, steps=20, questions=9, signatures={},
)  # fmt: skip
TEXTS = TextFile("0" * 64, 775)


@pytest.mark.parametrize(
    ("recipe", "figures", "words"),
    [
        (FLOAT32, {}, None),
        # Only `rounding` and `tokens` of a float32 file have bounds.
        (FLOAT32, {"logits": 3.0, "relative": 0.1, "top1": 0.9}, None),
        (INT8, {"logits": 3.0, "relative": 0.14, "top1": 0.91, "tokens": 0.0}, None),
        (
            FLOAT32,
            {"rounding": 4.06},
            "in units of Keras' float32 error, must be at most 4, received 4.06. "
            "To accept it: --tolerance rounding=4.1.$",
        ),
        (FLOAT32, {"rounding": math.nan}, "received nan.$"),
        (FLOAT32, {"tokens": 8 / 9}, "identical answers must be at least 1"),
        (
            FLOAT32,
            {"weights": 1.06, "worst_row": "a, row 3"},
            "in rounding steps, a, row 3, must be at most 1, received 1.06.$",
        ),
        (INT8, {"relative": 0.1601}, "0.1601. To accept it: --tolerance relative=0.17.$"),
        (INT8, {"top1": 0.879}, "at least 0.9, received 0.879. To .* --tolerance top1=0.87.$"),
        (INT8, {"top1": 0.0}, "received 0. To accept it: --tolerance top1=0.$"),
        (INT8, {"weights": math.nan}, "received nan"),
        # Over many texts near-ties may be broken differently.
        (FLOAT32, {"tokens": 0.992}, "identical answers must be at least 1"),
        (FLOAT32, {"tokens": 0.992, "data": TEXTS}, None),
        (FLOAT32, {"tokens": 0.98, "data": TEXTS}, "identical answers must be at least 0.99"),
    ],
)
def test_a_figure_outside_its_tolerance_fails_by_name(recipe, figures, words):
    bounds = bounds_of(recipe, dataclasses.replace(RIGHT, **figures))
    if words is None:
        require_bounds("it", bounds)
        return
    with pytest.raises(VerificationFailed, match=words):
        require_bounds("it", bounds)
