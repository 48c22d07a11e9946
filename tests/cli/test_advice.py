"""The advice in errors about wrong paths, unknown names and missing packages works."""

import importlib.metadata
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support import made_up_artifacts
from support.command import printed, python, refusal
from support.paths import SYMMETRIC

import bart_export
from bart_export import errors
from bart_export.runtime import engine_choice

MINI = Path(bart_export.__file__).parent / "assets/bart_mini_en"
OF_ARTIFACTS = (("generate", "a text"), ("verify",), ("bench",))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Change to a directory with a checkpoint, an artifact and a file."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SYMMETRIC, "my hf dir")
    shutil.copytree(SYMMETRIC, "bart_base_en")
    made_up_artifacts.write(Path("artifacts/made"), {"tflite/float32.tflite": b"x"}, "bart_mini_en")
    Path("file.txt").write_text("x")
    Path("empty").mkdir()
    return tmp_path


EXPORT = "bart-export --preset {} --target tflite"
MADE_WITH = f". Export it to an artifact with: {EXPORT}"
# Arguments given for an artifact, and words of the error.
MISTAKEN = {
    "nope": f"{EXPORT.format('NAME')} --output nope",
    "made": "Did you mean artifacts/made?",
    "artifacts/mad": "artifacts/mad does not exist. Did you mean artifacts/made?",
    "artefacts/maed": "artefacts/maed does not exist. Did you mean artifacts/made?",
    "my hf dir": f"is a checkpoint{MADE_WITH.format(repr('my hf dir'))}",
    "bart_base_en": EXPORT.format("./bart_base_en"),
    "bart_mini_en": f"is a preset{MADE_WITH.format('bart_mini_en')}",
    "kaggle://org/model/keras/x": f"is a preset{MADE_WITH.format('kaggle://org/model/keras/x')}",
    "file.txt": "is not a directory",
    "empty": "has no manifest.json, so it is not a finished artifact",
    "artifacts/made/tflite": "is inside an artifact. Name the artifact: {}/artifacts/made",
    "artifacts/made/tflite/float32.tflite": "Name the artifact: {}/artifacts/made",
    "artifacts/made/manifest.json": "Name the artifact: {}/artifacts/made",
}


@pytest.mark.parametrize("given", MISTAKEN)
@pytest.mark.parametrize("command", OF_ARTIFACTS, ids=lambda one: one[0])
def test_what_is_no_artifact_is_told_what_it_is(place, command, given):
    assert MISTAKEN[given].format(place) in refusal(command[0], given, *command[1:])


@pytest.fixture
def asked(monkeypatch):
    """Record exports instead of running them."""
    calls = []
    monkeypatch.setattr("bart_export.cli.export.export_to", lambda *given: calls.append(given))
    return calls


def test_the_export_that_a_line_proposes_is_one(place, asked):
    for given in ("my hf dir", "bart_base_en", "bart_mini_en", "nope"):
        line = refusal("generate", given, "a text")
        printed(*shlex.split(line[line.index("bart-export ") :])[1:])
    assert [given[0] for given in asked] == [
        "my hf dir", "./bart_base_en", "bart_mini_en", "NAME",
    ]  # fmt: skip


def test_an_artifact_is_no_preset(place):
    line = refusal("--preset", "artifacts/made", "--target", "tflite", "--output", "other")
    assert "is an artifact, not a checkpoint. It was exported from bart_mini_en." in line
    assert "is an artifact" in refusal("tune", "artifacts/made", "--budget", "top1=0.9")


def test_without_a_command_a_path_is_asked_what_it_is_for(place):
    assert "bart-export generate artifacts/made TEXT" in refusal("artifacts/made")
    assert EXPORT.format("bart_mini_en") in refusal("bart_mini_en")
    assert "No such command 'genrate'" in refusal("genrate")
    assert "Give --preset after export" in refusal("--preset", "p", "export", "--target", "tflite")


def test_a_current_directory_that_was_deleted_is_named(place, monkeypatch):
    monkeypatch.chdir("empty")
    (place / "empty").rmdir()
    line = refusal("generate", "nope", "a text")
    assert line == "Error: The current directory: No such file or directory."


def test_export_may_be_named(asked):
    arguments = ["--preset", "p", "--target", "tflite", "--recipe", "float32"]
    printed(*arguments)
    printed("export", *arguments)
    assert asked[0] == asked[1]
    assert "--target is missing" in refusal("export", "--preset", "p")


def test_an_engine_is_named_by_its_nearest(symmetric_artifact):
    def refused(engine):
        return refusal("generate", symmetric_artifact.directory, "a text", "--engine", engine)

    assert "must be one of litert, tflite-runtime, edgetpu" in refused("tensorflow")
    assert "Did you mean tflite-runtime?" in refused("tflite")
    assert "Did you mean edgetpu?" in refused("edge-tpu")
    for name in ("litert", "ai-edge-litert"):  # the package's name is an alias
        printed("generate", symmetric_artifact.directory, "a text", "--engine", name)
    line = refused("edgetpu")
    assert f"--target edgetpu --output {symmetric_artifact.directory}" in line


def test_a_package_without_wheels_for_this_python_is_not_proposed(monkeypatch):
    files = {"a": made_up_artifacts.entry(runtimes={"tflite-runtime": "2.14.0"})}
    monkeypatch.setattr(sys, "version_info", type("", (tuple,), {"major": 3, "minor": 12})((3, 12)))
    with pytest.raises(
        errors.EngineError, match=r"Python 3\.10 and 3\.11 only; this is Python 3\.12"
    ):
        engine_choice.engine_for("tflite-runtime", "a", files, {})
    monkeypatch.undo()
    if sys.version_info < (3, 12):
        with pytest.raises(errors.MissingExtra, match="legacy-runtime"):
            engine_choice.engine_for("tflite-runtime", "a", files, {})


class Installed:
    """A distribution with the origin that pip recorded."""

    def __init__(self, url):
        self.url = url

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.url is None else json.dumps({"url": self.url})


def test_a_missing_package_is_installed_from_where_this_one_came(monkeypatch, tmp_path):
    clone = tmp_path / "my clone"
    clone.mkdir()
    for url, command in (
        (clone.as_uri(), f"pip install '{clone}[serve]'"),
        ((tmp_path / "gone").as_uri(), "pip install '.[serve]' in a clone of bart-export"),
        ("https://example.org/a.whl", "pip install '.[serve]' in a clone of bart-export"),
        (None, "pip install '.[serve]' in a clone of bart-export"),
    ):
        monkeypatch.setattr(
            importlib.metadata, "distribution", lambda name, url=url: Installed(url)
        )
        assert errors.pip_install("serve") == command
    assert errors.pip_install("") == "pip install . in a clone of bart-export"
    assert str(errors.MissingExtra("It", "p", "serve")).endswith(
        "Install it with: pip install '.[serve]' in a clone of bart-export"
    )


EARLY = [
    ("--preset", "bart_mini_e", "--target", "tflite"),
    ("--preset", "bart_mini_en", "--target", "tflite", "--data", "none.jsonl"),
    ("--preset", "bart_mini_en", "--target", "tflite", "--calibration-data", "none.jsonl"),
    ("--preset", "bart_mini_en", "--target", "edgetpu", "--calibration-data", "none.jsonl"),
    ("--preset", "bart_mini_en", "--target", "tflite", "--output", "file.txt"),
    ("--preset", "bart_mini_en", "--target", "tflite", "--output", "empty/.."),
    ("--preset", "bart_mini_en", "--target", "saved_model", "--num-return-sequences", "9"),
    ("--preset", "artifacts/made", "--target", "tflite"),
    ("tune", "bart_mini_e", "--budget", "top1=0.9"),
    ("tune", "bart_mini_en", "--budget", "top1=0.9", "--data", "none.jsonl"),
    ("tune", "bart_mini_en", "--budget", "top1=0.9", "--output", "none/small.json"),
    ("tune", "bart_mini_en", "--budget", "top1=0.9", "--output", "small.txt"),
    ("verify", "artifacts/real", "--against", "bart_mini_e"),
]


def test_nothing_heavy_is_loaded_for_an_argument_that_is_wrong(place, symmetric_artifact):
    """All in one process, which would show that one of them loaded TensorFlow."""
    shutil.copytree(symmetric_artifact.directory, "artifacts/real")
    program = (
        "import json, sys\n"
        "from bart_export.cli.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as ended: code = ended.code\n"
        "    print(code, 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    done = python(program, json.dumps(EARLY))
    assert done.stdout.splitlines() == ["2 False"] * len(EARLY), done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == len(EARLY)


def test_the_edge_tpu_s_check_takes_one_file(place):
    line = refusal("edgetpu", "check", "artifacts/made")
    assert "name a .tflite file, such as artifacts/made/tflite/float32.tflite" in line
