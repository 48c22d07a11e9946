"""The life cycle of a server, in this process and in one that receives signals."""

import ctypes
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from support.arithmetic_server import (
    LOOPBACK,
    connects,
    open_arithmetic,
    over_grpc,
    process,
    rest,
)
from support.rest_server import running
from support.served_directories import add_version, served, wait_until

from bart_export.errors import ConfigurationError
from bart_export.server import open_version
from bart_export.server.options import ServeOptions
from bart_export.server.status import StatusError


@pytest.fixture(autouse=True)
def arithmetic(monkeypatch):
    monkeypatch.setattr(open_version, "open_servable", open_arithmetic)


@pytest.fixture
def base_path(tmp_path):
    """A model with one version."""
    path = tmp_path / "m"
    add_version(path, 1)
    return path


def options(**fields):
    return ServeOptions(**{"port": 0, "rest_api_port": 0, **fields})


def test_both_ports_answer_and_are_closed_at_the_end(base_path):
    with running([served(base_path)], options()) as server:
        assert rest(server.rest_api_port, x=[1.0]).json() == {"outputs": [2.5]}
        assert list(over_grpc(server.port, x=[1.0]).outputs["y"].float_val) == [2.5]
        assert list(server.store.served) == ["m"]
    assert not connects(server.port)
    assert not connects(server.rest_api_port)


def test_a_port_that_is_taken_while_models_load_is_one_line(base_path, capfd, monkeypatch):
    loading, taken = threading.Event(), threading.Event()

    def open_slowly(*arguments):
        loading.set()
        assert taken.wait(60)
        return open_arithmetic(*arguments)

    monkeypatch.setattr(open_version, "open_servable", open_slowly)
    with socket.create_server((LOOPBACK, 0)) as free:
        number = free.getsockname()[1]
    with ThreadPoolExecutor(1) as threads:

        def serving():
            with running([served(base_path)], options(port=number)):
                pass

        outcome = threads.submit(serving)
        assert loading.wait(60)
        with socket.create_server((LOOPBACK, number)):
            taken.set()
            with pytest.raises(ConfigurationError, match=f"Cannot serve gRPC on .*:{number}"):
                outcome.result()
    assert capfd.readouterr().err == ""


USED = f"Cannot listen on {LOOPBACK}:{{used}}: .* Choose a free port with --"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"port": None}, f"{USED}port"),
        ({"rest_api_port": None}, f"{USED}rest-api-port"),
        ({"port": 8500, "rest_api_port": 8500}, "need different ports"),
        ({"host": "no.such.host.invalid"}, "Cannot listen on no.such.host.invalid"),
        ({"host": "192.0.2.1"}, "Cannot listen on 192.0.2.1:0"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(base_path, fields, told):
    with socket.create_server((LOOPBACK, 0)) as taken:
        used = taken.getsockname()[1]
        fields = {name: value or used for name, value in fields.items()}
        with (
            pytest.raises(ConfigurationError, match=told.format(used=used)),
            running([served(base_path)], options(**fields)),
        ):
            pass


def test_no_port_is_open_before_everything_is_loaded(base_path):
    (base_path / "1" / "slow").write_text("0.6")
    with socket.create_server((LOOPBACK, 0)) as one, socket.create_server((LOOPBACK, 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
    settings = options(port=ports[0], rest_api_port=ports[1])
    began = time.monotonic()
    with ThreadPoolExecutor(1) as threads:

        def first_connection():
            while not any(connects(port) for port in ports):
                time.sleep(0.01)
            return time.monotonic() - began

        first = threads.submit(first_connection)
        with running([served(base_path)], settings):
            assert first.result() > 0.6


def test_a_model_that_cannot_be_loaded_ends_the_start(base_path):
    (base_path / "1" / "broken").touch()
    with socket.create_server((LOOPBACK, 0)) as free:
        number = free.getsockname()[1]
    with (
        pytest.raises(StatusError, match="it is broken"),
        running([served(base_path)], options(rest_api_port=number)),
    ):
        pass
    assert not connects(number)


def working(server):
    """Return the number of running calls."""
    url = f"http://127.0.0.1:{server.rest_api_port}/monitoring/prometheus/metrics"
    found = re.search(
        r"^:bart_export:requests_in_progress{.* (.*)$", httpx.get(url, timeout=20).text, re.M
    )
    return float(found[1]) if found else 0


def start(threads, server, ask, **given):
    """Start a call in a thread; return its future once the server has it."""
    before = working(server)
    future = threads.submit(ask, server.port if ask is over_grpc else server.rest_api_port, **given)
    wait_until(lambda: working(server) == before + 1)
    return future


def test_it_says_where_it_listens_and_what_it_serves(base_path):
    with process(base_path) as server:
        assert server.lines == [
            f"gRPC: 127.0.0.1:{server.port}",
            f"REST: http://127.0.0.1:{server.rest_api_port}/v1/models/NAME",
            f"Page: http://127.0.0.1:{server.rest_api_port}/",
            "Model m: version 1",
        ]
        assert list(over_grpc(server.port, x=[1.0]).outputs["y"].float_val) == [2.5]
        assert rest(server.rest_api_port, x=[1.0]).json() == {"outputs": [2.5]}
        code, errors = server.stop()
    assert code == 0
    assert "access control" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_calls_finish_and_refuses_new_ones(base_path, number):
    with process(base_path) as server, ThreadPoolExecutor(2) as threads:
        wait = {"signature": "wait", "seconds": [4.0]}
        first = start(threads, server, over_grpc, **wait)
        second = start(threads, server, rest, **wait)
        assert not first.done()
        server.signal(number)
        wait_until(lambda: not connects(server.port) and not connects(server.rest_api_port))
        with pytest.raises(grpc.RpcError) as caught:
            over_grpc(server.port, x=[1.0])
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(httpx.ConnectError):
            rest(server.rest_api_port, x=[1.0])
        assert list(first.result().outputs["seconds"].float_val) == [4.0]
        assert second.result().json() == {"outputs": [4.0]}
        code, errors = server.ended()
    assert code == 0
    assert "Traceback" not in errors


def test_calls_that_outlast_the_drain_are_stopped(base_path):
    with (
        process(base_path, "--drain-seconds", "0.5") as server,
        ThreadPoolExecutor(2) as threads,
    ):
        wait = {"signature": "wait", "seconds": [30.0]}
        first = start(threads, server, over_grpc, **wait)
        second = start(threads, server, rest, **wait)
        code, errors = server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            first.result()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert (second.result().status_code, second.result().json()) == (
            503,
            {"error": "The server is stopping"},
        )
    assert code == 0
    assert "Traceback" not in errors


def test_work_that_cannot_be_stopped_does_not_keep_the_server(base_path):
    with (
        process(base_path, "--drain-seconds", "0.5") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        call = start(threads, server, over_grpc, signature="deaf", seconds=[100.0])
        code, errors = server.stop(60)
        with pytest.raises(grpc.RpcError):
            call.result()
    assert code == 0
    assert "Exiting with calls still running that could not be stopped" in errors


def test_libraries_are_not_taken_apart_at_the_end(base_path, monkeypatch):
    monkeypatch.setenv("ABORT_AT_EXIT", "1")
    with process(base_path) as server:
        assert rest(server.rest_api_port, x=[1.0]).json() == {"outputs": [2.5]}
        code, errors = server.stop()
    assert code == 0
    assert errors.splitlines()[-1].endswith("m: unloaded version 1")


def test_a_second_signal_ends_at_once(base_path):
    with process(base_path) as server, ThreadPoolExecutor(1) as threads:
        call = start(threads, server, over_grpc, signature="wait", seconds=[30.0])
        server.signal()
        wait_until(lambda: not connects(server.port))
        code, _ = server.stop()
        with pytest.raises(grpc.RpcError):
            call.result()
    assert code == 128 + signal.SIGTERM


def test_a_signal_while_models_load_ends_at_once(base_path):
    (base_path / "1" / "slow").write_text("100")
    with process(base_path, ready=False) as server:
        wait_until(lambda: server.logged(": serving "))
        pid = server.process.pid
        other = next(int(tid) for tid in os.listdir(f"/proc/{pid}/task") if int(tid) != pid)
        # Interrupts another thread, not the event loop's.
        assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
        code, _ = server.ended()
    assert code == 128 + signal.SIGTERM


def test_a_host_that_others_reach_is_warned_of(base_path):
    with process(base_path, "--host", "0.0.0.0") as server:
        assert over_grpc(server.port, x=[1.0]).outputs
        code, errors = server.stop()
    assert code == 0
    assert "WARNING Listening on 0.0.0.0: anyone who can reach this machine" in errors


def test_the_configuration_is_read_again(tmp_path, base_path):
    config = tmp_path / "models.config"
    listed = 'config {{ name: "{}" base_path: "{}" model_platform: "tensorflow" }}'

    def write(*names):
        models = " ".join(listed.format(name, base_path) for name in names)
        (tmp_path / "new").write_text(f"model_config_list {{ {models} }}")
        (tmp_path / "new").rename(config)

    write("m")
    polling = "--model-config-file-poll-seconds", "0.1"
    with process("--model-config-file", config, *polling) as server:
        assert rest(server.rest_api_port, x=[1.0]).status_code == 200
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/n"
        assert httpx.get(url, timeout=20).status_code == 404
        write("m", "n")
        wait_until(lambda: httpx.get(url, timeout=20).status_code == 200)
