"""Artifacts of earlier versions still work, and files say their version of the contract.

In tests/data/artifacts, `first` is from 2026-11-28. Its file has version 1, as those of
`one_source`.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support import made_up_artifacts
from support.command import printed, refusal
from support.paths import DATA, ROOT, SYMMETRIC
from support.scripts import Running, Script, assert_as_alone

from bart_export.artifact.artifact import Artifact
from bart_export.contract import CONTRACT_VERSION
from bart_export.errors import InputError
from bart_export.recipes.table import LITERT
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import expected_signatures
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.search import run, search
from bart_export.runtime.tflite_check import check_graph

OLDER = DATA / "artifacts"
DYNAMIC, STATIC = FILES = ("tflite/float32.tflite", "tflite/float32.static.tflite")


@pytest.fixture(scope="module")
def old():
    return Artifact.open(OLDER / "one_source")


def engines(artifact, name):
    """Return a file's engines on both backends."""
    opening = artifact.path(name), artifact.config, artifact.buckets(name)
    return (
        open_compiled_model(*opening, num_threads=1),
        open_interpreter(*opening, num_threads=1, interpreter=LITERT),
    )


def test_a_file_of_version_1_passes_against_its_preset():
    assert "100.00%" in printed("verify", OLDER / "first", "--against", SYMMETRIC)


@pytest.mark.parametrize("name", FILES)
def test_the_graph_of_a_file_without_a_version_is_that_of_version_1(old, name):
    assert old.manifest.files[name].contract_version is None
    check_graph(old.path(name), expected_signatures(old.config, old.buckets(name)))


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_version_1_generates_the_tokens_of_its_export(old, name):
    cases = old.golden().cases
    assert {case.generation.num_beams for case in cases} == {1, 3, 4}
    for engine in engines(old, name):
        for case in cases:
            settings = case.generation
            state = engine.start(case.source_token_ids, settings.num_beams, settings.max_length)
            best, *_ = run(search(settings), engine.step, state)
            assert tuple(best.token_ids) == case.files[name].token_ids


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_version_1_runs_one_source_after_the_other(old, name, beams):
    dynamic, _ = engines(old, DYNAMIC)
    scripts = {
        seed: Script.random(seed, length, beams, 20) for seed, length in enumerate((30, 5, 17))
    }
    for engine in engines(old, name):
        assert engine.sizing.max_sources == 1
        running = Running(engine.batch(beams))
        for key, script in scripts.items():
            running.admit(key, script)
            running.step(4)
            with pytest.raises(InputError, match="decoded together must be at most 1 "):
                running.batch.admit([3], 9)
            running.step(14)
            running.release(key)
        assert_as_alone(dynamic, running, scripts)


@pytest.mark.parametrize(("name", "files"), [("first", FILES[:1]), ("one_source", FILES)])
def test_commands_use_an_older_artifact(tmp_path, name, files):
    directory = shutil.copytree(OLDER / name, tmp_path / name)
    verified, inspected = printed("verify", directory), printed("inspect", directory)
    for file in files:
        assert f"{file}: 9 of 9 golden answers are the same" in verified
        assert file in inspected
    cases = Artifact.open(directory).golden().cases
    default = next(case for case in cases if case.setting == "defaults")
    text = printed("generate", directory, default.text, "--truncate")
    assert text.strip() == default.files[DYNAMIC].text.strip()


def test_cross_tensors_have_the_same_axes_in_both_versions(symmetric_artifact):
    first = Artifact.open(OLDER / "first")  # of the same checkpoint
    config, source = first.config, [0, 5, 9, 7, 30, 2]
    found = [
        engine.cross(engine.start(source, beams, 9))
        for artifact in (first, symmetric_artifact)
        for engine in engines(artifact, DYNAMIC)
        for beams in (1, 2)
    ]
    shape = (1, config.decoder_heads, len(source), config.decoder_head_size)
    for cross in found:
        assert {array.shape for array in cross.values()} == {shape}
        for name, array in found[0].items():
            np.testing.assert_allclose(cross[name], array, rtol=0, atol=1e-5)


def test_an_export_writes_the_current_version(static_artifact):
    for name in FILES:
        assert static_artifact.manifest.files[name].contract_version == CONTRACT_VERSION


ROWS, VERSION = "signatures.sizes.rows must be", "contract_version must be"
REFUSED = [
    ("one_source", DYNAMIC, {"contract_version": 0}, f'files."{DYNAMIC}".{VERSION} '),
    ("one_source", DYNAMIC, {"contract_version": "2"}, f'files."{DYNAMIC}".{VERSION} '),
    ("one_source", DYNAMIC, {"contract_version": CONTRACT_VERSION + 1}, "update bart-export for"),
    # Before a runtime opens the file.
    ("one_source", DYNAMIC, {"contract_version": 2}, "not a .tflite file that bart-export wrote"),
    ("static", STATIC, {"contract_version": 1}, f"{VERSION} 2, for drafts, received 1"),
    ("static", STATIC, {"rows": 3}, f"{ROWS} 4, received 3"),
    ("static", STATIC, {"sources": 2}, f"{ROWS} 8, received 4"),
]


@pytest.mark.parametrize(("made", "file", "stated", "words"), REFUSED)
def test_a_version_or_a_number_of_rows_that_the_file_has_not_is_refused(
    static_artifact, tmp_path, made, file, stated, words
):
    source = static_artifact.directory if made == "static" else OLDER / made
    directory = shutil.copytree(source, tmp_path / "copy")

    def change(fields):
        entry = fields["files"][file]
        if "contract_version" not in stated:
            entry = entry["signatures"]["decode_32_4"]["sizes"]
        entry.update(stated)

    made_up_artifacts.edit_manifest(directory, change)
    assert words in refusal("generate", directory, "A text.")


def test_an_export_takes_over_a_file_of_an_older_export(tmp_path, monkeypatch):
    directory = Path(shutil.copytree(OLDER / "first", tmp_path / "first"))
    before = (directory / DYNAMIC).read_bytes()
    # As it was exported then: another name is another source, of which nothing is taken over.
    monkeypatch.chdir(ROOT)
    arguments = ["--preset", "tests/data/golden/bart_tiny_symmetric", "--target", "tflite"]
    printed(*arguments, "--recipe", "float16", "--output", directory)
    manifest = Artifact.open(directory).manifest
    assert {DYNAMIC, "tflite/float16.tflite"} <= set(manifest.files)
    assert (directory / DYNAMIC).read_bytes() == before
    assert manifest.exports == 2
