import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import GOLDEN
from rich.console import Console

from bart_export.artifact.artifact import sha256
from bart_export.artifact.manifest import FileEntry
from bart_export.bench import machine, serving_overload
from bart_export.bench import serving_bench as serve_bench
from bart_export.bench import serving_client as serve_client
from bart_export.bench.serving_client import Answer, Clients, RestAsker, client_process
from bart_export.bench.serving_process import server_process
from bart_export.bench.serving_work import (
    Work,
    check_answer,
    inputs_of,
    requests_of,
    search_settings,
)
from bart_export.cli.main import main
from bart_export.errors import ArtifactError, ConfigurationError, EngineError, pip_install
from bart_export.export.options import TfliteOptions
from bart_export.export.pipeline import export
from bart_export.recipes.table import RECIPES
from bart_export.server.options import ServeOptions

ENGINES = ["tensorflow", "litert"]
WORK = Work(source=6, new_tokens=5)
OVERLOAD_SECONDS = 1.5


@pytest.fixture(scope="module")
def artifact(saved_model_artifact, tmp_path_factory):
    """Return an artifact that both engines can serve."""
    directory = tmp_path_factory.mktemp("served") / "both"
    shutil.copytree(saved_model_artifact.directory, directory)
    options = TfliteOptions((RECIPES["float32"],))
    return export(str(GOLDEN / "bart_tiny_symmetric"), options, directory)


# Both engines, alone and overloaded: whatever reads the report is slow.
@pytest.fixture(scope="module", params=[pytest.param("all", marks=pytest.mark.slow)])
def report(artifact):
    return serve_bench.serve_bench(
        artifact.directory,
        source=WORK.source,
        new_tokens=WORK.new_tokens,
        num_threads=1,
        queue_size=1,
        overload_seconds=OVERLOAD_SECONDS,
        runs=2,
    )


@pytest.fixture(scope="module")
def server(artifact):
    """Return a server that runs one request and lets none wait."""
    with server_process(artifact.directory, "litert", ServeOptions(queue_size=0)) as running:
        yield running


@pytest.fixture(scope="module")
def requests(artifact, server):
    return requests_of(server.model, inputs_of(artifact, WORK, 1, 3))


@pytest.fixture
def clients(server, requests):
    with client_process(server.ports, requests) as process:
        yield process


def test_the_report_is_json_and_has_every_configuration_once(report):
    assert json.loads(json.dumps(report)) == report
    assert report["schema_version"] == 1
    assert report["settings"] == {
        "served": dataclasses.asdict(WORK),
        "batched": dataclasses.asdict(WORK),
        "workers": None,
        "num_threads": 1,
        "queue_size": 1,
        "runs": 2,
    }
    assert [row["engine"] for row in report["engines"]] == ENGINES
    ways = [(row["engine"], row["front"]) for row in report["overhead"]]
    assert ways == [(engine, front) for engine in ENGINES for front in ("rest", "grpc")]
    crowds = [(row["engine"], row["clients"]) for row in report["throughput"]]
    assert crowds == [(engine, clients) for engine in ENGINES for clients in (1, 4)]
    assert [row["batch"] for row in report["batches"]] == [1, 8]
    assert [row["engine"] for row in report["overload"]] == ENGINES


def test_overhead_is_what_a_request_takes_beside_its_engine(report):
    for row in report["overhead"]:
        more = row["request_seconds"] - row["engine_seconds"]
        assert row["overhead_seconds"] == pytest.approx(more)
        assert row["overhead_share"] == pytest.approx(more / row["engine_seconds"])
        assert 0 < row["front_seconds"] < row["request_seconds"]


def test_throughput_counts_answers_alone(report):
    for row in report["throughput"]:
        assert 0 < row["answered"] <= row["requests"] == 2 * 3 * row["clients"]
        assert min(row["runs"]) <= row["requests_per_second"] <= max(row["runs"])
        assert row["p50_seconds"] <= row["p99_seconds"]
    for row in report["batches"]:
        tokens = row["tokens_per_second"] * row["seconds"]
        assert tokens == pytest.approx(row["batch"] * WORK.new_tokens)


def test_engines_are_compared_where_they_search_alike(artifact, report):
    rates = {(row["engine"], row["clients"]): row["requests_per_second"]
             for row in report["throughput"]}  # fmt: skip
    for clients in (1, 4):
        expected = rates["litert", clients] / rates["tensorflow", clients]
        assert report["ratio"][str(clients)] == pytest.approx(expected)
    other = dataclasses.replace(artifact, generation=artifact.generation.replace(num_beams=7))
    assert serve_bench.ratios(other, [subject(engine) for engine in ENGINES]) is None
    assert serve_bench.ratios(artifact, [subject("litert")]) is None


def subject(engine):
    rates = dict.fromkeys(serve_bench.CLIENTS, [1.0])
    return serve_bench.Subject(engine, None, None, None, None, rates=rates)


def test_a_saved_model_searches_as_it_was_exported(artifact, tmp_path):
    assert search_settings(artifact, "tensorflow")["num_beams"] == artifact.generation.num_beams
    content = json.loads((artifact.directory / "golden.json").read_text())
    for case in content["cases"]:
        case["files"].pop("saved_model/1", None)
    golden = tmp_path / "golden.json"
    golden.write_text(json.dumps(content))
    entry = FileEntry(golden.stat().st_size, sha256(golden))
    files = {**artifact.manifest.files, "golden.json": entry}
    manifest = dataclasses.replace(artifact.manifest, files=files)
    unasked = dataclasses.replace(artifact, directory=tmp_path, manifest=manifest)
    assert set(search_settings(unasked, "tensorflow").values()) == {None}


def test_a_server_asked_for_too_much_refuses_and_answers_rightly(report):
    for row in report["overload"]:
        assert row["rate"] == pytest.approx(2 * row["capacity"])
        assert row["requests"] == pytest.approx(row["rate"] * OVERLOAD_SECONDS, abs=1)
        assert row["accepted"] + row["refused"] == row["requests"]
        assert row["accepted"] > 0 and row["refused"] > 0
        assert (row["other"], row["wrong"]) == ({}, 0)


@pytest.mark.skipif(not machine.SMAPS.exists(), reason="the system does not say")
def test_memory_under_overload_is_the_servers(report):
    for row in report["overload"]:
        assert len(row["resident_bytes"]) >= 1
        assert all(size > 20 << 20 for _, size in row["resident_bytes"])


def test_the_tables_say_what_the_report_does(report):
    console = Console(width=200)
    with console.capture() as printed:
        console.print(serve_bench.tables(report))
    text = printed.get()
    for row in report["throughput"]:
        assert f"{row['requests_per_second']:.2f}" in text
    assert f"4 clients: litert answers {report['ratio']['4']:.2f} ×" in text
    for row in report["overload"]:
        assert f"{row['accepted']} of {row['requests']} accepted, 0 of them wrong" in text


def test_every_answer_has_its_tokens_and_front_does_not_matter(clients, requests):
    _, over_rest = clients.in_turn("rest", 1, 3)
    _, over_grpc = clients.in_turn("grpc", 1, 3)
    assert [answer.question for answer in over_rest] == [0, 1, 2]
    assert {answer.new_tokens for answer in over_rest + over_grpc} == {WORK.new_tokens}
    assert [one.digest for one in over_rest] == [one.digest for one in over_grpc]


@pytest.mark.parametrize("front", ["rest", "grpc"])
def test_a_full_server_is_told_from_one_that_fails(server, requests, clients, front):
    _, answers = clients.in_turn(front, 6, 60)
    assert {answer.status for answer in answers} == {"200", "503"}
    with contextlib.closing(Clients({front: 1}, requests)) as nowhere:
        _, (answer,) = nowhere.in_turn(front, 1, 1)
    assert answer.status == {"rest": "ConnectionRefusedError", "grpc": "UNAVAILABLE"}[front]
    unknown = dataclasses.replace(
        requests,
        model="unknown",
        grpc=tuple(one.replace(b"both", b"none") for one in requests.grpc),
    )
    with contextlib.closing(Clients(server.ports, unknown)) as strangers:
        _, (answer,) = strangers.in_turn(front, 1, 1)
    assert answer.status == {"rest": "404", "grpc": "NOT_FOUND"}[front]


def test_requests_are_due_at_their_rate_and_late_ones_count_as_slow(clients):
    seconds, answers = clients.steadily(40, 1, 16)
    assert len(answers) == 40
    assert 0.9 < seconds < 3
    # Two clients cannot ask so often: a request waits for one, and its time runs.
    seconds, answers = clients.steadily(5000, 0.1, 2)
    assert len(answers) == 500
    assert max(answer.seconds for answer in answers) > 0.5 * seconds


def test_a_connection_is_kept_until_it_has_been_idle(server, requests, monkeypatch):
    asker = RestAsker(server.ports["rest"], requests)
    asker.ask(0)
    first = asker.connection.sock
    asker.ask(0)
    assert asker.connection.sock is first is not None
    monkeypatch.setattr(serve_client, "IDLE_SECONDS", 0.0)
    time.sleep(0.001)
    asker.ask(0)
    assert asker.connection.sock is not first
    asker.connection.close()


def test_the_server_says_how_long_it_waited_for_its_engine(server, clients):
    before = server.engine_seconds()
    _, answers = clients.in_turn("grpc", 1, 3)
    waited = server.engine_seconds() - before
    assert 0 < waited < sum(answer.seconds for answer in answers)


def test_the_server_ends_with_its_block(artifact):
    with server_process(artifact.directory, "litert", ServeOptions()) as running:
        assert running.model == "both"
        command = ["ps", "-o", "stat=", "-p", str(running.pid)]
        assert subprocess.run(command, capture_output=True, check=False).stdout
    assert not subprocess.run(command, capture_output=True, check=False).stdout


def test_a_server_that_fails_says_why(tmp_path):
    with (
        pytest.raises(EngineError, match="failed: There is no directory"),
        server_process(tmp_path / "nothing", "litert", ServeOptions()),
    ):
        pass


def test_wrong_answers_and_other_statuses_are_counted():
    answers = [
        Answer(0, "200", 0.1, 5, "a"),
        Answer(1, "200", 0.1, 5, "c"),
        Answer(0, "200", 0.1, 5, "b"),
        Answer(1, "503", 0.1, 0, ""),
        Answer(1, "500", 0.1, 0, ""),
        Answer(1, "500", 0.1, 0, ""),
    ]
    assert serving_overload.counts(answers, {0: "a", 1: "c"}) == {
        "requests": 6,
        "accepted": 3,
        "refused": 1,
        "other": {"500": 2},
        "wrong": 1,
    }


def test_memory_is_held_flat_from_when_the_server_has_settled():
    rows = [(0.0, 50), (5.0, 90), (60.0, 100), (65.0, 104), (70.0, 102)]
    assert serving_overload.spread(rows, 60) == pytest.approx(0.04)
    assert serving_overload.spread(rows, 100) is None


@pytest.mark.parametrize(
    ("status", "new_tokens", "words"),
    [
        ("503", 0, "Expected it to answer a request by itself, received 503"),
        ("200", 4, "Expected it to generate 5 tokens, received 4"),
    ],
)
def test_an_answer_that_is_not_the_work_ends_the_measurement(status, new_tokens, words):
    with pytest.raises(EngineError, match=words):
        check_answer("it", status, new_tokens, WORK)


def test_what_is_asked_is_the_same_every_time(artifact):
    first, second = (inputs_of(artifact, WORK, 2, 3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert one["encoder_token_ids"].shape == (2, WORK.source)
        assert one["max_length"].tolist() == one["min_length"].tolist() == [6, 6]
    assert not np.array_equal(first[0]["encoder_token_ids"], first[1]["encoder_token_ids"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"source": 100_000}, ConfigurationError, "--source must be at most 64"),
        ({"new_tokens": 100_000}, ConfigurationError, "--new-tokens must be at most 63"),
        ({"source": 0}, ConfigurationError, "source must be at least 1, received 0"),
        ({"runs": 0}, ConfigurationError, "runs must be at least 1, received 0"),
        ({"engines": ["tensorflow"]}, ArtifactError, "--target saved_model"),
    ],
)
def test_what_cannot_be_measured_is_refused(symmetric_artifact, arguments, error, words):
    with pytest.raises(error, match=words):
        serve_bench.serve_bench(
            symmetric_artifact.directory, **{"source": 4, "new_tokens": 4, **arguments}
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--serve", "--recipe", "float32"], "--recipe contradicts --serve"),
        (["--serve", "--num-beams", "4"], "--num-beams contradicts --serve"),
        (["--overload", "5"], "--overload needs --serve"),
        (["--engine", "litert"], "--engine needs --serve"),
        (["--queue-size", "0"], "--queue-size needs --serve"),
        (["--serve", "--source", "4", "--source", "5"], "--source can be given once"),
    ],
)
def test_options_that_contradict_are_refused(arguments, words):
    outcome = CliRunner().invoke(main, ["bench", "somewhere", *arguments])
    assert outcome.exit_code == 2
    assert words in outcome.output


def test_without_the_server_s_packages_the_command_says_what_to_install():
    code = (
        "import sys; sys.modules['grpc'] = None; from bart_export.cli.main import main;"
        "main(['bench', 'somewhere', '--serve'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "grpc" in ended.stderr and pip_install("serve") in ended.stderr
