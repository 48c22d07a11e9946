"""A file that does not say what the model says is caught, whatever was broken in it."""

import dataclasses
import functools
import math
import types

import numpy as np
import pytest
import tensorflow as tf
from support import tflite_files
from support.judged_models import (
    FLOAT32,
    Judged,
    cache_one_off,
    swap_rows,
    triple_the_scales,
    wrong_epsilon,
)

from bart_export.artifact.figures import FileVerification, TextFile
from bart_export.convert import tflite
from bart_export.errors import ConfigurationError, VerificationFailed
from bart_export.graph import steps
from bart_export.recipes.table import RECIPES, ROUNDING
from bart_export.verify.compare import Cases, compare_model
from bart_export.verify.data import Example, Texts
from bart_export.verify.tolerance import bounds_of, check_measurable, require
from bart_export.verify.traces import teacher_force

INT8 = RECIPES["dynamic_wi8_afp32"]


@pytest.fixture(scope="module")
def mini():
    return Judged("bart_mini_en")


@pytest.fixture
def float_file(symmetric_artifact):
    """Return the bytes of a right file, to be broken in place."""
    return bytearray(symmetric_artifact.path("tflite/float32.tflite").read_bytes())


def test_a_right_file_passes_with_figures_that_say_so(tiny, float_file, tmp_path):
    comparison, answers = tiny.check(float_file, FLOAT32, tmp_path / "it")
    assert 0 < comparison.rounding < ROUNDING
    assert 0 < comparison.float32 < 1e-3 * comparison.spread
    assert (comparison.top1, comparison.tokens) == (1.0, 1.0)
    assert comparison.questions == len(answers) == 9
    # Every greedy answer's tokens but the last were fed.
    assert comparison.steps == sum(
        len(answer.token_ids) - 1
        for question, answer in zip(tiny.asked.questions, answers, strict=True)
        if question.setting == "greedy"
    )


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


def beams_not_gathered(monkeypatch):
    """Let every beam continue its own cache, whatever beam it came from."""

    def gather(table, rows):
        # Caches have four axes, tables two.
        return (
            table + 0.0 * tf.cast(tf.reduce_sum(rows), tf.float32)
            if len(table.shape) == 4
            else tf.gather(table, rows)
        )

    monkeypatch.setattr(steps, "tf", types.SimpleNamespace(**{**vars(tf), "gather": gather}))


def padding_seen(monkeypatch):
    """Add nothing to the scores of positions that must not be seen yet."""
    monkeypatch.setattr(steps, "MASK_BIAS", 0.0)


@pytest.mark.parametrize("harm", [wrong_epsilon, cache_one_off, beams_not_gathered, padding_seen])
def test_a_wrong_graph_fails(tiny, tmp_path, monkeypatch, harm):
    harm(monkeypatch)
    tflite.write_float(tiny.parameters, tmp_path / "wrong")
    with pytest.raises(VerificationFailed):
        tiny.check((tmp_path / "wrong").read_bytes(), FLOAT32, tmp_path / "it")


def test_an_int8_file_passes_and_fails_with_one_scale_three_times_too_large(
    mini, mini_artifact, tmp_path
):
    content = bytearray(mini_artifact.path("tflite/dynamic_wi8_afp32.tflite").read_bytes())
    comparison, _ = mini.check(content, INT8, tmp_path / "it")
    assert 1e-3 < comparison.relative < 0.05
    triple_the_scales(content)
    with pytest.raises(VerificationFailed, match="relative error"):
        mini.check(content, INT8, tmp_path / "it")


RIGHT = FileVerification(
    file="it",
    logits=9e-5,
    spread=0.5,
    relative=9e-6,
    rounding=3.9,
    float32=5e-5,
    kl=1e-9,
    top1=1.0,
    tokens=1.0,
    steps=20,
    questions=9,
    signatures={},
)


@pytest.mark.parametrize(
    ("recipe", "figures"),
    [
        (FLOAT32, {}),
        (FLOAT32, {"logits": 3.0, "relative": 0.1, "top1": 0.9}),  # what float32 costs is measured
        (INT8, {"logits": 3.0, "relative": 0.14, "top1": 0.91, "tokens": 0.0}),
    ],
)
def test_figures_within_tolerance_pass(recipe, figures):
    require("it", bounds_of(recipe, dataclasses.replace(RIGHT, **figures)))


@pytest.mark.parametrize(
    ("recipe", "figures", "words"),
    [
        (FLOAT32, {"rounding": 4.06}, "in units of what float32 costs Keras, must be at most 4"),
        (FLOAT32, {"rounding": 4.06}, "received 4.06. To accept it: --tolerance rounding=4.1.$"),
        (FLOAT32, {"rounding": math.nan}, "received nan.$"),
        (FLOAT32, {"tokens": 8 / 9}, "equal answers must be at least 1"),
        (
            FLOAT32,
            {"weights": 1.06, "worst_row": "a, row 3"},
            "in rounding steps, a, row 3, must be at most 1, received 1.06.$",
        ),
        (INT8, {"relative": 0.1601}, "0.1601. To accept it: --tolerance relative=0.17.$"),
        (INT8, {"top1": 0.879}, "0.879. To accept it: --tolerance top1=0.87.$"),
        (INT8, {"weights": math.nan}, "received nan"),
        (INT8, {"top1": 0.89}, "likeliest token must be at least 0.9"),
        (INT8, {"top1": math.nan}, "received nan"),
    ],
)
def test_a_figure_outside_fails_by_its_name(recipe, figures, words):
    with pytest.raises(VerificationFailed, match=words):
        require("it", bounds_of(recipe, dataclasses.replace(RIGHT, **figures)))


def test_over_many_texts_a_near_tie_may_be_decided_otherwise():
    def require_share(share, file):
        figures = dataclasses.replace(RIGHT, tokens=share, data=file)
        require("it", bounds_of(FLOAT32, figures))

    file = TextFile("0" * 64, 775)
    require_share(0.992, file)
    with pytest.raises(VerificationFailed):
        require_share(0.992, None)
    with pytest.raises(VerificationFailed, match="equal answers must be at least 0.99"):
        require_share(0.98, file)


def test_a_bound_on_what_was_not_measured_is_refused_in_one_line():
    def texts(reference):
        return Texts([Example("a"), Example("b", reference)], TextFile("0" * 64, 2))

    check_measurable({"rouge_l": 0.5}, texts("c"))
    for refused in (texts(None), None):
        with pytest.raises(ConfigurationError, match="rouge_l needs texts with references"):
            check_measurable({"rouge_l": 0.5}, refused)


def test_logits_that_are_all_equal_are_compared_all_the_same(tiny):
    """A checkpoint of zeros gives the same logit for every token."""

    class Zeros:
        config = tiny.info.config

        def start(self, token_ids, num_beams, max_length):
            return num_beams

        def step(self, state, token_ids, beam_index):
            return np.zeros((state, tiny.info.config.vocabulary_size), np.float32), state

    teacher = functools.partial(teacher_force, Zeros())
    cases = Cases.ask(Zeros(), tiny.info.tokenizer, tiny.asked.questions, teacher)
    comparison, _ = compare_model("it", Zeros(), tiny.info.tokenizer, cases)
    assert (comparison.relative, comparison.spread) == (0.0, 0.0)


@pytest.mark.parametrize("signature", ["decode", "decode_single"])
def test_both_kinds_of_decoding_are_compared(tiny, tmp_path, monkeypatch, signature):
    def harmed(config, parameters, given):
        outputs = getattr(steps, signature)(config, parameters, given)
        return outputs | {"logits": outputs["logits"] * 1.01}

    monkeypatch.setitem(steps.STEPS, signature, harmed)
    tflite.write_float(tiny.parameters, tmp_path / "wrong")
    with pytest.raises(VerificationFailed, match="what float32 costs Keras"):
        tiny.check((tmp_path / "wrong").read_bytes(), FLOAT32, tmp_path / "it")
