"""The gate catches broken files, even if rounding hides the error in the logits."""

import json

import numpy as np
import pytest
from support import judged_models
from support.judged_models import position_one_off, triple_one_scale, wrong_epsilon

from bart_export.contract import StaticShapes
from bart_export.errors import VerificationFailed
from bart_export.recipes import metrics
from bart_export.recipes.table import ROUNDING
from bart_export.verify import checks, structure, traces
from bart_export.verify.compare import compare
from bart_export.verify.data import read_texts

SHAPES = StaticShapes((16, 64), 24, (1, 4), draft_length=5, sources=(3,))
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


def test_correct_files_pass_with_all_metrics(tiny, base, int8):
    gate = tiny.gate(base)
    for file in (int8, base):
        comparison, answers = gate.check(file, tiny.asked)
        assert comparison.questions == len(answers) == 9
        figures = comparison.to_dict()
        assert figures.keys() >= metrics.METRICS.keys()
        signatures = figures["signatures"]
        decoders = {"decode", "decode_single", "decode of 3 sources", "decode_single of 3 sources"}
        assert set(signatures) == {"encode", "decode_draft", *decoders}
        for name in ("logits", "relative", "kl"):
            worst = max(signatures[decode][name] for decode in signatures.keys() - {"encode"})
            assert figures[name] == worst > 0
        assert 0 < signatures["encode"]["relative"] < (1e-4, 0.2)[file is int8]
    assert (comparison.weights, comparison.top1, comparison.tokens) == (0, 1, 1)
    assert 0 < comparison.rounding < ROUNDING
    assert 0 < comparison.float32 < 1e-3 * comparison.spread
    # All tokens of a greedy answer but the last are fed.
    assert comparison.steps == sum(
        len(answer.token_ids) - 1
        for question, answer in zip(tiny.asked.questions, answers, strict=True)
        if question.setting == "greedy"
    )


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (triple_one_scale, "worst row of a matrix, .* decoder/layer_0/feedforward_output, row 5,"),
        (
            judged_models.change_an_epsilon,
            "differs from the graph of its float32 file: in .*, operator",
        ),
    ],
)
def test_a_changed_int8_file_is_caught(tiny, base, int8, tmp_path, harm, words):
    wrong = tiny.changed(int8, harm, tmp_path / "it")
    with pytest.raises(VerificationFailed, match=rf"^it .*{words}"):
        tiny.gate(base).check(wrong, tiny.asked)


@pytest.mark.parametrize("harm", [wrong_epsilon, position_one_off])
def test_a_wrong_graph_is_caught_if_only_its_int8_file_is_exported(
    tiny, base, tmp_path, monkeypatch, harm
):
    harm(monkeypatch)
    wrong_base = tiny.float_file(tmp_path / "float32.tflite")
    wrong = tiny.quantized(wrong_base)
    with pytest.raises(VerificationFailed, match=r"^float32.tflite differs from the Keras model"):
        tiny.gate(wrong_base).check(wrong, tiny.asked)
    # Its structure differs from that of a correct float file.
    with pytest.raises(VerificationFailed, match="differs from the graph of its float32 file"):
        structure.compare_graphs("it", wrong.path, base.path)


def test_the_float_file_is_checked_once(tiny, base, int8, monkeypatch):
    gate = tiny.gate(base)
    gate.check(int8, tiny.asked)
    compared = []

    def record(file, baseline, cases):
        compared.append(file.name)
        return compare(file, baseline, cases)

    monkeypatch.setattr(checks, "compare", record)
    gate.check(int8, tiny.asked)
    assert compared == [int8.name]


def test_texts_replace_the_golden_ones(tiny, base, int8, texts):
    gate = tiny.gate(base, read_texts(texts))
    comparison, answers = gate.check(int8, tiny.asked)
    assert len(answers) == 9  # of golden.json
    assert comparison.questions == comparison.data.texts == 3
    assert len(comparison.data.sha256) == 64
    assert set(comparison.rouge) == {"rouge_1", "rouge_2", "rouge_l"}
    assert comparison.rouge_l == comparison.rouge["rouge_l"].loss
    exact, _ = gate.check(base, tiny.asked)
    assert (exact.tokens, exact.rouge_l) == (1.0, 0.0)
    # They are compared with the Keras model, not with the float file.
    assert 0 < exact.logits < 2 * ROUNDING * exact.float32
    # They are generated with the model's defaults.
    num_beams = [question.generation.num_beams for question in gate.text_cases.questions]
    assert num_beams == [tiny.info.generation.num_beams] * 3
    assert gate.text_cases.references == ["the river rose", "a library", None]
    trace = gate.text_cases.traces[0]
    logits = gate.text_cases.teacher(trace).logits
    assert logits.argmax(-1).tolist()[:-1] == list(trace.fed_token_ids[1:])


def test_every_bucket_of_a_static_build_is_compared(tiny, tmp_path):
    base = tiny.float_file(tmp_path / "float32.static.tflite", SHAPES)
    with base.open() as model:
        for pair in traces.signature_pairs(model):
            if not pair.draft:
                bucket = pair.model.sizing.decode(1, pair.source_length, pair.rows, 24)
                assert bucket.name == pair.decode
    int8 = tiny.quantized(base)
    comparison, answers = tiny.gate(base).check(int8, tiny.asked)
    decoders = ["decode_draft_16", "decode_draft_64"]
    for name in ("decode_{}_{}_3", "decode_{}_{}_3 of 3 sources"):
        decoders += [name.format(source, beams) for source in (16, 64) for beams in (1, 4)]
    decoders += [f"decode_{source}_{beams}" for source in (16, 64) for beams in (1, 4)]
    assert set(comparison.signatures) == {"encode_16", "encode_64", *decoders}
    assert all(comparison.signatures[name]["steps"] > 10 for name in decoders)
    # Sources of more than 64 tokens have no answer, but they are cut and compared.
    fits = [len(question.source_token_ids) <= 64 for question in tiny.asked.questions]
    assert [answer is not None for answer in answers] == fits

    def spoil(content):
        judged_models.replace(content, np.frombuffer(b"decode_64_4", np.uint8),
                              np.frombuffer(b"decode_64_9", np.uint8))  # fmt: skip

    with pytest.raises(VerificationFailed, match="must have the signatures"):
        tiny.gate(base).check(tiny.changed(int8, spoil, tmp_path / "it"), tiny.asked)
