import json
import subprocess
import sys

import pytest
from rich.console import Console

from bart_export.errors import ArtifactError, ConfigurationError, EngineError
from bart_export.quality import bench as benchmark
from bart_export.quality import machine, opening
from bart_export.quality.bench import bench
from bart_export.runtime.generator import Generator

NEW_TOKENS = 5


@pytest.fixture(scope="module")
def report(symmetric_artifact):
    return bench(
        symmetric_artifact.directory,
        sources=(4, 9, 100_000),
        new_tokens=NEW_TOKENS,
        num_beams=(1, 3),
        num_threads=1,
        runs=2,
    )


@pytest.fixture(scope="module")
def generator(symmetric_artifact):
    return Generator.from_artifact(symmetric_artifact.directory, num_threads=1)


def test_the_report_is_json_and_has_every_configuration_once(report):
    assert json.loads(json.dumps(report)) == report
    assert report["schema_version"] == 1
    assert report["settings"] == {"new_tokens": NEW_TOKENS, "num_threads": 1, "runs": 2}
    configurations = [
        (row["recipe"], row["source"], row["num_beams"]) for row in report["generation"]
    ]
    assert configurations == [("float32", source, beams) for source in (4, 9) for beams in (1, 3)]


def test_a_source_beyond_the_positions_is_skipped_and_said(report):
    assert [row["source"] for row in report["skipped"]] == [100_000]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(benchmark.tables(report))
    assert "Source 100000 was skipped: the model has" in printed.get()


def test_sizes_are_those_of_the_file(report, symmetric_artifact):
    (row,) = report["files"]
    size = (symmetric_artifact.directory / row["file"]).stat().st_size
    assert row["bytes"] == size
    parameters = symmetric_artifact.manifest["parameter_count"]
    assert row["bytes_per_parameter"] == pytest.approx(size / parameters)
    assert row["bytes_per_parameter"] > 4  # float32, and the graph


def test_only_the_first_opening_builds_the_weight_cache(report):
    for what in ("engine", "generator"):
        figures = report["files"][0]["opening"][what]
        assert figures["first"]["built_weight_cache"]
        assert not figures["second"]["built_weight_cache"]


def test_a_lost_weight_cache_is_noticed_as_built_again(symmetric_artifact):
    with opening.linked_copy(symmetric_artifact) as directory:
        opening.in_a_process("engine", directory, "float32", 1)
        for path in (directory / ".cache").iterdir():
            path.unlink()
        again = opening.in_a_process("engine", directory, "float32", 1)
    assert again["built_weight_cache"]


@pytest.mark.skipif(not machine.SMAPS.exists(), reason="the system does not say")
def test_memory_of_an_opening_is_part_of_the_process_s(report):
    for figures in report["files"][0]["opening"].values():
        for row in figures.values():
            assert 0 < row["private_bytes"] < row["process_private_bytes"]


@pytest.mark.skipif(not machine.SMAPS.exists(), reason="the system does not say")
def test_private_memory_grows_by_what_is_written():
    before = machine.private_bytes()
    written = bytearray(b"x" * (32 << 20))
    assert machine.private_bytes() - before > 0.9 * len(written)


def test_speed_is_tokens_over_the_median_run(report):
    for row in report["generation"]:
        assert len(row["runs"]) == 2
        assert min(row["runs"]) <= row["seconds"] <= max(row["runs"])
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(NEW_TOKENS)


def test_measuring_leaves_nothing_behind(report, symmetric_artifact):
    assert not list(symmetric_artifact.directory.parent.glob(".bench.*"))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_forced_to_the_number_of_tokens(generator, num_beams):
    asked = benchmark.forced(generator, NEW_TOKENS, num_beams)
    result = asked.generate_ids(benchmark.random_source(generator.engine.config.vocabulary_size, 9))
    assert len(result.token_ids) == NEW_TOKENS + 1
    assert generator.generation.eos_token_id not in result.token_ids[1:]


def test_configurations_take_turns(symmetric_artifact, monkeypatch):
    turns = []
    measure = benchmark.measure

    def noted(work, new_tokens, *, counts):
        turns.append((work.source, work.num_beams, counts))
        measure(work, new_tokens, counts=counts)

    monkeypatch.setattr(benchmark, "measure", noted)
    monkeypatch.setattr(opening, "measure", lambda *arguments: {})
    bench(symmetric_artifact.directory, sources=(4,), new_tokens=2, num_beams=(1, 2), runs=2)
    assert turns == [(4, beams, counts) for counts in (False, True, True) for beams in (1, 2)]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"recipes": ["int7"], "new_tokens": 2}, ArtifactError, "It has: float32"),
        ({"new_tokens": 100_000}, ConfigurationError, "new_tokens must be at most"),
        ({"runs": 0}, ConfigurationError, "runs must be at least 1, received 0"),
        ({"sources": []}, ConfigurationError, "sources must be at least 1, received nothing"),
        ({"num_beams": (1, -2)}, ConfigurationError, "num_beams must be at least 1, received -2"),
    ],
)
def test_what_cannot_be_measured_is_refused(symmetric_artifact, arguments, error, words):
    with pytest.raises(error, match=words):
        bench(symmetric_artifact.directory, **arguments)


def test_a_process_that_fails_says_why(symmetric_artifact):
    with pytest.raises(EngineError, match="has no file of recipe 'int7'"):
        opening.in_a_process("engine", symmetric_artifact.directory, "int7", 1)


def test_measuring_needs_no_tensorflow():
    code = (
        "import sys, bart_export.quality.bench;"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
