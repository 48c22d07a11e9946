"""`bart-export verify` finds damaged files, with a preset and with texts alone."""

import json

import pytest
from support.command import printed, python, refusal, run
from support.golden_cases import preset_of
from support.judged_models import INT8, change_an_epsilon
from support.made_up_artifacts import variant

from bart_export.checkpoints.weight_names import layer_names
from bart_export.convert.quantize import quantize
from bart_export.export.tflite_target import file_entry
from bart_export.recipes.table import ROUNDING

FLOAT_FILE, INT8_FILE = "tflite/float32.tflite", "tflite/dynamic_wi8_afp32.tflite"
TEXTS = [
    {"text": "The river rose two metres overnight.", "reference": "the river rose"},
    {"text": "A library for reading archives, which streams.", "reference": "a library"},
]


def with_int8(made, content, target):
    """Commit a copy of an artifact with this content as its int8 file."""

    def write(draft):
        (draft.directory / INT8_FILE).write_bytes(content)
        return {INT8_FILE: file_entry(draft, INT8_FILE, INT8, made.config)}

    return variant(made, target, write)


@pytest.fixture(scope="module")
def both(symmetric_artifact, tmp_path_factory):
    """Return an artifact with a correct float32 and int8 file."""
    layers = layer_names(symmetric_artifact.config)
    content = quantize(symmetric_artifact.path(FLOAT_FILE), INT8, layers)
    return with_int8(symmetric_artifact, content, tmp_path_factory.mktemp("both") / "artifact")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return str(path)


def test_right_files_pass_against_their_preset(both):
    against = "--against", preset_of(both), "--json"
    rows = json.loads(printed("verify", both.directory, *against))["files"]
    assert [(row["file"], row["failures"]) for row in rows] == [(FLOAT_FILE, []), (INT8_FILE, [])]
    exact, rounded = (row["figures"] for row in rows)
    assert (exact["weights"], exact["tokens"]) == (0, 1.0)
    assert 0.25 < rounded["weights"] < 0.5
    assert exact["rounding"] < ROUNDING < rounded["rounding"]


def test_the_command_ends_with_exit_code_1_and_one_line(both, tmp_path, texts):
    content = bytearray(both.path(INT8_FILE).read_bytes())
    change_an_epsilon(content)
    wrong = with_int8(both, content, tmp_path / "wrong")
    result = run("verify", wrong.directory, "--against", preset_of(both), "--data", texts)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: 1 of 2 files are outside their tolerance. The first: tflite/dyn")
    assert "differs from the graph of its float32 file" in line
    assert result.stdout.count("tflite/float32.tflite") == 1


def test_with_texts_alone_the_float32_file_is_what_others_are_compared_with(both, texts):
    report = json.loads(printed("verify", both.directory, "--data", texts, "--json"))
    assert report["against"] is None
    assert report["data"]["texts"] == 2
    (row,) = report["files"]
    assert (row["file"], row["passed"], row["failures"]) == (INT8_FILE, True, [])
    figures = row["figures"]
    assert figures["rouge_l"] == figures["rouge"]["rouge_l"]["loss"]
    decoders = {"decode", "decode_single", "decode of 3 sources", "decode_single of 3 sources"}
    assert set(figures["signatures"]) == {"encode", "decode_draft", *decoders}


def test_a_table_shows_every_file_and_bounds_can_be_given(both, texts):
    bounds = "--tolerance", "relative=0.001", "--tolerance", "kl=9"
    result = run("verify", both.directory, "--data", texts, *bounds)
    assert result.exit_code == 1
    assert INT8_FILE in result.stdout.splitlines()[4]
    assert "must be at most 0.001" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tolerance", "relative=1"], "--tolerance needs --data, --against or both"),
        (["--data", "missing.jsonl"], "missing.jsonl: No such file"),
        (["--data", "TEXTS", "--tolerance", "speed=1"], "A metric must be one of"),
        (["--data", "TEXTS", "--tolerance", "top1=98"], "received 98. Did you mean 0.98?"),
        (
            ["--against", "bart_mini_en"],
            "the same architecture, received bart_mini_en, whose architecture is different",
        ),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(both, texts, options, words):
    options = [texts if option == "TEXTS" else option for option in options]
    assert words in refusal("verify", both.directory, *options)


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (FLOAT_FILE, "the artifact has none. Compare with its checkpoint"),
        (INT8_FILE, "the artifact has no quantized file. Compare it with its checkpoint"),
    ],
)
def test_texts_alone_need_a_float32_file_and_another(both, texts, tmp_path, lacking, words):
    less = variant(both, tmp_path / "less", without=[lacking])
    assert words in refusal("verify", less.directory, "--data", texts)


def test_texts_alone_need_no_tensorflow(both, texts):
    program = (
        "import sys; from bart_export.cli.main import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    done = python(program, "verify", both.directory, "--data", texts)
    assert done.returncode == 0, done.stderr


def test_what_was_not_asked_is_told(saved_model_artifact, symmetric_artifact):
    def verify(artifact, *arguments):
        return printed("verify", artifact.directory, *arguments)

    assert "saved_model/1: only hashes were checked" in verify(saved_model_artifact)
    assert json.loads(verify(saved_model_artifact, "--json"))["not_asked"] == ["saved_model/1"]
    assert "only hashes" not in verify(symmetric_artifact)
    assert json.loads(verify(symmetric_artifact, "--json"))["not_asked"] == []
