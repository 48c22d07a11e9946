"""The options of an export, and the errors before anything is loaded."""

import json
from pathlib import Path

import pytest
from support.command import printed, refusal
from support.paths import ROOT, SYMMETRIC

from bart_export.artifact import bundle
from bart_export.cli import export
from bart_export.contract import StaticShapes
from bart_export.export.options import EdgeTpuOptions, SavedModelOptions, TfliteOptions
from bart_export.presets import ASSETS, CALIBRATION_FILE
from bart_export.recipes.table import DEFAULT, RECIPES
from bart_export.verify.data import read_texts


@pytest.fixture
def asked(monkeypatch):
    """Return `asked(arguments...)`: the arguments of `export_to` for a preset `p`."""
    calls = []
    monkeypatch.setattr(export, "export_to", lambda *given: calls.append(given))

    def parse(*arguments):
        printed("--preset", "p", *arguments)
        return calls[-1]

    return parse


@pytest.fixture
def clone(monkeypatch, tmp_path):
    """Change to a directory with this repository's app."""
    monkeypatch.chdir(tmp_path)
    bundle.PROJECT.parent.mkdir()
    bundle.PROJECT.touch()


TFLITE, STATIC = ("--target", "tflite"), ("--target", "tflite", "--shapes", "static")
EDGETPU, SAVED_MODEL = ("--target", "edgetpu"), ("--target", "saved_model")
RECIPE = (RECIPES[DEFAULT],)
USUAL = StaticShapes(export.SOURCE_LENGTHS, export.TARGET_LENGTH, export.NUM_BEAMS)
MINI = ASSETS / "bart_mini_en" / CALIBRATION_FILE
BOUNDS = ("--tolerance", "top1=0.5,kl=1", "--tolerance", "relative=2")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (TFLITE, TfliteOptions(RECIPE)),
        ((*TFLITE, "--shapes", "dynamic"), TfliteOptions(RECIPE)),
        (STATIC, TfliteOptions(RECIPE, USUAL)),
        (
            (*STATIC, "--source-lengths", "64,32", "--num-beams", "2"),
            TfliteOptions(RECIPE, StaticShapes((32, 64), export.TARGET_LENGTH, (2,))),
        ),
        (
            (*STATIC, "--source-lengths", "64", "--sources", "8,4"),
            TfliteOptions(
                RECIPE,
                StaticShapes((64,), export.TARGET_LENGTH, export.NUM_BEAMS, sources=(1, 4, 8)),
            ),
        ),
        (
            (*TFLITE, *BOUNDS, "--data", str(MINI), "--calibration-data", str(MINI)),
            TfliteOptions(
                RECIPE, None, read_texts(MINI), read_texts(MINI),
                {"top1": 0.5, "kl": 1.0, "relative": 2.0},
            ),
        ),
        (SAVED_MODEL, SavedModelOptions()),
        ((*SAVED_MODEL, "--num-beams", "3"), SavedModelOptions(num_beams=3)),
        (EDGETPU, EdgeTpuOptions()),
        (
            (*EDGETPU, "--source-lengths", "64", "--tolerance", "kl=1"),
            EdgeTpuOptions(64, None, {"kl": 1.0}),
        ),
    ],
)  # fmt: skip
def test_arguments_become_options(asked, arguments, options):
    _, target, given, output, android, task = asked(*arguments, "--task", "summarization")
    assert (target, given, task) == (arguments[1], options, "summarization")
    assert (output, android) == (Path("artifacts/p"), None)


@pytest.mark.parametrize(
    ("arguments", "directory", "shapes"),
    [
        (("--android",), bundle.ASSETS, USUAL),
        (("--android", "mine"), Path("mine"), USUAL),
        (("--recipe", DEFAULT, "--android=mine", "--shapes", "static"), Path("mine"), USUAL),
        (
            ("--android", "--source-lengths", "64", "--target-length", "32"),
            bundle.ASSETS,
            StaticShapes((64,), 32, export.NUM_BEAMS),
        ),
    ],
)
def test_a_bundle_is_of_a_static_build(asked, clone, arguments, directory, shapes):
    _, _, options, _, android, _ = asked(*TFLITE, *arguments)
    assert (options, android) == (TfliteOptions(RECIPE, shapes), directory)


def test_a_bundle_for_our_app_is_made_only_where_our_app_is(monkeypatch, tmp_path):
    assert (ROOT / bundle.PROJECT).is_file()
    monkeypatch.chdir(tmp_path)
    words = "in a clone, or name a directory: --android DIRECTORY"
    assert words in refusal("--preset", "p", *TFLITE, "--android")
    assert list(tmp_path.iterdir()) == []


def test_all_recipes_and_a_file_of_ones_own(asked, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "mode": "dynamic", "layers": [[".*", "int8"]]}))
    _, _, options, *_ = asked(*TFLITE, "--recipe", f"all,{path}", "--recipe", "float32")
    assert [recipe.name for recipe in options.recipes] == [*RECIPES, "mine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*TFLITE, "--source-lengths", "64"), "--source-lengths needs --shapes static"),
        ((*TFLITE, "--num-beams", "4"), "--num-beams needs --shapes static"),
        ((*TFLITE, "--android", "--shapes", "dynamic"), "--android cannot be combined"),
        ((*TFLITE, "--android", "--recipe", "all"), "--android takes one recipe"),
        ((*TFLITE, "--android", "artifacts/p"), "must be outside the artifact artifacts/p"),
        ((*TFLITE, "--android", "artifacts/p/in"), "must be outside"),
        ((*TFLITE, "--android", "artifacts"), "must be outside"),
        (("--target", "saved_model", "--android"), "--android applies to --target tflite"),
        ((*TFLITE, "--shapes", "static", "--num-beams", "1,x"), "'x' is not a valid integer"),
        ((*TFLITE, "--shapes", "static", "--num-beams", "1,0"), "0 is not in the range"),
        ((*TFLITE, "--shapes", "static", "--num-beams", "257"), "at most 256, received 257"),
        ((*TFLITE, "--android", "--num-beams", "32", "--sources", "16"), "received 512"),
        (
            (*TFLITE, "--android", "..", "--output", "/made"),
            "Name another directory with --android.",
        ),
        ((*TFLITE, "--output", ""), "received an empty path"),
        ((*TFLITE, "--dtype", "bfloat16"), "--dtype applies to --target saved_model"),
        ((*TFLITE, "--data", "none.jsonl"), "Cannot read the data file none.jsonl"),
        ((*TFLITE, "--calibration-data", "none.jsonl"), "Cannot read the data file none.jsonl"),
        ((*TFLITE, "--tolerance", "top1"), "NAME=VALUE"),
        ((*TFLITE, "--tolerance", "best=1"), "metric must be one of"),
        ((*TFLITE, "--tolerance", "top1=2"), "received 2. Did you mean 0.98?"),
        ((*TFLITE, "--recipe", "none.json"), "Cannot read the recipe none.json"),
        ((*TFLITE, "--recipe", "float31"), "Did you mean float32?"),
        (("--target", "saved_model", "--num-beams", "1,4"), "a fixed number of beams"),
        (("--target", "edgetpu", "--source-lengths", "1,2"), "Segments have a fixed length"),
        (("--target", "edgetpu", "--num-beams", "2"), "applies to --target tflite and saved_model"),
        (("--target", "saved_model", "--recipe", "float32"), "--recipe applies to --target tflite"),
        (("--target", "saved_model", "--tolerance", "kl=1"), "--tolerance applies to"),
        (("--shapes", "static"), "--target is missing"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, words):
    assert words in refusal("--preset", "p", *arguments)


def test_settings_that_do_not_fit_the_preset_are_named_as_they_were_given():
    line = refusal("--preset", SYMMETRIC, *SAVED_MODEL, "--num-return-sequences", "2")
    assert "--num-return-sequences must not exceed --num-beams" in line
    assert "num_" not in line
