import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console
from support import static_builds

from bart_export.bench import bench as benchmark
from bart_export.bench import machine, opening, page_cache
from bart_export.bench import tables as bench_tables
from bart_export.bench import work as bench_work
from bart_export.bench.bench import bench
from bart_export.cli.main import main
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError, ConfigurationError, EngineError
from bart_export.runtime.generator import Generator

NEW_TOKENS = 5
UNKNOWN = {"private_bytes": None, "shared_bytes": None}


@pytest.fixture(scope="module")
def report(symmetric_artifact):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "AGAIN", 1)
        return bench(
            symmetric_artifact.directory,
            sources=(4, 9, 100_000),
            new_tokens=NEW_TOKENS,
            num_beams=(1, 3),
            num_threads=(1, 2),
            runs=2,
        )


@pytest.fixture(scope="module")
def generator(symmetric_artifact):
    return Generator.from_artifact(symmetric_artifact.directory, num_threads=1)


@pytest.fixture
def order(symmetric_artifact):
    """Return what a process of its own is to open and generate."""
    (name,) = symmetric_artifact.files("tflite")
    return opening.Order(name, num_threads=1, source=4, num_beams=1, new_tokens=2)


def test_the_report_is_json_and_has_every_configuration_once(report):
    assert json.loads(json.dumps(report)) == report
    assert report["schema_version"] == 2
    assert report["settings"] == {"new_tokens": NEW_TOKENS, "num_threads": [1, 2], "runs": 2}
    configurations = [
        (row["recipe"], row["build"], row["num_threads"], row["source"], row["num_beams"])
        for row in report["generation"]
    ]
    assert configurations == [
        ("float32", "dynamic", threads, source, beams)
        for threads in (1, 2)
        for source in (4, 9)
        for beams in (1, 3)
    ]


def test_a_source_beyond_the_positions_is_skipped_and_said(report):
    assert [row["source"] for row in report["skipped"]] == [100_000]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(bench_tables.tables(report))
    assert "Source 100000 was skipped: the model has" in printed.get()


def test_sizes_are_those_of_the_file(report, symmetric_artifact):
    (row,) = report["files"]
    size = (symmetric_artifact.directory / row["file"]).stat().st_size
    assert row["bytes"] == size
    parameters = symmetric_artifact.manifest.parameter_count
    assert row["bytes_per_parameter"] == pytest.approx(size / parameters)
    assert row["bytes_per_parameter"] > 4  # float32, and the graph


def test_only_the_first_opening_builds_the_weight_cache(report):
    built = {(row["opening"], row.get("built_weight_cache")) for row in report["openings"]}
    # Cold openings are None where the system keeps the files.
    assert built - {("cold", None)} <= {("first", True), ("cold", False), ("warm", False)}
    assert {("first", True), ("warm", False)} <= built


def test_a_text_comes_after_the_generator_and_that_after_the_engine(report):
    rows = {
        (row["num_threads"], row["opening"], row["until"]): row["seconds"]
        for row in report["openings"]
    }
    assert len(rows) == len(report["openings"]) == 2 * 3 * 3
    for threads in (1, 2):
        for way in ("first", "warm"):
            engine, generator, text = (rows[threads, way, until] for until in opening.STAGES)
            assert 0 < engine < generator < text


def test_a_lost_weight_cache_is_noticed_as_built_again(symmetric_artifact, order):
    with opening.linked_copy(symmetric_artifact) as directory:
        opening.in_a_process(directory, order)
        for path in (directory / ".cache").iterdir():
            path.unlink()
        again = opening.in_a_process(directory, order)
    assert again["engine"]["built_weight_cache"]


def drops_pages(directory):
    """Return whether the system drops a file from its memory when it is asked to."""
    probe = directory / "probe"
    probe.write_bytes(b"x" * page_cache.PAGE)
    return page_cache.drop([probe])


def test_a_cold_opening_reads_what_a_warm_one_finds_in_memory(
    symmetric_artifact, order, monkeypatch, tmp_path
):
    if not drops_pages(tmp_path):
        pytest.skip("this file system keeps its files in memory")
    found = []
    open_there = opening.in_a_process

    def noted(directory, order):
        paths = opening.files_read(directory, order.file)
        found.append((len(paths), sum(map(page_cache.resident, paths))))
        return open_there(directory, order)

    monkeypatch.setattr(opening, "in_a_process", noted)
    with opening.linked_copy(symmetric_artifact) as directory:
        figures = opening.measure(directory, order)
    (first, _), *later = found
    assert first == 3  # the file and two of its tokenizer
    assert [count for count, _ in later] == [4] * 2 * opening.AGAIN  # and the weight cache
    cold, warm = later[0::2], later[1::2]
    assert {pages for _, pages in cold} == {0}
    assert min(pages for _, pages in warm) > 0
    assert figures["cold"].keys() == figures["warm"].keys()


def test_where_files_cannot_be_dropped_nothing_is_called_cold(
    symmetric_artifact, order, monkeypatch
):
    monkeypatch.setattr(page_cache.os, "posix_fadvise", lambda *arguments: None)
    monkeypatch.setattr(opening, "AGAIN", 1)
    with opening.linked_copy(symmetric_artifact) as directory:
        assert opening.measure(directory, order)["cold"] is None


def test_an_unknown_cold_opening_is_said(report):
    unknown = [
        {**row, "seconds": None} if row["opening"] == "cold" else row for row in report["openings"]
    ]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(bench_tables.tables({**report, "openings": unknown}))
    assert "Cold openings are unknown" in printed.get()


@pytest.mark.skipif(not machine.SMAPS.exists(), reason="the system does not say")
def test_memory_of_an_opening_is_part_of_the_process_s(report):
    for row in report["openings"]:
        if row["seconds"] is not None:
            assert 0 < row["private_bytes"] < row["process_private_bytes"]


@pytest.mark.skipif(not machine.SMAPS.exists(), reason="the system does not say")
def test_memory_is_for_every_number_of_threads_and_beams_with_the_longest_source(report):
    rows = [(row["num_threads"], row["num_beams"], row["source"]) for row in report["memory"]]
    assert rows == [(threads, beams, 9) for threads in (1, 2) for beams in (1, 3)]
    assert all(row["private_bytes"] > 0 for row in report["memory"])


@pytest.mark.skipif(not machine.SMAPS.exists(), reason="the system does not say")
def test_weights_are_shared_with_another_process_that_has_them(mini_artifact):
    order = opening.Order("tflite/float32.tflite", 1, source=16, num_beams=1, new_tokens=4)
    with opening.linked_copy(mini_artifact) as directory:
        opening.in_a_process(directory, order)  # packs the weights
        alone = opening.in_a_process(directory, order)["text"]
        beside = opening.memory(directory, order)
    # Packed weights are about the size of the file, 31 MB; those that a text takes are read.
    assert beside["shared_bytes"] - alone["shared_bytes"] > 15e6
    assert alone["private_bytes"] - beside["private_bytes"] > 15e6


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


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ((65, 4, 15), "takes 64 source tokens at most"),
        ((64, 5, 15), "takes 4 beams at most"),
        ((64, 4, 16), "takes 15 new tokens at most"),
        ((64, 3, 15), None),
    ],
)
def test_what_a_static_build_has_no_room_for_is_skipped(work, words):
    shapes = StaticShapes((16, 64), 16, (1, 4))
    reason = bench_work.misfit(shapes, *work)
    assert reason is None if words is None else words in reason
    assert bench_work.misfit(None, *work) is None


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_forced_to_the_number_of_tokens(generator, num_beams):
    asked = bench_work.forced(generator, NEW_TOKENS, num_beams)
    result = asked.generate_ids(
        bench_work.random_source(generator.engine.config.vocabulary_size, 9)
    )
    assert len(result.token_ids) == NEW_TOKENS + 1
    assert generator.generation.eos_token_id not in result.token_ids[1:]


def test_configurations_take_turns(symmetric_artifact, monkeypatch):
    turns = []
    measure = benchmark.measure

    def noted(work, *, counts):
        turns.append((work.keys["source"], work.keys["num_beams"], counts))
        measure(work, counts=counts)

    monkeypatch.setattr(benchmark, "measure", noted)
    monkeypatch.setattr(opening, "measure", lambda *arguments: {})
    monkeypatch.setattr(opening, "memory", lambda *arguments: {})
    bench(symmetric_artifact.directory, sources=(4,), new_tokens=2, num_beams=(1, 2), runs=2)
    assert turns == [(4, beams, counts) for counts in (False, True, True) for beams in (1, 2)]


@pytest.mark.parametrize("static", [False, True])
def test_usual_lengths_are_lowered_to_what_fits(symmetric_artifact, tmp_path, monkeypatch, static):
    artifact, longest, most = symmetric_artifact, 64, 63
    if static:
        shapes = StaticShapes(source_lengths=(8,), target_length=16, num_beams=(1,))
        artifact = static_builds.add(artifact, shapes, ["float32"], tmp_path / "both")
        artifact = static_builds.without(artifact, "tflite/float32.tflite", tmp_path / "static")
        longest, most = 8, 15
    monkeypatch.setattr(opening, "measure", lambda *arguments: {})
    monkeypatch.setattr(opening, "memory", lambda *arguments: UNKNOWN)
    report = bench(artifact.directory, num_beams=(1,), num_threads=(1,), runs=1)
    assert report["settings"]["new_tokens"] == most
    assert [(row["source"], row["new_tokens"]) for row in report["generation"]] == [(longest, most)]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(bench_tables.tables(report))
    assert f"Source 512 was skipped: no file takes more than {longest}." in printed.get()
    assert f"64 new tokens are too many: no file takes more than {most}." in printed.get()


def test_builds_of_a_recipe_are_rows_of_their_own(symmetric_artifact, tmp_path, monkeypatch):
    shapes = StaticShapes(source_lengths=(8,), target_length=8, num_beams=(1,))
    both = static_builds.add(symmetric_artifact, shapes, ["float32"], tmp_path / "both")
    monkeypatch.setattr(opening, "measure", lambda *arguments: {})
    monkeypatch.setattr(opening, "memory", lambda *arguments: {})
    report = bench(both.directory, sources=(4, 9), new_tokens=2, num_beams=(1, 2), runs=1)
    assert [row["build"] for row in report["files"]] == ["dynamic", "static"]
    rows = [(row["build"], row["source"], row["num_beams"]) for row in report["generation"]]
    everything = [("dynamic", source, beams) for source in (4, 9) for beams in (1, 2)]
    assert rows == [*everything, ("static", 4, 1)]
    skipped = [(row["build"], row["source"], row["num_beams"]) for row in report["skipped"]]
    assert skipped == [("static", 4, 2), ("static", 9, 1), ("static", 9, 2)]


def test_the_command_prints_ratios_to_another_report(
    symmetric_artifact, report, tmp_path, monkeypatch
):
    monkeypatch.setattr(opening, "AGAIN", 1)
    (tmp_path / "other.json").write_text(json.dumps(report))
    arguments = ["bench", symmetric_artifact.directory, "--compare", tmp_path / "other.json"]
    few = ["--source", "4", "--threads", "1", "--num-beams", "1", "--runs", "1", "--json"]
    arguments += [*few, "--new-tokens", NEW_TOKENS]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    compared = json.loads(result.stdout)["comparison"]
    assert [row["bytes"] for row in compared["files"]] == [1.0]
    (row,) = compared["generation"]
    assert (row["num_threads"], row["source"], row["num_beams"]) == (1, 4, 1)
    assert {row["num_threads"] for row in compared["only_there"]} == {1, 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare", "missing.json"], "Cannot read the report missing.json"),
        (["--serve", "--compare", "missing.json"], "--compare contradicts --serve"),
        (["--serve", "--threads", "1", "--threads", "2"], "--threads can be given once"),
    ],
)
def test_the_command_refuses_before_it_measures(symmetric_artifact, options, words):
    arguments = ["bench", str(symmetric_artifact.directory), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_an_altered_file_is_named_where_it_lies(symmetric_artifact, tmp_path):
    directory = shutil.copytree(symmetric_artifact.directory, tmp_path / "altered")
    file = directory / "tflite" / "float32.tflite"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    result = CliRunner().invoke(main, ["bench", str(directory)])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"Error: {file} is not the file its manifest names")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"recipes": ["int7"], "new_tokens": 2}, ArtifactError, "It has: float32"),
        ({"new_tokens": 64}, ConfigurationError, "--new-tokens must be at most 63 for this model"),
        ({"runs": 0}, ConfigurationError, "runs must be at least 1, received 0"),
        ({"sources": []}, ConfigurationError, "sources must be at least 1, received nothing"),
        ({"num_beams": (1, -2)}, ConfigurationError, "num_beams must be at least 1, received -2"),
        ({"num_threads": (0,)}, ConfigurationError, "num_threads must be at least 1, received 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(symmetric_artifact, arguments, error, words):
    with pytest.raises(error, match=words):
        bench(symmetric_artifact.directory, **arguments)


def test_a_process_that_fails_says_why_without_a_class(symmetric_artifact, order):
    order = dataclasses.replace(order, source=100_000)
    with pytest.raises(EngineError, match=r"process of its own failed: A source must have 1 to"):
        opening.in_a_process(symmetric_artifact.directory, order)


def test_measuring_needs_no_tensorflow():
    code = (
        "import sys, bart_export.bench.bench;"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
