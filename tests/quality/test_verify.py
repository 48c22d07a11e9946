"""A file that does not say what the model says is caught, whatever was broken in it."""

import dataclasses
import math
import types

import numpy as np
import pytest
import tensorflow as tf
import tflite_files

from bart_export import checkpoints
from bart_export.errors import VerificationFailed
from bart_export.graph import steps
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.presets import resolve
from bart_export.quality import golden, verify
from bart_export.quality.figures import Comparison
from bart_export.quality.reference import KerasReference
from bart_export.quality.traces import follow
from bart_export.recipes import RECIPES
from bart_export.runtime.engine import CompiledModelEngine
from bart_export.targets import tflite
from bart_export.text.tokenizer import BartTokenizer

FLOAT32, INT8 = RECIPES["float32"], RECIPES["dynamic_wi8_afp32"]
TABLE = "token_embedding/weights"


class Verifier:
    """A checkpoint's reference, which files are held to."""

    def __init__(self, preset):
        checkpoint = checkpoints.read(resolve(str(preset)).directory)
        self.config = checkpoint.config
        self.parameters = InferenceParameters(
            checkpoint.config, lambda name: np.asarray(checkpoint.weights[name])
        )
        self.tokenizer = BartTokenizer(dict(checkpoint.vocabulary), list(checkpoint.merges))
        questions = golden.questions(
            self.tokenizer,
            checkpoint.config,
            {"defaults": checkpoint.generation},
            checkpoint.encoder_sequence_length,
        )
        model = KerasReference(BartBackbone.from_checkpoint(checkpoint))
        self.reference = verify.consult(model, self.tokenizer, questions)

    def check(self, content, recipe, path):
        path.write_bytes(content)
        engine = CompiledModelEngine(path, self.config, num_threads=1)
        return verify.check("it", recipe, engine, self.tokenizer, self.reference)


@pytest.fixture(scope="module")
def tiny(symmetric_artifact):
    return Verifier(symmetric_artifact.manifest["source"]["handle"])


@pytest.fixture(scope="module")
def mini():
    return Verifier("bart_mini_en")


@pytest.fixture
def float_file(symmetric_artifact):
    """Return the bytes of a right file, to be broken in place."""
    return bytearray(symmetric_artifact.path("tflite/float32.tflite").read_bytes())


def test_a_right_file_passes_with_figures_that_say_so(tiny, float_file, tmp_path):
    comparison, answers = tiny.check(float_file, FLOAT32, tmp_path / "it")
    assert comparison.logits < 1e-4 * comparison.spread
    assert (comparison.top1, comparison.tokens) == (1.0, 1.0)
    assert comparison.questions == len(answers) == 9
    # Every greedy answer's tokens but the last were fed.
    assert comparison.steps == sum(
        len(answer.token_ids) - 1
        for question, answer in zip(tiny.reference.questions, answers, strict=True)
        if question.setting == "greedy"
    )


def swap_rows(content):
    table = tflite_files.weight(content, TABLE).view(np.float32).reshape(1024, 64)
    table[[700, 900]] = table[[900, 700]]


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
    with pytest.raises(VerificationFailed, match=r"^it .*Nothing was committed\.$"):
        tiny.check(float_file, FLOAT32, tmp_path / "it")


def wrong_epsilon(monkeypatch):
    """Normalize once with another epsilon, where the rows are small enough for it to matter."""
    right = steps.layer_norm

    def layer_norm(parameters, name, x):
        if name != "encoder_embeddings_layer_norm":
            return right(parameters, name, x)
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        scaled = (x - mean) * tf.math.rsqrt(variance + 1e-6)
        return scaled * parameters[f"{name}/gamma"] + parameters[f"{name}/beta"]

    monkeypatch.setattr(steps, "layer_norm", layer_norm)


def cache_one_off(monkeypatch):
    """Write keys and values one position after the one that they belong to."""
    shifted = {**vars(tf), "equal": lambda places, position: tf.equal(places, position + 1)}
    monkeypatch.setattr(steps, "tf", types.SimpleNamespace(**shifted))


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
    monkeypatch.setattr(steps, "CLOSED", 0.0)


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
    for scales in tflite_files.scale(content, "decoder/layer_0/feedforward_output/weights"):
        scales *= 3
    with pytest.raises(VerificationFailed, match="relative error"):
        mini.check(content, INT8, tmp_path / "it")


RIGHT = Comparison(
    logits=9e-5,
    spread=0.5,
    relative=9e-6,
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
        (FLOAT32, {"logits": 3.9e-4, "spread": 4.0}),
        (INT8, {"logits": 3.0, "relative": 0.14, "top1": 0.91, "tokens": 0.0}),
    ],
)
def test_figures_within_tolerance_pass(recipe, figures):
    verify.judge("it", recipe, dataclasses.replace(RIGHT, **figures))


@pytest.mark.parametrize(
    ("recipe", "figures", "words"),
    [
        (FLOAT32, {"logits": 1.1e-4}, "largest error of a logit must be at most 0.0001"),
        (FLOAT32, {"logits": 4.1e-4, "spread": 4.0}, "must be at most 0.0004"),
        (FLOAT32, {"logits": math.nan}, "received nan"),
        (FLOAT32, {"relative": 1.1e-5}, "relative error"),
        (FLOAT32, {"relative": math.nan}, "received nan"),
        (FLOAT32, {"top1": 0.99}, "likeliest token must be at least 1"),
        (FLOAT32, {"tokens": 8 / 9}, "equal answers must be at least 1"),
        (INT8, {"relative": 0.16}, "relative error"),
        (INT8, {"top1": 0.89}, "likeliest token must be at least 0.9"),
        (INT8, {"top1": math.nan}, "received nan"),
    ],
)
def test_a_figure_outside_fails_by_its_name(recipe, figures, words):
    with pytest.raises(VerificationFailed, match=words):
        verify.judge("it", recipe, dataclasses.replace(RIGHT, **figures))


def test_logits_that_are_all_equal_are_compared_all_the_same(tiny):
    """A checkpoint of zeros gives the same logit for every token."""

    class Zeros:
        def start(self, token_ids, num_beams, max_length):
            return num_beams

        def step(self, state, token_ids, beam_index):
            return np.zeros((state, tiny.config.vocabulary_size), np.float32), state

        def along(self, trace):
            return follow(self, trace)

    reference = verify.consult(Zeros(), tiny.tokenizer, tiny.reference.questions)
    comparison, _ = verify.check("it", FLOAT32, Zeros(), tiny.tokenizer, reference)
    assert (comparison.relative, comparison.spread) == (0.0, 0.0)


@pytest.mark.parametrize("signature", ["decode", "decode_single"])
def test_both_kinds_of_decoding_are_compared(tiny, tmp_path, monkeypatch, signature):
    def harmed(config, parameters, given):
        outputs = getattr(steps, signature)(config, parameters, given)
        return outputs | {"logits": outputs["logits"] * 1.01}

    monkeypatch.setitem(steps.STEPS, signature, harmed)
    tflite.write_float(tiny.parameters, tmp_path / "wrong")
    with pytest.raises(VerificationFailed, match="largest error"):
        tiny.check((tmp_path / "wrong").read_bytes(), FLOAT32, tmp_path / "it")
