"""The README's commands run as they are written, one after the other."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest
from support.readme import blocks, commands

PROGRAM = Path(sysconfig.get_path("scripts")) / "bart-export"
ASSETS = Path(__file__).parents[1] / "bart_export" / "assets"
TEXTS = 8
# What a command needs that is not at hand: checkpoints of a hub, another runtime, a model server's
# own directory.
ELSEWHERE = re.compile(r"\b(bart_large_en_cnn|bart_base_en|tflite-runtime)\b|/models/")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a directory with the files that the commands name."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(ASSETS / "bart_mini_en", place / "my_bart")
    (place / "android/app/src/main").mkdir(parents=True)
    (place / "android/settings.gradle.kts").touch()
    lines = (ASSETS / "bart_mini_en" / "calibration.jsonl").read_text().splitlines()[-TEXTS:]
    (place / "texts.jsonl").write_text("\n".join(lines) + "\n")
    texts = [" ".join(json.loads(line)["text"].split()) for line in lines]
    (place / "texts.txt").write_text("\n".join(texts) + "\n")
    (place / "models.config").write_text(
        'model_config_list { config { name: "headlines" base_path: "'
        f'{place / "artifacts/bart_mini_en"}" model_platform: "tensorflow" }} }}\n'
    )
    return place


def run(place, *words):
    return subprocess.run(
        [PROGRAM, *words], cwd=place, capture_output=True, text=True, timeout=1200, input=""
    )


def serves(place, *words):
    """Start a server, end it once it has a model, and return its exit code and what it said."""
    with subprocess.Popen(
        [PROGRAM, *words], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Model "):
                process.send_signal(signal.SIGTERM)
        return process.wait(60), "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in commands() if not ELSEWHERE.search(line)])
def test_a_command_of_the_readme_does_what_it_says(place, line):
    words = shlex.split(line, comments=True)[1:]
    if "earlier.json" in words:
        earlier = run(place, "bench", "artifacts/bart_mini_en", "--json")
        assert earlier.returncode == 0, earlier.stderr
        (place / "earlier.json").write_text(earlier.stdout)
    if words[0] == "serve":
        code, said = serves(place, *words)
        assert code == 0, said
        assert "Model " in said
        return
    done = run(place, *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_recipe_of_the_readme_is_within_its_own_tolerance(tmp_path):
    (recipe,) = blocks("json")
    (tmp_path / "recipe.json").write_text(recipe)
    done = run(
        tmp_path, "--preset", "bart_mini_en", "--target", "tflite", "--recipe", "recipe.json",
        "--output", "artifact",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    (row,) = manifest["verification"]
    assert row["top1"] >= json.loads(recipe)["tolerance"]["top1"]


def test_few_commands_of_the_readme_cannot_be_run_here():
    left_out = [line for line in commands() if ELSEWHERE.search(line)]
    assert len(left_out) <= 5
    assert len(commands()) - len(left_out) >= 20
