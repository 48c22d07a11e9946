"""The throughput of files that generate several texts together."""

import pytest
from support import static_builds
from support.command import printed

from bart_export.bench import measurements, throughput
from bart_export.bench.bench import bench
from bart_export.bench.opening_cost import OpeningRun
from bart_export.contract import StaticShapes
from bart_export.runtime.generator import Generator

NEW_TOKENS = 5
FLOAT32 = "tflite/float32.tflite"
# Runs of two texts: encoding, decoding, searching, and the total.
RUNS = [(1.0, 4.0, 1.0, 8.0), (2.0, 4.0, 1.0, 10.0), (6.0, 6.0, 3.0, 20.0)]
PAIRS = [(4, 1), (4, 3), (9, 1)]


@pytest.fixture
def no_processes(monkeypatch, no_openings):
    """Skip what needs separate processes."""
    monkeypatch.setattr(throughput, "peak_bytes", lambda artifact, run: 1)


@pytest.fixture
def asked(monkeypatch):
    """Return the sources, beams and results of every call of a Generator."""
    calls, generate = [], Generator.generate_ids

    def noted(generator, sources, **settings):
        results = generate(generator, sources, **settings)
        calls.append((sources, settings["num_beams"], results))
        return results

    monkeypatch.setattr(Generator, "generate_ids", noted)
    return calls


def test_rows_are_of_all_texts_generated_together(symmetric_artifact, no_processes, asked):
    pairs = {FLOAT32: PAIRS}
    rows, skipped = throughput.measure(symmetric_artifact, pairs, (1, 3), (1,), NEW_TOKENS, 2)
    assert skipped == []
    configurations = [(texts, *pair) for texts in (1, 3) for pair in PAIRS]
    assert [(row.num_texts, row.source, row.num_beams) for row in rows] == configurations
    # A warm-up and two runs, in turn.
    turns = [(len(sources), len(sources[0]), beams) for sources, beams, _ in asked]
    assert turns == configurations * 3
    for sources, _, results in asked:
        assert len(set(map(tuple, sources))) == len(sources) == len(results)
        assert {len(source) for source in sources} == {len(sources[0])}
        assert {len(result.token_ids) for result in results} == {NEW_TOKENS + 1}
    for row in rows:
        assert len(row.runs) == 2
        assert min(row.runs) <= row.seconds_per_text * row.num_texts <= max(row.runs)
        generated = row.tokens_per_second * row.seconds_per_text
        assert generated == pytest.approx(NEW_TOKENS)
        shares = (row.encode_share, row.decode_share, row.search_share)
        assert min(shares) > 0
        assert sum(shares) <= 1


@pytest.fixture
def benchmark(symmetric_artifact):
    row = throughput.ThroughputRow("float32", "dynamic", 1, 4, 3, NEW_TOKENS, 2)
    with throughput.forced_generator(symmetric_artifact, FLOAT32, 1, NEW_TOKENS) as generator:
        yield throughput.ThroughputBenchmark(row, generator)


def test_a_run_has_what_the_scheduler_took_meanwhile(benchmark):
    benchmark.measure()
    scheduler = benchmark.generator.scheduler
    names = ("encode_seconds", "decode_seconds", "search_seconds")
    before = [getattr(scheduler, name) for name in names]
    *parts, total = benchmark.measure()
    for name, start, seconds in zip(names, before, parts, strict=True):
        assert seconds == getattr(scheduler, name) - start
        assert 0 < seconds < total


def test_a_row_has_medians_of_runs_and_of_their_shares(benchmark):
    benchmark.timings.extend(throughput.SchedulerTimes(*run) for run in RUNS)
    row = benchmark.summary()
    assert row.runs == (8.0, 10.0, 20.0)
    assert (row.seconds_per_text, row.tokens_per_second) == (5.0, 1.0)
    assert (row.encode_share, row.decode_share, row.search_share) == (0.2, 0.4, 0.125)


def test_a_file_with_one_source_is_measured_with_one_text_only(
    symmetric_artifact, tmp_path, no_processes
):
    shapes = StaticShapes(source_lengths=(8,), target_length=8, num_beams=(1,))
    both = static_builds.add(symmetric_artifact, shapes, ["float32"], tmp_path / "both")
    report = bench(
        both.directory, sources=(4, 9), new_tokens=2, num_beams=(1,), num_texts=(1, 2), runs=1
    )
    rows = [(row.build, row.num_texts, row.source) for row in report.throughput]
    dynamic = [("dynamic", texts, source) for texts in (1, 2) for source in (4, 9)]
    assert rows == [*dynamic, ("static", 1, 4)]
    reason = "float32 (static) with 2 texts was skipped: the file decodes one text at a time."
    assert [str(row) for row in report.skipped if row.num_texts] == [reason]


@pytest.mark.skipif(not measurements.STATUS.exists(), reason="the system does not say")
def test_the_peak_is_of_a_process_that_generates_all_texts(symmetric_artifact):
    one, many = (
        throughput.peak_bytes(
            symmetric_artifact, OpeningRun(FLOAT32, 1, 64, 4, NEW_TOKENS, num_texts)
        )
        for num_texts in (1, 64)
    )
    assert many > one > (symmetric_artifact.directory / FLOAT32).stat().st_size


def test_the_command_measures_texts_only_if_asked(symmetric_artifact, no_processes, asked):
    few = ["--source", 4, "--num-beams", 1, "--runs", 1, "--new-tokens", 2, "--threads", 1]
    printed("bench", symmetric_artifact.directory, *few)
    assert asked == []
    text = printed("bench", symmetric_artifact.directory, *few, "--num-texts", "1,3")
    assert [len(sources) for sources, _, _ in asked] == [1, 3] * 2
    assert "Texts generated together: 2 new tokens each, median of 1 run" in text
