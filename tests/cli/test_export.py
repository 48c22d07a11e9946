"""The options of an export: what they come to, and what is refused before anything is loaded."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bart_export.artifact import bundle
from bart_export.cli import export
from bart_export.cli.main import main
from bart_export.contract import StaticShapes
from bart_export.export.options import EdgeTpuOptions, SavedModelOptions, TfliteOptions
from bart_export.recipes.table import DEFAULT, RECIPES


@pytest.fixture
def options(monkeypatch):
    """Return `options(arguments...)`: what the export would be called with."""
    seen = []
    monkeypatch.setattr(export, "export_to", lambda *given: seen.append(given))

    def parse(*arguments):
        result = CliRunner().invoke(main, ["--preset", "p", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return seen[-1][2]

    return parse


@pytest.fixture
def clone(monkeypatch, tmp_path):
    """Be where the app of this repository is."""
    monkeypatch.chdir(tmp_path)
    bundle.PROJECT.parent.mkdir()
    bundle.PROJECT.touch()


TFLITE = ("--target", "tflite")


def test_what_is_not_said_is_the_default(options):
    assert options(*TFLITE) == TfliteOptions((RECIPES[DEFAULT],))
    assert options("--target", "saved_model") == SavedModelOptions()


def test_a_static_build_has_buckets_in_order(options):
    static = options(*TFLITE, "--shapes", "static", "--source-lengths", "64,32", "--num-beams", "2")
    assert static.shapes == StaticShapes((32, 64), export.TARGET_LENGTH, (2,))
    assert options(*TFLITE, "--shapes", "dynamic").shapes is None


@pytest.mark.parametrize(
    ("arguments", "directory"),
    [
        (("--android",), bundle.ASSETS),
        (("--android", "--recipe", DEFAULT), bundle.ASSETS),
        (("--android", "mine"), Path("mine")),
        (("--recipe", DEFAULT, "--android=mine", "--shapes", "static"), Path("mine")),
    ],
)
def test_a_bundle_is_of_a_static_build(monkeypatch, clone, arguments, directory):
    seen = []
    monkeypatch.setattr(export, "export_to", lambda *given: seen.append(given))
    asked = ["--preset", "p", *TFLITE, *arguments]
    result = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    _, _, options, output, android, _ = seen[0]
    shapes = StaticShapes(export.SOURCE_LENGTHS, export.TARGET_LENGTH, export.NUM_BEAMS)
    assert options == TfliteOptions((RECIPES[DEFAULT],), shapes)
    assert (output, android) == (Path("artifacts/p"), directory)


def test_a_bundle_has_the_buckets_that_are_asked_for(options, clone):
    chosen = options(*TFLITE, "--android", "--source-lengths", "64", "--target-length", "32")
    assert chosen.shapes == StaticShapes((64,), 32, export.NUM_BEAMS)


def test_a_bundle_for_our_app_is_made_only_where_our_app_is(monkeypatch, tmp_path):
    assert (Path(__file__).parents[2] / bundle.PROJECT).is_file()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["--preset", "p", *TFLITE, "--android"])
    assert result.exit_code == 2
    assert "in a clone, or name a directory: --android DIRECTORY" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_bundle_is_made_unless_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(export, "export_to", lambda *given: seen.append(given))
    CliRunner().invoke(main, ["--preset", "p", *TFLITE], catch_exceptions=False)
    assert seen[0][4:] == (None, None)


def test_a_task_reaches_every_target(monkeypatch):
    seen = []
    monkeypatch.setattr(export, "export_to", lambda *given: seen.append(given))
    for target in export.TARGETS:
        asked = ["--preset", "p", "--target", target, "--task", "summarization"]
        CliRunner().invoke(main, asked, catch_exceptions=False)
    assert [given[5] for given in seen] == ["summarization"] * len(export.TARGETS)


def test_all_recipes_and_a_file_of_ones_own(options, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "mode": "dynamic", "layers": [[".*", "int8"]]}))
    chosen = options(*TFLITE, "--recipe", f"all,{path}", "--recipe", "float32")
    assert [recipe.name for recipe in chosen.recipes] == [*RECIPES, "mine"]


def test_bounds_and_texts_reach_the_export(options, tmp_path):
    data = str(tmp_path / "texts.jsonl")
    bounds = ("--tolerance", "top1=0.5,kl=1", "--tolerance", "relative=2")
    chosen = options(*TFLITE, *bounds, "--data", data)
    assert chosen.tolerance == {"top1": 0.5, "kl": 1.0, "relative": 2.0}
    assert str(chosen.data) == data


def test_segments_have_one_length(options):
    chosen = options("--target", "edgetpu", "--source-lengths", "64", "--tolerance", "kl=1")
    assert chosen == EdgeTpuOptions(64, None, {"kl": 1.0})
    assert options("--target", "edgetpu") == EdgeTpuOptions()


def test_a_saved_models_beams_are_one_number(options):
    assert options("--target", "saved_model", "--num-beams", "3").num_beams == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*TFLITE, "--source-lengths", "64"), "--source-lengths needs --shapes static"),
        ((*TFLITE, "--num-beams", "4"), "--num-beams needs --shapes static"),
        ((*TFLITE, "--android", "--shapes", "dynamic"), "--android needs --shapes static"),
        ((*TFLITE, "--android", "--recipe", "all"), "--android takes one recipe"),
        ((*TFLITE, "--android", "artifacts/p"), "must lie apart from the artifact artifacts/p"),
        ((*TFLITE, "--android", "artifacts/p/in"), "must lie apart"),
        ((*TFLITE, "--android", "artifacts"), "must lie apart"),
        (("--target", "saved_model", "--android"), "--android belongs to --target tflite"),
        ((*TFLITE, "--shapes", "static", "--num-beams", "1,x"), "'x' is not a valid integer"),
        ((*TFLITE, "--shapes", "static", "--num-beams", "1,0"), "0 is not in the range"),
        ((*TFLITE, "--dtype", "bfloat16"), "--dtype belongs to --target saved_model"),
        ((*TFLITE, "--tolerance", "top1"), "NAME=VALUE"),
        ((*TFLITE, "--tolerance", "best=1"), "metric must be one of"),
        ((*TFLITE, "--tolerance", "top1=2"), "received 2. Did you mean 0.98?"),
        ((*TFLITE, "--recipe", "none.json"), "Cannot read the recipe none.json"),
        ((*TFLITE, "--recipe", "float31"), "Did you mean float32?"),
        (("--target", "saved_model", "--num-beams", "1,4"), "one number of beams"),
        (("--target", "edgetpu", "--source-lengths", "1,2"), "Segments have one length"),
        (("--target", "edgetpu", "--num-beams", "2"), "belongs to --target tflite and saved_model"),
        (("--target", "saved_model", "--recipe", "float32"), "--recipe belongs to --target tflite"),
        (("--target", "saved_model", "--tolerance", "kl=1"), "--tolerance belongs to"),
        (("--shapes", "static"), "--target is missing"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, words):
    result = CliRunner().invoke(main, ["--preset", "p", *arguments])
    assert result.exit_code == 2
    assert words in result.output
