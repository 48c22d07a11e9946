"""The gate: a file made bad on purpose is caught, also where rounding hides it in the logits."""

import dataclasses
import json
from types import MappingProxyType

import numpy as np
import pytest
from support import judged_models
from support.judged_models import (
    FLOAT32,
    INT8,
    cache_one_off,
    swap_rows,
    triple_one_scale,
    triple_the_scales,
    wrong_epsilon,
)

from bart_export.contract import StaticShapes
from bart_export.errors import ConfigurationError, InputError, VerificationFailed
from bart_export.recipes import metrics
from bart_export.recipes.table import ROUNDING
from bart_export.verify import checks, data, structure
from bart_export.verify.compare import Baseline, compare

SHAPES = StaticShapes(source_lengths=(16, 64), target_length=24, num_beams=(1, 4))
TEXTS = [
    {"text": "The river rose two metres overnight.", "reference": "the river rose"},
    {"text": "A library for reading archives, which streams.", "reference": "a library"},
    {"text": "No reference."},
]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return path


def test_right_files_pass_with_a_row_of_every_metric(tiny, base, int8):
    gate = tiny.gate(base)
    for file in (int8, base):
        comparison, answers = gate.check(file, tiny.asked)
        assert len(answers) == 9
        figures = comparison.to_dict()
        assert figures.keys() >= metrics.METRICS.keys()
        assert set(figures["signatures"]) == {"encode", "decode", "decode_single"}
        for name in ("logits", "relative", "kl"):
            worst = max(figures["signatures"][one][name] for one in ("decode", "decode_single"))
            assert figures[name] == worst > 0
        assert 0 < figures["signatures"]["encode"]["relative"] < (1e-4, 0.2)[file is int8]
    assert comparison.weights == 0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (triple_the_scales, "worst row of a matrix, in rounding steps, decoder/layer_0/feedfor"),
        (triple_one_scale, "worst row of a matrix, .* decoder/layer_0/feedforward_output, row 5,"),
        (swap_rows, "worst row of a matrix, .* token_embedding, row [79]00,"),
        (judged_models.change_an_epsilon, "not the graph that it was made of: in .*, operator"),
    ],
)
def test_an_int8_file_that_was_changed_is_caught(tiny, base, int8, tmp_path, harm, words):
    wrong = tiny.changed(int8, harm, tmp_path / "it")
    with pytest.raises(VerificationFailed, match=rf"^it .*{words}.* Nothing was committed\.$"):
        tiny.gate(base).check(wrong, tiny.asked)


@pytest.mark.parametrize("harm", [wrong_epsilon, cache_one_off])
def test_a_wrong_graph_is_caught_though_only_its_int8_file_is_wanted(
    tiny, base, tmp_path, monkeypatch, harm
):
    harm(monkeypatch)
    wrong_base = tiny.float_file(tmp_path / "float32.tflite")
    wrong = tiny.quantized(wrong_base)
    with pytest.raises(VerificationFailed, match=r"^float32.tflite does not say what the Keras"):
        tiny.gate(wrong_base).check(wrong, tiny.asked)
    # Beside a right float file its structure gives it away.
    with pytest.raises(VerificationFailed, match="not the graph that it was made of"):
        structure.compare_graphs("it", wrong.path, base.path)


def test_the_base_is_held_once(tiny, base, int8, monkeypatch):
    gate = tiny.gate(base)
    gate.check(int8, tiny.asked)
    compared = []

    def record(file, baseline, cases):
        compared.append(file.name)
        return compare(file, baseline, cases)

    monkeypatch.setattr(checks, "compare", record)
    gate.check(int8, tiny.asked)
    assert compared == [int8.name]


def test_texts_take_the_place_of_the_golden_ones(tiny, base, int8, texts):
    gate = tiny.gate(base, texts)
    comparison, answers = gate.check(int8, tiny.asked)
    assert len(answers) == 9  # those of golden.json all the same
    assert comparison.questions == 3
    assert comparison.data.texts == 3
    assert len(comparison.data.sha256) == 64
    assert set(comparison.rouge) == {"rouge_1", "rouge_2", "rouge_l"}
    assert comparison.rouge_l == comparison.rouge["rouge_l"].loss
    exact, _ = gate.check(base, tiny.asked)
    assert (exact.tokens, exact.rouge_l) == (1.0, 0.0)
    # The Keras model is what they are compared with, not the base itself.
    assert 0 < exact.logits < 2 * ROUNDING * exact.float32


def test_settings_of_the_texts_are_the_model_s_own(tiny, base, texts):
    baseline = Baseline(tiny.info, {None: base}, tiny.read, tiny.asked)
    answered = baseline.ask(data.read(texts))
    assert [one.generation.num_beams for one in answered.questions] == [
        tiny.info.generation.num_beams
    ] * 3
    assert answered.references == ["the river rose", "a library", None]
    logits = answered.teacher(answered.traces[0]).logits
    assert logits.argmax(-1).tolist()[:-1] == list(answered.traces[0].fed_token_ids[1:])


def test_a_bound_on_rouge_needs_references(tiny, base, int8, tmp_path):
    bound = dataclasses.replace(INT8, tolerance=MappingProxyType({"rouge_l": 0.5}))
    bounded = dataclasses.replace(int8, recipe=bound)
    with pytest.raises(ConfigurationError, match="needs texts with references"):
        tiny.gate(base).check(bounded, tiny.asked)
    with pytest.raises(InputError, match="No such file"):
        tiny.gate(base, tmp_path / "missing")


def test_every_bucket_of_a_static_build_is_compared(tiny, tmp_path):
    base = tiny.float_file(tmp_path / "float32.static.tflite", SHAPES)
    int8 = tiny.quantized(base)
    comparison, answers = tiny.gate(base).check(int8, tiny.asked)
    decoders = [f"decode_{source}_{beams}" for source in (16, 64) for beams in (1, 4)]
    assert set(comparison.signatures) == {"encode_16", "encode_64", *decoders}
    assert all(comparison.signatures[name]["steps"] > 10 for name in decoders)
    # Sources of more than 64 tokens have no answer, but their beginnings are compared.
    fits = [len(one.source_token_ids) <= 64 for one in tiny.asked.questions]
    assert [answer is not None for answer in answers] == fits

    def spoil(content):
        judged_models.replace(content, np.frombuffer(b"decode_64_4", np.uint8),
                              np.frombuffer(b"decode_64_9", np.uint8))  # fmt: skip

    with pytest.raises(VerificationFailed, match="must have the signatures"):
        tiny.gate(base).check(tiny.changed(int8, spoil, tmp_path / "it"), tiny.asked)


def test_a_file_that_is_the_base_is_held_to_its_own_recipe(tiny, base, tmp_path):
    wrong = tiny.changed(base, swap_rows, tmp_path / "it")
    with pytest.raises(VerificationFailed, match="^it does not say"):
        tiny.gate(wrong).check(dataclasses.replace(wrong, recipe=FLOAT32), tiny.asked)
