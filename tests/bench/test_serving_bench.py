import contextlib
import dataclasses
import json
import os
import shutil
import time

import numpy as np
import pytest
from rich.console import Console
from support.command import python
from support.paths import SYMMETRIC

from bart_export.artifact.artifact import sha256
from bart_export.artifact.manifest import FileEntry
from bart_export.bench import measurements, serving, serving_bench, serving_overload
from bart_export.bench.serving import (
    Clients,
    RestClient,
    ServerAnswer,
    Workload,
    random_inputs,
    running,
    send_single,
)
from bart_export.bench.serving_bench import RequestsRow
from bart_export.errors import ArtifactError, ConfigurationError, EngineError, pip_install
from bart_export.export.options import TfliteOptions
from bart_export.export.pipeline import export
from bart_export.recipes.table import RECIPES

ENGINES = ["tensorflow", "litert"]
WORKLOAD = Workload(source=6, new_tokens=5)
OVERLOAD_SECONDS = 1.5


@pytest.fixture(scope="module")
def artifact(saved_model_artifact, tmp_path_factory):
    """Return an artifact that both engines can serve."""
    directory = tmp_path_factory.mktemp("served") / "both"
    shutil.copytree(saved_model_artifact.directory, directory)
    options = TfliteOptions((RECIPES["float32"],))
    return export(str(SYMMETRIC), options, directory)


# Both engines, also under overload: tests of the report are slow.
@pytest.fixture(scope="module", params=[pytest.param("all", marks=pytest.mark.slow)])
def report(artifact):
    return serving_bench.serve_bench(
        artifact.directory,
        source=WORKLOAD.source,
        new_tokens=WORKLOAD.new_tokens,
        num_threads=1,
        queue_size=1,
        overload_seconds=OVERLOAD_SECONDS,
        runs=2,
    )


@pytest.fixture(scope="module")
def server(artifact):
    """Return a server that runs one request and queues none."""
    with running(artifact.directory, "litert", "--no-batching", "--queue-size=0") as server:
        os.kill(server.pid, 0)  # the process exists
        yield server
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.fixture(scope="module")
def asked(artifact):
    return random_inputs(artifact, WORKLOAD, 1, 3)


@pytest.fixture
def clients(server, asked):
    with contextlib.closing(Clients(server, asked)) as clients:
        yield clients


def test_the_report_is_json_and_has_every_configuration_once(report):
    content = report.to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["schema_version"] == 1
    workload, asked = (
        dataclasses.asdict(WORKLOAD),
        {"workers": None, "num_threads": 1, "queue_size": 1},
    )
    assert content["settings"] == {"served": workload, "batched": workload, **asked, "runs": 2}
    assert [row["engine"] for row in content["engines"]] == ENGINES
    ways = [(row.engine, row.front) for row in report.overhead]
    assert ways == [(engine, front) for engine in ENGINES for front in ("rest", "grpc")]
    crowds = [(row.engine, row.clients) for row in report.throughput]
    assert crowds == [(engine, clients) for engine in ENGINES for clients in (1, 4)]
    assert [row.batch for row in report.batches] == [1, 8]
    assert [row.engine for row in report.overload] == ENGINES


def test_overhead_is_what_a_request_takes_beside_its_engine(report):
    for row in report.overhead:
        more = row.request_seconds - row.engine_seconds
        assert row.overhead_seconds == pytest.approx(more)
        assert row.overhead_share == pytest.approx(more / row.engine_seconds)
        assert 0 < row.front_seconds < row.request_seconds


def test_throughput_counts_answers_alone(report):
    for row in report.throughput:
        assert 0 < row.answered <= row.requests == 2 * 3 * row.clients
        assert min(row.runs) <= row.requests_per_second <= max(row.runs)
        assert row.p50_seconds <= row.p99_seconds
    for row in report.batches:
        tokens = row.tokens_per_second * row.seconds
        assert tokens == pytest.approx(row.batch * WORKLOAD.new_tokens)
        assert row.speedup == row.tokens_per_second / report.batches[0].tokens_per_second


def test_engines_are_compared_where_they_search_alike(artifact):
    rates = {("litert", 1): 2.0, ("litert", 4): 6.0, ("tensorflow", 1): 4.0, ("tensorflow", 4): 3.0}
    rows = [
        RequestsRow(*key, rate, None, None, requests=1, answered=1, runs=())
        for key, rate in rates.items()
    ]
    assert serving_bench.ratios(artifact, rows) == {"1": 0.5, "4": 2.0}
    generation = artifact.generation.replace(num_beams=7)
    manifest = dataclasses.replace(artifact.manifest, generation=generation)
    other = dataclasses.replace(artifact, manifest=manifest)
    assert serving_bench.ratios(other, rows) is None
    assert serving_bench.ratios(artifact, rows[:2]) is None


def test_a_saved_model_searches_as_it_was_exported(artifact, tmp_path):
    settings = serving_bench.search_settings(artifact, "tensorflow")
    assert settings["num_beams"] == artifact.generation.num_beams
    content = json.loads((artifact.directory / "golden.json").read_text())
    for case in content["cases"]:
        case["files"].pop("saved_model/1", None)
    golden = tmp_path / "golden.json"
    golden.write_text(json.dumps(content))
    entry = FileEntry(golden.stat().st_size, sha256(golden))
    files = {**artifact.manifest.files, "golden.json": entry}
    manifest = dataclasses.replace(artifact.manifest, files=files)
    unasked = dataclasses.replace(artifact, directory=tmp_path, manifest=manifest)
    assert set(serving_bench.search_settings(unasked, "tensorflow").values()) == {None}


def test_a_server_asked_for_too_much_refuses_and_answers_rightly(report):
    for row in report.overload:
        assert row.rate == pytest.approx(2 * row.capacity)
        assert row.requests == pytest.approx(row.rate * OVERLOAD_SECONDS, abs=1)
        assert row.accepted + row.refused == row.requests
        assert row.accepted > 0 and row.refused > 0
        assert (row.other, row.wrong) == ({}, 0)
        if measurements.SMAPS.exists():
            assert all(size > 20 << 20 for _, size in row.resident_bytes)
            assert len(row.resident_bytes) >= 1


def test_the_tables_say_what_the_report_does(report):
    console = Console(width=200)
    with console.capture() as printed:
        console.print(report.tables())
    text = printed.get()
    for row in report.throughput:
        assert f"{row.requests_per_second:.2f}" in text
    assert f"4 clients: litert answers {report.ratio['4']:.2f} ×" in text
    for row in report.overload:
        assert f"{row.accepted} of {row.requests} accepted, 0 of them wrong" in text


def test_every_answer_has_its_tokens_and_front_does_not_matter(clients):
    _, over_rest = clients.send_all("rest", 1, 3)
    _, over_grpc = clients.send_all("grpc", 1, 3)
    assert [answer.question for answer in over_rest] == [0, 1, 2]
    assert {answer.new_tokens for answer in over_rest + over_grpc} == {WORKLOAD.new_tokens}
    assert [answer.token_ids for answer in over_rest] == [answer.token_ids for answer in over_grpc]
    assert len({answer.token_ids for answer in over_rest}) > 1


@pytest.mark.parametrize(
    ("front", "closed", "unknown"),
    [("rest", "ConnectionRefusedError", "404"), ("grpc", "UNAVAILABLE", "NOT_FOUND")],
)
def test_a_full_server_is_told_from_one_that_fails(server, asked, clients, front, closed, unknown):
    _, answers = clients.send_all(front, 6, 60)
    assert {answer.status for answer in answers} == {"200", "503"}
    for change, status in (({"ports": {front: 1}}, closed), ({"model": "none"}, unknown)):
        with contextlib.closing(Clients(dataclasses.replace(server, **change), asked)) as others:
            _, (answer,) = others.send_all(front, 1, 1)
        assert answer.status == status


def test_requests_are_due_at_their_rate_and_late_ones_count_as_slow(clients):
    seconds, answers = clients.send_at_rate(40, 1, 16)
    assert len(answers) == 40
    assert 0.9 < seconds < 3
    # Two clients cannot keep up: requests wait for one, and their time runs.
    seconds, answers = clients.send_at_rate(5000, 0.1, 2)
    assert len(answers) == 500
    assert max(answer.seconds for answer in answers) > 0.5 * seconds


def test_a_connection_is_kept_until_it_has_been_idle(server, asked, monkeypatch):
    with contextlib.closing(RestClient(server, asked)) as client:
        client.send(0, 0.0)
        first = client.connection.sock
        client.send(0, 0.0)
        assert client.connection.sock is first is not None
        monkeypatch.setattr(serving, "IDLE_SECONDS", 0.0)
        time.sleep(0.001)
        client.send(0, 0.0)
        assert client.connection.sock is not first


def test_the_server_says_how_long_it_waited_for_its_engine(server, clients):
    before = server.engine_seconds()
    _, answers = clients.send_all("grpc", 1, 3)
    waited = server.engine_seconds() - before
    assert 0 < waited < sum(answer.seconds for answer in answers)


def test_a_server_that_fails_says_why(tmp_path):
    failing = running(tmp_path / "nothing", "litert")
    with pytest.raises(EngineError, match="failed: There is no directory"), failing:
        pass


def test_wrong_answers_and_other_statuses_are_counted():
    answers = [ServerAnswer(0, "200", 0.1, tokens, 5) for tokens in (b"a", b"a", b"b")]
    answers += [ServerAnswer(0, status, 0.1) for status in ("503", "500", "500")]
    assert serving_overload.counts(answers, {0: b"a"}) == {
        "requests": 6, "accepted": 3, "refused": 1, "other": {"500": 2}, "wrong": 1,
    }  # fmt: skip


def test_memory_is_held_flat_from_when_the_server_has_settled():
    rows = [(0.0, 50), (5.0, 90), (60.0, 100), (65.0, 104), (70.0, 102)]
    assert serving_overload.spread(rows, 60) == pytest.approx(0.04)
    assert serving_overload.spread(rows, 100) is None


@pytest.mark.parametrize(
    ("model", "new_tokens", "received"), [("none", 5, "404"), ("both", 4, "5 tokens")]
)
def test_an_answer_that_is_not_the_workload_ends_the_measurement(
    server, asked, model, new_tokens, received
):
    words = f"Expected it over rest to generate {new_tokens} tokens .* received {received}"
    with (
        contextlib.closing(Clients(dataclasses.replace(server, model=model), asked)) as clients,
        pytest.raises(EngineError, match=words),
    ):
        send_single("it", clients, "rest", Workload(WORKLOAD.source, new_tokens))


def test_what_is_asked_is_the_same_every_time(artifact):
    first, second = (random_inputs(artifact, WORKLOAD, 2, 3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert one["encoder_token_ids"].shape == (2, WORKLOAD.source)
        assert one["max_length"].tolist() == one["min_length"].tolist() == [6, 6]
    assert not np.array_equal(first[0]["encoder_token_ids"], first[1]["encoder_token_ids"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"source": 100_000}, ConfigurationError, "--source must be at most 64"),
        ({"new_tokens": 100_000}, ConfigurationError, "--new-tokens must be at most 63"),
        ({"engines": ["tensorflow"]}, ArtifactError, "--target saved_model"),
    ],
)
def test_what_cannot_be_measured_is_refused(symmetric_artifact, arguments, error, words):
    with pytest.raises(error, match=words):
        serving_bench.serve_bench(
            symmetric_artifact.directory, **{"source": 4, "new_tokens": 4, **arguments}
        )


def test_without_the_server_s_packages_the_command_says_what_to_install():
    program = (
        "import sys; sys.modules['grpc'] = None; from bart_export.cli.main import main;"
        "main(['bench', 'somewhere', '--serve'])"
    )
    ended = python(program)
    assert ended.returncode == 2
    assert "grpc" in ended.stderr and pip_install("serve") in ended.stderr
