"""The life of a server, in this process and in one that gets signals."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.arithmetic_server import LOOPBACK, connects, open_arithmetic, over_grpc, rest
from support.rest_server import running
from support.served_directories import add_version, served

from bart_export.errors import ConfigurationError
from bart_export.server import opening
from bart_export.server.options import ServeOptions
from bart_export.server.status import StatusError


@pytest.fixture(autouse=True)
def arithmetic(monkeypatch):
    monkeypatch.setitem(opening.ENGINES, "tensorflow", open_arithmetic)


@pytest.fixture
def base_path(tmp_path):
    """A model with one version."""
    path = tmp_path / "m"
    add_version(path, 1)
    return path


def options(**fields):
    return ServeOptions(**{"port": 0, "rest_api_port": 0, "load_retries": 0, **fields})


def test_both_ports_answer_and_are_closed_at_the_end(base_path):
    with running([served(base_path)], options()) as server:
        assert rest(server.rest_api_port, x=[1.0]).json() == {"outputs": [2.5]}
        assert list(over_grpc(server.port, x=[1.0]).outputs["y"].float_val) == [2.5]
        assert server.store.names() == ["m"]
    assert not connects(server.port)
    assert not connects(server.rest_api_port)


@pytest.mark.parametrize("field", ["port", "rest_api_port"])
def test_a_port_in_use_is_one_line(base_path, field):
    with socket.create_server((LOOPBACK, 0)) as taken:
        number = taken.getsockname()[1]
        with (
            pytest.raises(
                ConfigurationError, match=f"Cannot listen on {LOOPBACK}:{number}"
            ) as told,
            running([served(base_path)], options(**{field: number})),
        ):
            pass
    assert f"--{field.replace('_', '-')}" in str(told.value)


def test_a_port_that_is_taken_while_models_load_is_one_line(base_path, capfd):
    (base_path / "1" / "slow").write_text("0.5")
    with socket.create_server((LOOPBACK, 0)) as free:
        number = free.getsockname()[1]
    with ThreadPoolExecutor(1) as threads:

        def serving():
            with running([served(base_path)], options(port=number)):
                pass

        outcome = threads.submit(serving)
        time.sleep(0.25)
        with (
            socket.create_server((LOOPBACK, number)),
            pytest.raises(ConfigurationError, match=f"Cannot serve gRPC on .*:{number}"),
        ):
            outcome.result()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"port": 8500, "rest_api_port": 8500}, "need a port each"),
        ({"host": "no.such.host.invalid"}, "Cannot listen on no.such.host.invalid"),
        ({"host": "192.0.2.1"}, "Cannot listen on 192.0.2.1:0"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(base_path, fields, told):
    with (
        pytest.raises(ConfigurationError, match=told),
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
