"""The benchmark of an artifact's files: its measurements, skipped configurations and errors."""

import dataclasses
import json
import shutil

import pytest
from rich.console import Console
from support import static_builds
from support.command import printed, refusal
from support.made_up_artifacts import flip, variant

from bart_export.artifact.artifact import Artifact
from bart_export.bench import bench as benchmark
from bart_export.bench import measurements, opening_cost
from bart_export.bench.bench import bench
from bart_export.bench.opening_cost import OpeningRun
from bart_export.bench.rows import Report
from bart_export.contract import StaticShapes
from bart_export.errors import EngineError
from bart_export.runtime.engine_choice import open_engine

NEW_TOKENS = 5
FLOAT32 = "tflite/float32.tflite"
needs_smaps = pytest.mark.skipif(not measurements.SMAPS.exists(), reason="the system does not say")


@pytest.fixture(scope="module")
def report(symmetric_artifact):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening_cost, "REPEATS", 1)
        return bench(
            symmetric_artifact.directory,
            sources=(4, 9, 100_000),
            new_tokens=NEW_TOKENS,
            num_beams=(1, 3),
            num_threads=(1, 2),
            runs=2,
        )


@pytest.fixture
def opening_run():
    """Return a short run for a separate process."""
    return OpeningRun(FLOAT32, num_threads=1, source=4, num_beams=1, new_tokens=2)


def shown(tables):
    """Return tables as text."""
    console = Console(width=200)
    with console.capture() as text:
        console.print(tables)
    return text.get()


def test_the_report_is_json_and_has_every_configuration_once(report):
    content = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(content).to_dict() == content
    assert content["schema_version"] == 2
    assert content["settings"] == {"new_tokens": NEW_TOKENS, "num_threads": [1, 2], "runs": 2}
    assert set(content["machine"]) == {
        "processor", "architecture", "cores", "versions", "load", "system", "python",
    }  # fmt: skip
    rows = [list(row.keys().values()) for row in report.generation]
    assert rows == [
        ["float32", "dynamic", threads, source, beams, NEW_TOKENS]
        for threads in (1, 2)
        for source in (4, 9)
        for beams in (1, 3)
    ]
    assert content["skipped"] == [{"reason": "the model has 64 positions", "source": 100_000}]
    assert "Source 100000 was skipped: the model has 64 positions." in shown(report.tables())


def test_sizes_and_speeds_are_those_of_the_file(report, symmetric_artifact):
    (row,) = report.files
    assert row.bytes == (symmetric_artifact.directory / row.file).stat().st_size
    parameters = symmetric_artifact.manifest.parameter_count
    assert row.bytes_per_parameter == pytest.approx(row.bytes / parameters)
    for row in report.generation:
        assert len(row.runs) == 2
        assert min(row.runs) <= row.seconds <= max(row.runs)
        assert row.tokens_per_second * row.seconds == pytest.approx(NEW_TOKENS)
        assert 0 < row.step_seconds < row.seconds
    assert not list(symmetric_artifact.directory.parent.glob(".bench.*"))  # no copy is left


def test_an_opening_has_stages_and_only_the_first_builds_the_weight_cache(report):
    assert len(report.openings) == 2 * 3 * 3
    known = {
        (row.num_threads, row.opening, row.until): row
        for row in report.openings
        if row.seconds is not None  # a cold one is unknown if the files stay in memory
    }
    for (threads, way, _), row in known.items():
        engine, generator, text = (
            known[threads, way, until].seconds for until in opening_cost.STAGES
        )
        assert 0 < engine < generator < text
        assert row.built_weight_cache is (way == "first")
        if row.private_bytes is not None:
            assert 0 < row.private_bytes < row.process_private_bytes


def test_a_cold_opening_reads_what_a_warm_one_finds_in_memory(
    symmetric_artifact, opening_run, monkeypatch, tmp_path
):
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * measurements.PAGE)
    if not measurements.drop_from_page_cache([probe]):
        pytest.skip("this file system keeps its files in memory")
    found = []
    open_there = opening_cost.open_in_process

    def noted(directory, run):
        paths = opening_cost.files_read(directory, run.file)
        found.append((len(paths), sum(map(measurements.cached_pages, paths))))
        return open_there(directory, run)

    monkeypatch.setattr(opening_cost, "open_in_process", noted)
    # What other tests have open stays in memory.
    own = Artifact.open(shutil.copytree(symmetric_artifact.directory, tmp_path / "m"))
    entry = own.manifest.tflite()[FLOAT32]
    with opening_cost.linked_copy(own) as directory:
        rows = list(opening_cost.measure(directory, entry, opening_run))
    (first, _), *later = found
    assert first == 3  # the model and two tokenizer files
    assert [count for count, _ in later] == [4] * 2 * opening_cost.REPEATS  # plus the weight cache
    cold, warm = later[0::2], later[1::2]
    assert {pages for _, pages in cold} == {0}
    assert min(pages for _, pages in warm) > 0
    assert None not in [row.seconds for row in rows if row.opening == "cold"]


def test_where_files_cannot_be_dropped_nothing_is_called_cold(
    symmetric_artifact, opening_run, monkeypatch, report
):
    monkeypatch.setattr(measurements.os, "posix_fadvise", lambda *arguments: None)
    monkeypatch.setattr(opening_cost, "REPEATS", 1)
    entry = symmetric_artifact.manifest.tflite()[FLOAT32]
    with opening_cost.linked_copy(symmetric_artifact) as directory:
        rows = tuple(opening_cost.measure(directory, entry, opening_run))
    assert [row.seconds is None for row in rows] == [row.opening == "cold" for row in rows]
    tables = dataclasses.replace(report, openings=rows).tables()
    assert "Cold openings are unknown" in shown(tables)


@needs_smaps
def test_memory_is_for_every_number_of_threads_and_beams_with_the_longest_source(report):
    rows = [(row.num_threads, row.num_beams, row.source) for row in report.memory]
    assert rows == [(threads, beams, 9) for threads in (1, 2) for beams in (1, 3)]
    assert all(row.private_bytes > 0 for row in report.memory)


@needs_smaps
def test_weights_are_shared_with_another_process_that_has_them(mini_artifact):
    run = OpeningRun(FLOAT32, 1, source=16, num_beams=1, new_tokens=4)
    with opening_cost.linked_copy(mini_artifact) as directory:
        opening_cost.open_in_process(directory, run)  # packs the weights
        alone = opening_cost.open_in_process(directory, run)["text"]
        beside = opening_cost.memory(directory, mini_artifact.manifest.tflite()[FLOAT32], run)
    # Packed weights are about as large as the file, 31 MB; a short text reads some of them.
    assert beside.shared_bytes - alone.shared_bytes > 15e6
    assert alone.private_bytes - beside.private_bytes > 15e6


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ((65, 4, 15), "takes at most 64 source tokens"),
        ((64, 5, 15), "takes at most 4 beams"),
        ((64, 4, 16), "takes at most 15 new tokens"),
        ((64, 3, 15), None),
    ],
)
def test_what_a_static_build_has_no_room_for_is_skipped(work, words):
    reason = measurements.unsupported_reason(StaticShapes((16, 64), 16, (1, 4)), *work)
    assert reason is None if words is None else words in reason
    assert measurements.unsupported_reason(None, *work) is None


def test_configurations_take_turns(symmetric_artifact, monkeypatch, no_openings):
    turns = []
    measure = benchmark.GenerationBenchmark.measure

    def noted(work):
        turns.append(work.row.num_beams)
        return measure(work)

    monkeypatch.setattr(benchmark.GenerationBenchmark, "measure", noted)
    report = bench(
        symmetric_artifact.directory, sources=(4,), new_tokens=2, num_beams=(1, 2), runs=2
    )
    assert turns == [1, 2] * 3
    assert [len(row.runs) for row in report.generation] == [2, 2]  # the first does not count


@pytest.mark.parametrize("static", [False, True])
def test_usual_lengths_are_lowered_to_what_fits(symmetric_artifact, tmp_path, no_openings, static):
    artifact, longest, most = symmetric_artifact, 64, 63
    if static:
        shapes = StaticShapes(source_lengths=(8,), target_length=16, num_beams=(1,))
        artifact = static_builds.add(artifact, shapes, ["float32"], tmp_path / "both")
        artifact = variant(artifact, tmp_path / "static", without=[FLOAT32])
        longest, most = 8, 15
    report = bench(artifact.directory, num_beams=(1,), num_threads=(1,), runs=1)
    assert report.settings.new_tokens == most
    assert [(row.source, row.new_tokens) for row in report.generation] == [(longest, most)]
    text = shown(report.tables())
    assert f"Source 512 was skipped: no file supports more than {longest}." in text
    assert f"64 new tokens were skipped: no file supports more than {most}." in text


def test_builds_of_a_recipe_are_rows_of_their_own(symmetric_artifact, tmp_path, no_openings):
    shapes = StaticShapes(source_lengths=(8,), target_length=8, num_beams=(1,))
    both = static_builds.add(symmetric_artifact, shapes, ["float32"], tmp_path / "both")
    report = bench(both.directory, sources=(4, 9), new_tokens=2, num_beams=(1, 2), runs=1)
    assert [row.name for row in report.files] == ["float32", "float32 (static)"]
    rows = [(row.build, row.source, row.num_beams) for row in report.generation]
    everything = [("dynamic", source, beams) for source in (4, 9) for beams in (1, 2)]
    assert rows == [*everything, ("static", 4, 1)]
    skipped = [(row.build, row.source, row.num_beams) for row in report.skipped]
    assert skipped == [("static", 4, 2), ("static", 9, 1), ("static", 9, 2)]
    assert "float32 (static) with 2 beams: source 4 was skipped" in shown(report.tables())


def test_the_command_prints_ratios_to_another_report(
    symmetric_artifact, report, tmp_path, monkeypatch
):
    monkeypatch.setattr(opening_cost, "REPEATS", 1)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(report.to_dict()))
    few = "--source 4,9 --source 9 --threads 1 --num-beams 1 --runs 1 --json --new-tokens"
    arguments = [symmetric_artifact.directory, "--compare", other, *few.split(), NEW_TOKENS]
    compared = json.loads(printed("bench", *arguments))["comparison"]
    assert [row["bytes"] for row in compared["files"]] == [1.0]
    rows = [(row["num_threads"], row["source"], row["num_beams"]) for row in compared["generation"]]
    assert rows == [(1, 4, 1), (1, 9, 1)]
    assert {row["num_threads"] for row in compared["only_there"]} == {1, 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare", "missing.json"], "Cannot read the report missing.json"),
        (["--serve", "--compare", "missing.json"], "--compare contradicts --serve"),
        (["--serve", "--threads", "1,2"], "--threads takes one number"),
        (["--serve", "--source", "4", "--source", "5"], "--source takes one number"),
        (["--serve", "--recipe", "float32"], "--recipe contradicts --serve"),
        (["--serve", "--num-beams", "4"], "--num-beams contradicts --serve"),
        (["--serve", "--num-texts", "8"], "--num-texts contradicts --serve"),
        (["--num-texts", "0"], "0 is not in the range"),
        (["--serve", "--overload", "nan"], "'nan' is not a number of seconds"),
        (["--overload", "5"], "--overload needs --serve"),
        (["--engine", "litert"], "--engine needs --serve"),
        (["--serve", "--engine", "edgetpu"], "must be one of litert, tensorflow, received"),
        (["--queue-size", "0"], "--queue-size needs --serve"),
        (["--num-beams", "1,0"], "0 is not in the range"),
        (["--recipe", "int7"], "It has: float32"),
        (["--new-tokens", "64"], "--new-tokens must be at most 63 for this model"),
        (["--source", "4,"], "'' is not a valid integer"),
    ],
)
def test_the_command_refuses_before_it_measures(symmetric_artifact, options, words):
    assert words in refusal("bench", symmetric_artifact.directory, *options)


def test_an_altered_file_is_named_where_it_lies(symmetric_artifact, tmp_path):
    directory = shutil.copytree(symmetric_artifact.directory, tmp_path / "altered")
    file = directory / FLOAT32
    flip(file)
    line = refusal("bench", directory)
    assert line.startswith(f"Error: {file} does not match its manifest")


def test_a_process_that_fails_says_why_without_a_class(symmetric_artifact, opening_run):
    run = dataclasses.replace(opening_run, source=100_000)
    with pytest.raises(EngineError, match=r"separate process failed: A source must have 1 to"):
        opening_cost.open_in_process(symmetric_artifact.directory, run)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_forced_to_the_number_of_tokens(symmetric_artifact, num_beams, monkeypatch):
    engine = open_engine(symmetric_artifact, FLOAT32, num_threads=1)
    found, run = [], measurements.run
    monkeypatch.setattr(measurements, "run", lambda *given: found.extend(run(*given)))
    settings = measurements.forced_settings(symmetric_artifact.generation, NEW_TOKENS, num_beams)
    timing = measurements.generate(engine, [0, 5, 2], settings)
    assert len(found[0].token_ids) == NEW_TOKENS + 1
    assert symmetric_artifact.generation.eos_token_id not in found[0].token_ids[1:]
    assert 0 < timing.encode < timing.encode + NEW_TOKENS * timing.step < 3 * timing.total
