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
    cache_one_off,
    swap_rows,
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


def scaled(signature):
    """Return a harm that makes the logits of one kind of decoding 1 % too large."""

    def harm(monkeypatch):
        right = steps.STEPS[signature]

        def wrong(config, parameters, given):
            outputs = right(config, parameters, given)
            return outputs | {"logits": outputs["logits"] * 1.01}

        monkeypatch.setitem(steps.STEPS, signature, wrong)

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        wrong_epsilon,
        cache_one_off,
        beams_not_gathered,
        padding_seen,
        scaled("decode"),
        scaled("decode_single"),
    ],
)
def test_a_wrong_graph_fails(tiny, tmp_path, monkeypatch, harm):
    harm(monkeypatch)
    tflite.write_float(tiny.parameters, tmp_path / "wrong")
    with pytest.raises(VerificationFailed):
        tiny.check((tmp_path / "wrong").read_bytes(), FLOAT32, tmp_path / "it")


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


TEXTS = TextFile("0" * 64, 775)


@pytest.mark.parametrize(
    ("recipe", "figures", "words"),
    [
        (FLOAT32, {}, None),
        # What float32 costs is measured: other figures are not bounded.
        (FLOAT32, {"logits": 3.0, "relative": 0.1, "top1": 0.9}, None),
        (INT8, {"logits": 3.0, "relative": 0.14, "top1": 0.91, "tokens": 0.0}, None),
        (
            FLOAT32,
            {"rounding": 4.06},
            "in units of Keras' float32 error, must be at most 4, received 4.06. "
            "To accept it: --tolerance rounding=4.1.$",
        ),
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
        # Over many texts a near tie may be decided otherwise.
        (FLOAT32, {"tokens": 0.992}, "equal answers must be at least 1"),
        (FLOAT32, {"tokens": 0.992, "data": TEXTS}, None),
        (FLOAT32, {"tokens": 0.98, "data": TEXTS}, "equal answers must be at least 0.99"),
    ],
)
def test_a_figure_outside_its_tolerance_fails_by_its_name(recipe, figures, words):
    bounds = bounds_of(recipe, dataclasses.replace(RIGHT, **figures))
    if words is None:
        require("it", bounds)
        return
    with pytest.raises(VerificationFailed, match=words):
        require("it", bounds)


def test_a_bound_on_what_was_not_measured_is_refused_in_one_line():
    def texts(reference):
        return Texts([Example("a"), Example("b", reference)], TEXTS)

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
