"""Artifacts of earlier versions still work: tests/data/artifacts/first is from 2026-11-28."""

import json
import shutil
from pathlib import Path

import pytest
from support.command import printed

from bart_export.artifact.artifact import Artifact
from bart_export.runtime import Generator

DATA = Path(__file__).parents[1] / "data"
FILE = "tflite/float32.tflite"


@pytest.fixture
def old(tmp_path):
    """Return a copy of the first artifact."""
    return Path(shutil.copytree(DATA / "artifacts" / "first", tmp_path / "old"))


def test_it_gives_its_golden_answers(old):
    generator = Generator.from_artifact(old)
    cases = json.loads((old / "golden.json").read_text())["cases"]
    greedy = [case for case in cases if case["generation"]["num_beams"] == 1]
    assert greedy
    for case in greedy:
        result = generator.generate(case["text"], truncate=True, num_beams=1)
        assert list(result.source_token_ids) == case["source_token_ids"]
    assert Artifact.open(old).manifest.exports == 1


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_it_is_read_by(old, command):
    printed(command, old)


def test_an_export_takes_its_file_over(old, monkeypatch):
    monkeypatch.chdir(DATA.parents[1])
    before = (old / FILE).read_bytes()
    # As it was exported then: another name is another source, of which nothing is taken over.
    arguments = ["--preset", "tests/data/golden/bart_tiny_symmetric", "--target", "tflite"]
    printed(*arguments, "--recipe", "float16", "--output", old)
    manifest = Artifact.open(old).manifest
    assert {FILE, "tflite/float16.tflite"} <= set(manifest.files)
    assert (old / FILE).read_bytes() == before
    assert manifest.exports == 2
