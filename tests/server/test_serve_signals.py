"""A server in a process of its own is told to end: what runs finishes, what is new is refused."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from support.arithmetic_server import connects, over_grpc, process, rest
from support.served_directories import add_version, wait_until


@pytest.fixture
def base_path(tmp_path):
    """A model with one version."""
    path = tmp_path / "m"
    add_version(path, 1)
    return path


def busy(served):
    """Return how many calls the model works on."""
    url = f"http://127.0.0.1:{served.rest_api_port}/monitoring/prometheus/metrics"
    lines = httpx.get(url).text.splitlines()
    (line,) = (line for line in lines if line.startswith(":bart_export:requests_in_progress{"))
    return float(line.split()[-1])


def start(threads, served, ask, count=1, **given):
    """Start calls in threads, and return their futures once all of them run."""
    port = served.port if ask is over_grpc else served.rest_api_port
    before = busy(served) if given.pop("more", False) else 0
    futures = [threads.submit(ask, port, **given) for _ in range(count)]
    wait_until(lambda: connects(served.rest_api_port) and busy_or_none(served) == before + count)
    return futures


def busy_or_none(served):
    """Return what `busy` does, or 0 before the first call."""
    try:
        return busy(served)
    except ValueError:
        return 0


def test_it_says_where_it_listens_and_what_it_serves(base_path):
    with process(base_path) as served:
        assert served.lines == [
            f"gRPC: 127.0.0.1:{served.port}",
            f"REST: http://127.0.0.1:{served.rest_api_port}/v1/models/NAME",
            f"Page: http://127.0.0.1:{served.rest_api_port}/",
            "Model m: version 1",
        ]
        assert list(over_grpc(served.port, x=[1.0]).outputs["y"].float_val) == [2.5]
        assert rest(served.rest_api_port, x=[1.0]).json() == {"outputs": [2.5]}
        served.signal()
        code, errors = served.ended()
    assert code == 0
    assert "access control" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_calls_finish_and_refuses_new_ones(base_path, number):
    with process(base_path) as served, ThreadPoolExecutor(2) as threads:
        wait = {"signature": "wait", "seconds": [4.0]}
        (first,) = start(threads, served, over_grpc, **wait)
        (second,) = start(threads, served, rest, more=True, **wait)
        assert not first.done()
        served.signal(number)
        wait_until(lambda: not connects(served.port) and not connects(served.rest_api_port))
        with pytest.raises(grpc.RpcError) as caught:
            over_grpc(served.port, x=[1.0])
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(httpx.ConnectError):
            rest(served.rest_api_port, x=[1.0])
        assert list(first.result().outputs["seconds"].float_val) == [4.0]
        assert second.result().json() == {"outputs": [4.0]}
        code, errors = served.ended()
    assert code == 0
    assert "Traceback" not in errors


def test_calls_that_outlast_the_drain_are_stopped(base_path):
    with (
        process(base_path, "--drain-seconds", "0.5") as served,
        ThreadPoolExecutor(2) as threads,
    ):
        wait = {"signature": "wait", "seconds": [30.0]}
        (first,) = start(threads, served, over_grpc, **wait)
        (second,) = start(threads, served, rest, more=True, **wait)
        began = time.monotonic()
        served.signal()
        code, errors = served.ended()
        assert time.monotonic() - began < 10
        with pytest.raises(grpc.RpcError) as caught:
            first.result()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert (second.result().status_code, second.result().json()) == (
            503,
            {"error": "The server is ending"},
        )
    assert code == 0
    assert "Traceback" not in errors


def test_work_that_cannot_be_stopped_does_not_keep_the_server(base_path):
    with (
        process(base_path, "--drain-seconds", "0.5") as served,
        ThreadPoolExecutor(1) as threads,
    ):
        (call,) = start(threads, served, over_grpc, signature="deaf", seconds=[30.0])
        began = time.monotonic()
        served.signal()
        code, errors = served.ended()
        assert time.monotonic() - began < 10
        with pytest.raises(grpc.RpcError):
            call.result()
    assert code == 0
    assert "Ending in the midst of work that could not be stopped" in errors


def test_libraries_are_not_taken_apart_at_the_end(base_path, monkeypatch):
    monkeypatch.setenv("ABORT_AT_EXIT", "1")
    with process(base_path) as served:
        assert rest(served.rest_api_port, x=[1.0]).json() == {"outputs": [2.5]}
        served.signal()
        code, errors = served.ended(60)
    assert code == 0
    assert errors.splitlines()[-1].endswith("m: unloaded version 1")


def test_a_second_signal_ends_at_once(base_path):
    with process(base_path) as served, ThreadPoolExecutor(1) as threads:
        (call,) = start(threads, served, over_grpc, signature="wait", seconds=[30.0])
        served.signal()
        wait_until(lambda: not connects(served.port))
        served.signal()
        code, _ = served.ended(10)
        with pytest.raises(grpc.RpcError):
            call.result()
    assert code == 128 + signal.SIGTERM


def test_a_signal_while_models_load_ends_at_once(base_path):
    (base_path / "1" / "slow").write_text("30")
    with process(base_path, ready=False) as served:
        assert "served from" in served.process.stderr.readline()
        served.signal()
        code, _ = served.ended(10)
    assert code == 128 + signal.SIGTERM


def test_a_host_that_others_reach_is_warned_of(base_path):
    with process(base_path, "--host", "0.0.0.0") as served:
        assert over_grpc(served.port, x=[1.0]).outputs
        served.signal()
        code, errors = served.ended()
    assert code == 0
    assert "WARNING Listening on 0.0.0.0: everybody who reaches this machine" in errors


def test_the_configuration_is_read_again(tmp_path, base_path):
    config = tmp_path / "models.config"
    listed = 'config {{ name: "{}" base_path: "{}" model_platform: "tensorflow" }}'

    def write(*names):
        models = " ".join(listed.format(name, base_path) for name in names)
        (tmp_path / "new").write_text(f"model_config_list {{ {models} }}")
        (tmp_path / "new").rename(config)

    write("m")
    polling = "--model-config-file-poll-seconds", "0.1"
    with process("--model-config-file", config, *polling) as served:
        assert rest(served.rest_api_port, x=[1.0]).status_code == 200
        url = f"http://127.0.0.1:{served.rest_api_port}/v1/models/n"
        assert httpx.get(url).status_code == 404
        write("m", "n")
        wait_until(lambda: httpx.get(url).status_code == 200)
