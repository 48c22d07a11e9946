"""Files of both versions of the contract: tests/data/artifacts/one_source has version 1."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import made_up_artifacts
from support.command import printed, refusal
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

DATA = Path(__file__).parents[1] / "data/artifacts"
DYNAMIC, STATIC = FILES = ("tflite/float32.tflite", "tflite/float32.static.tflite")


@pytest.fixture(scope="module")
def old():
    return Artifact.open(DATA / "one_source")


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the artifact that may be changed."""
    return Path(shutil.copytree(DATA / "one_source", tmp_path / "one_source"))


def engines(artifact, name):
    """Return a file's engines on both backends."""
    opening = artifact.path(name), artifact.config, artifact.buckets(name)
    return (
        open_compiled_model(*opening, num_threads=1),
        open_interpreter(*opening, num_threads=1, interpreter=LITERT),
    )


def test_a_file_of_version_1_passes_against_its_preset():
    preset = DATA.parent / "golden/bart_tiny_symmetric"
    result = printed("verify", DATA / "first", "--against", preset)
    assert "100.00%" in result


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


def test_commands_use_an_artifact_of_version_1(copy):
    for name in FILES:
        assert f"{name}: 9 of 9 golden answers are the same" in printed("verify", copy)
    default = next(
        case for case in Artifact.open(copy).golden().cases if case.setting == "defaults"
    )
    text = printed("generate", copy, default.text, "--truncate")
    assert text.strip() == default.files[DYNAMIC].text.strip()
    assert "float32.static.tflite" in printed("inspect", copy)


def test_cross_tensors_have_the_same_axes_in_both_versions(symmetric_artifact):
    first = Artifact.open(DATA / "first")  # of the same checkpoint
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


def changed(copy, name, change):
    """Change a file's entry in a copy's manifest, and update the seal; return the artifact."""
    fields = json.loads((copy / "manifest.json").read_bytes())
    change(fields["files"][name])
    del fields["format_version"], fields["manifest_sha256"]
    made_up_artifacts.seal(copy, fields)
    return copy


@pytest.mark.parametrize("version", [0, CONTRACT_VERSION + 1, "2"])
def test_another_version_is_refused_in_one_line(copy, version):
    changed(copy, DYNAMIC, lambda entry: entry.update(contract_version=version))
    line = refusal("generate", copy, "A text.")
    assert f'files."{DYNAMIC}".contract_version must be' in line
    if version != "2":
        assert "update bart-export for a newer one" in line


def test_the_wrong_version_is_refused_before_the_file_is_opened(copy):
    changed(copy, DYNAMIC, lambda entry: entry.update(contract_version=2))
    line = refusal("generate", copy, "A text.")
    assert "float32.tflite is not a .tflite file that bart-export wrote" in line


def test_drafts_in_a_file_of_version_1_are_refused(static_artifact, tmp_path):
    copy = shutil.copytree(static_artifact.directory, tmp_path / "copy")
    changed(copy, STATIC, lambda entry: entry.update(contract_version=1))
    assert "contract_version must be 2, for drafts, received 1" in refusal("inspect", copy)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"rows": 3}, "signatures.sizes.rows must be 4, received 3"),
        ({"sources": 2}, "signatures.sizes.rows must be 8, received 4"),
    ],
)
def test_rows_are_sources_times_beams(static_artifact, tmp_path, sizes, words):
    copy = shutil.copytree(static_artifact.directory, tmp_path / "copy")
    changed(copy, STATIC, lambda entry: entry["signatures"]["decode_32_4"]["sizes"].update(sizes))
    line = refusal("generate", copy, "A text.")
    assert words in line
