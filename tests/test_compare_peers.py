import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bart_export.bench.measurements import random_sources
from bart_export.checkpoints import resolve
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.runtime.generator import Generator

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "data" / "golden"
START = GenerationConfig().decoder_start_token_id
SOURCE = [0, *range(20, 57), 2]
TARGET = [START, *range(300, 321)]  # caches grow past 16 positions

FLOAT32 = ("CTranslate2 float32", "ONNX Runtime float32", "OpenVINO float32")
INT8 = ("CTranslate2 int8", "ONNX Runtime int8", "OpenVINO int8")


@pytest.fixture(scope="module")
def tools():
    """Return the tool's module, with tools/ in the import path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        import compare_peers

        yield compare_peers


@pytest.fixture(scope="module")
def distilled():
    """Return a checkpoint whose stacks differ, with a logits bias and scaled embeddings."""
    return resolve.read(GOLDEN / "bart_tiny_distilled")


@pytest.fixture(scope="module")
def symmetric():
    return resolve.read(GOLDEN / "bart_tiny_symmetric")


@pytest.fixture(scope="module")
def mini():
    return resolve.read(ROOT / "bart_export" / "assets" / "bart_mini_en")


def build(tools, name, checkpoint, directory):
    peer = tools.PEERS[name]
    if missing := peer.missing():
        pytest.skip(f"{', '.join(missing)} not installed")
    return peer.build(checkpoint, directory, 2)


@pytest.mark.parametrize("name", FLOAT32)
def test_a_peer_in_float32_gives_our_logits_and_our_tokens(
    tools, name, distilled, distilled_artifact, tmp_path
):
    model = build(tools, name, distilled, tmp_path)
    reference = tools.reference_logits(distilled, SOURCE, TARGET)
    assert tools.distance(model.logits(SOURCE, TARGET), reference) < 1e-4
    ours = tools.Ours(Generator.from_artifact(distilled_artifact.directory))
    sources = random_sources(distilled.config.vocabulary_size, len(SOURCE), 4)
    for num_beams in (1, 4, 1):
        expected = ours.generate(sources, num_beams, 24)
        assert [len(answer) for answer in expected] == [24] * 4
        assert len(set(map(tuple, expected))) == 4
        assert model.generate(sources, num_beams, 24) == expected
        assert [model.generate([source], num_beams, 24)[0] for source in sources] == expected


@pytest.mark.parametrize("name", INT8)
def test_a_peer_in_int8_is_as_near_as_int8_is(tools, name, mini, tmp_path):
    model = build(tools, name, mini, tmp_path)
    distance = tools.distance(
        model.logits(SOURCE, TARGET), tools.reference_logits(mini, SOURCE, TARGET)
    )
    # As near as float32 would mean that nothing was quantized.
    assert 1e-3 < distance < 0.05
    assert distance < tools.PEERS[name].tolerance
    for num_beams in (1, 4):
        answers = model.generate([SOURCE, SOURCE[::-1]], num_beams, 40)
        assert [len(answer) for answer in answers] == [40, 40]


def test_ctranslate2_keeps_to_the_fastest_way(tools, symmetric, tmp_path, monkeypatch):
    model = build(tools, "CTranslate2 float32", symmetric, tmp_path)
    sources = random_sources(symmetric.config.vocabulary_size, 8, 8)
    ways = model.ways(8)
    assert ways == [(1, 8), (1, 4), (2, 4)]
    assert model.ways(1) == [(1, 1)]
    seconds = iter([2.0, 1.0, 3.0])
    tried, translate = [], model.translate
    monkeypatch.setattr(model, "seconds", lambda work: work() and next(seconds))
    monkeypatch.setattr(
        model, "translate", lambda *given: tried.append(given[-2:]) or translate(*given)
    )
    first = model.generate(sources, 1, 6)
    assert tried == [*ways, (1, 4)]
    assert model.generate(sources, 1, 6) == first
    assert tried[len(ways) :] == [(1, 4)] * 2


def test_keras_hub_gives_our_logits_and_searches_greedily_and_with_beams(
    tools, symmetric, tmp_path
):
    model = build(tools, "KerasHub without XLA", symmetric, tmp_path)
    reference = tools.reference_logits(symmetric, SOURCE, TARGET)
    assert tools.distance(model.logits(SOURCE, TARGET), reference) < 1e-4
    sources = [SOURCE, SOURCE[::-1]]
    (greedy, other), (beams, _) = (model.generate(sources, num_beams, 8) for num_beams in (1, 4))
    rows = tools.reference_logits(symmetric, SOURCE, [START, *greedy[:-1]])
    assert rows.argmax(-1).tolist() == greedy
    assert len(beams) == 8
    assert model.generate(sources[1:], 1, 8) == [other]
    assert other != greedy


def test_keras_hub_refuses_a_model_that_it_cannot_have(tools, distilled, tmp_path):
    with pytest.raises(ConfigurationError, match="decoder_num_layers"):
        build(tools, "KerasHub", distilled, tmp_path)


def test_a_constant_does_not_count_as_distance_and_an_error_does(tools):
    reference = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    assert tools.distance(reference + np.float32([[1], [-2], [30]]), reference) < 1e-5
    assert tools.distance(np.roll(reference, 1, axis=1), reference) > 0.5
    assert tools.distance(reference * 1.1, reference) == pytest.approx(0.1, rel=1e-3)


def test_a_peer_that_is_not_installed_is_named(tools, symmetric, tmp_path, monkeypatch):
    absent = dataclasses.replace(tools.PEERS["transformers"], packages=("no-such-package",))
    monkeypatch.setitem(tools.PEERS, "transformers", absent)
    with pytest.raises(ConfigurationError, match="transformers needs no-such-package"):
        tools.built_peer("transformers", symmetric, tmp_path, 1)


def test_a_peer_whose_logits_are_too_far_off_is_not_timed(
    tools, mini, mini_artifact, tmp_path, monkeypatch
):
    name = "CTranslate2 int8"
    pytest.importorskip("ctranslate2")
    strict = dataclasses.replace(tools.PEERS[name], tolerance=1e-6)
    monkeypatch.setitem(tools.PEERS, name, strict)
    arguments = argparse.Namespace(
        preset="bart_mini_en", artifact=mini_artifact.directory, peer=[name], threads=2
    )
    with pytest.raises(SystemExit, match="CTranslate2 int8 computes something else"):
        tools.built(arguments, mini, tmp_path)


def test_the_command_times_all_that_is_there_and_says_what_is_not(mini_artifact, tmp_path):
    pytest.importorskip("ctranslate2")
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, ROOT / "tools" / "compare_peers.py", "bart_mini_en",
            mini_artifact.directory, "--peer", "CTranslate2 int8", "--peer", "transformers",
            "--num-texts", "1", "--num-texts", "3", "--source", "24", "--num-beams", "1",
            "--num-beams", "2", "--new-tokens", "4", "--threads", "1", "--runs", "2",
            "--json", report,
        ],
        capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    told = json.loads(report.read_text(encoding="utf-8"))
    ours, peer, absent = told["engines"]
    assert ours["engine"] == "LiteRT dynamic_wi8_afp32"
    assert 1e-3 < ours["agrees"] < 0.05
    assert peer["version"] == importlib.metadata.version("ctranslate2")
    assert "not installed" in absent["skipped"]
    assert absent["skipped"] in done.stdout
    keys = ("num_texts", "source", "num_beams", "engine")
    timed = {tuple(row[key] for key in keys): row for row in told["timings"]}
    assert list(timed) == [
        (texts, 24, beams, engine)
        for texts in (1, 3)
        for beams in (1, 2)
        for engine in (ours["engine"], peer["engine"])
    ]
    for (*work, _), row in timed.items():
        assert len(row["runs"]) == 2
        assert row["seconds"] == pytest.approx(sum(row["runs"]) / 2)
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(4 * row["num_texts"])
        mine = timed[(*work, ours["engine"])]
        assert row["times_ours"] == pytest.approx(row["seconds"] / mine["seconds"])
        assert f"{row['seconds']:.3f}" in done.stdout
