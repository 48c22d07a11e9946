"""Slow connections, the connection limit, and checks of `Host` and `Origin`."""

import asyncio
import contextlib
import json
import os
import socket
import time

import httpx
import pytest
from starlette.exceptions import HTTPException
from support.arithmetic import Arithmetic
from support.rest_server import ANSWER, METRICS, MODEL, PREDICT, ROWS, serving
from support.served_directories import wait_until

from bart_export.server import http_server
from bart_export.server.options import ServeOptions

HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = f"{HEAD}Content-Length: {len(ROWS)}\r\n\r\n".encode() + ROWS
CHUNKED = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
# Incomplete requests.
HALF = {
    "nothing": b"",
    "a letter": b"P",
    "half a head": HEAD.encode(),
    "half a length": f"{HEAD}Content-Length: 50\r\n\r\n{{".encode(),
    "half a chunk": CHUNKED + b"ff\r\n{",
    "half of the second request": WHOLE + HEAD.encode(),
}


@pytest.fixture
def impatient(monkeypatch):
    for name in ("IDLE_SECONDS", "SENDING_SECONDS"):
        monkeypatch.setattr(http_server, name, 1.0)


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 100.0)


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def received(connection):
    """Return all bytes until the connection ends in any way."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            data += part
    return data


def test_what_is_not_finished_is_ended(impatient):
    with serving(request_seconds=0.5) as server, contextlib.ExitStack() as stack:
        connections = {name: stack.enter_context(connect(server)) for name in HALF}
        for name, connection in connections.items():
            connection.sendall(HALF[name])
        answers = {name: received(connection) for name, connection in connections.items()}
    for name, sent in HALF.items():
        assert (b"200 OK" in answers[name]) == sent.startswith(WHOLE), name
        is_late = b"\r\n\r\n" in sent and not sent.startswith(WHOLE)
        assert (b" 504 " in answers[name]) == is_late, name


def test_a_head_that_comes_byte_by_byte_has_no_more_time(impatient):
    with serving() as server, connect(server) as connection, pytest.raises(ConnectionError):
        for _ in range(1000):
            connection.sendall(b"P")
            time.sleep(0.05)


def test_a_slow_request_and_a_slow_answer_are_waited_for(impatient):
    body = json.dumps({"signature_name": "wait", "instances": [1.0]}).encode()
    with serving() as server, connect(server) as connection:
        connection.sendall(
            f"{HEAD}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        for byte in range(0, len(body), 4):
            time.sleep(0.1)
            connection.sendall(body[byte : byte + 4])
        assert received(connection).endswith(b'{"predictions": [1.0]}')


def test_a_client_that_takes_nothing_is_cut_off(impatient):
    large = json.dumps({"signature_name": "upper", "instances": ["a" * 8_000_000]}).encode()

    def files():
        return len(os.listdir("/proc/self/fd"))

    with serving(request_seconds=1, max_request_bytes=2**24) as server:
        before = files()
        with connect(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wait_until(lambda: files() == before + 2)
            connection.sendall(f"{HEAD}Content-Length: {len(large)}\r\n\r\n".encode() + large)
            wait_until(lambda: files() == before + 1, seconds=30)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (
            WHOLE[: len(HEAD)] + b"Content-Length: 1\r\n\r\n{" + b"nonsense\r\n\r\n",
            b"HTTP/1.1 400 ",
        ),
    ],
    ids=["first", "second"],
)
def test_bytes_that_are_no_request_are_answered_and_the_connection_closed(server, sent, answer):
    with connect(server) as connection:
        connection.sendall(sent)
        assert received(connection).startswith(answer)


def test_many_tiny_chunks_are_refused_and_larger_ones_are_not(server):
    def answer(size, count):
        with connect(server) as connection:
            chunk = f"{size:x}\r\n{' ' * size}\r\n".encode()
            end = f"{len(ROWS):x}\r\n".encode() + ROWS + b"\r\n0\r\n\r\n"
            request = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                connection.sendall(request + chunk * count + end)
            return received(connection)

    assert b" 200 " in answer(1, 500)
    assert b" 200 " in answer(100, 2000)
    assert b" 200 " not in answer(1, 2000)


def test_whoever_asks_takes_the_place_of_whoever_waits(patient):
    with serving(max_connections=20) as server, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(server)) for _ in range(60)]
        for each in waiting[:10]:
            each.sendall(HALF["half a length"])
        assert server.post(PREDICT, ROWS).json == ANSWER
        # 20 of 61 remain, and the one with the request is the newest.
        wait_until(lambda: sum(map(is_ended, waiting)) >= 41)
        assert not is_ended(waiting[-1])


def is_ended(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_where_all_are_at_work_a_new_one_is_refused(patient):
    with serving(Arithmetic(workers=1), max_connections=2) as server:
        body = json.dumps({"signature_name": "wait", "instances": [60.0]})
        at_work = ':bart_export:requests_in_progress{model_name="m"} 2.0'
        with server.connection() as one, server.connection() as other:
            for busy in (one, other):
                busy.request("POST", PREDICT, body)
            wait_until(lambda: at_work in server.numbers.exposition())
            with connect(server) as refused:
                assert received(refused) == b""
            assert at_work in server.numbers.exposition()


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("evil.example", 403)])
def test_a_request_must_name_this_machine(server, host, status):
    for method, path, body in (
        ("GET", MODEL, None),
        ("GET", "/", None),
        ("GET", METRICS, None),
        ("POST", PREDICT, ROWS),
    ):
        answer = server.ask(method, path, body, {"Host": host})
        assert answer.status == status, path
        assert status == 200 or "--allowed-host" in answer.json["error"]


def test_a_request_without_a_host_comes_from_no_browser(server):
    with connect(server) as connection:
        connection.sendall(f"GET {MODEL} HTTP/1.0\r\n\r\n".encode())
        assert received(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("options", "host", "is_ours"),
    [
        ({}, "localhost:8501", True),
        ({}, "LocalHost.:8501", True),
        ({}, "127.0.0.1:8501", True),
        ({}, "127.1.2.3", True),
        ({}, "[::1]:8501", True),
        ({}, "evil.example:8501", False),
        ({}, "localhost.evil.example", False),
        ({}, "evil.example@localhost", False),
        ({}, "localhost:80@evil.example", False),
        ({}, "192.0.2.1:8501", False),
        ({}, "0.0.0.0:8501", False),
        ({}, "", False),
        ({"host": "0.0.0.0"}, "192.0.2.1:8501", True),
        ({"host": "::"}, "[2001:db8::1]:8501", True),
        ({"host": "0.0.0.0"}, "rebound.example", False),
        ({"host": "192.0.2.1"}, "192.0.2.1", True),
        ({"host": "192.0.2.1"}, "192.0.2.2", False),
        ({"host": "localhost"}, "127.0.0.1", True),
        ({"allowed_hosts": ("models.example",)}, "Models.Example:80", True),
        ({"allowed_hosts": ("models.example",)}, "localhost", True),
        ({"allowed_hosts": ("models.example",)}, "www.models.example", False),
        ({"allowed_hosts": ("*.example",)}, "models.example", True),
        ({"allowed_hosts": ("*.example",)}, "example", False),
        ({"allowed_hosts": ("*.example",)}, "anexample", False),
        ({"allowed_hosts": ("[2001:db8::1]",)}, "[2001:db8::1]:80", True),
        ({"allowed_hosts": ("*",)}, "any.example", True),
    ],
)
def test_the_address_listened_on_and_hosts_allowed_are_ours(options, host, is_ours):
    assert http_server.host_check(ServeOptions(**options))(host) is is_ours


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://127.0.0.1", "http://localhost:3000", "null", "", "file://"],
)
@pytest.mark.parametrize(("method", "path"), [("POST", PREDICT), ("GET", MODEL), ("GET", METRICS)])
def test_pages_of_other_origins_are_refused(server, method, path, origin):
    answer = server.ask(method, path, ROWS if method == "POST" else None, {"Origin": origin})
    assert answer.status == 403
    assert "--allowed-origin" in answer.json["error"]
    assert answer.headers["Access-Control-Allow-Origin"] is None
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert server.ask("OPTIONS", path, headers=preflight).status == 403


@pytest.mark.parametrize("scheme", ["http", "https"])  # a proxy may speak TLS
def test_the_servers_own_page_is_let_in(server, scheme):
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}"):
        headers = {"Host": host, "Origin": f"{scheme}://{host}"}
        assert server.post(PREDICT, ROWS, headers).json == ANSWER


@pytest.mark.parametrize("allowed", ["https://app.example", "*"])
def test_pages_of_origins_that_are_allowed_can_read_answers(allowed):
    with serving(allowed_origins=(allowed,)) as server:
        headers = {"Origin": "https://app.example", "Content-Type": "application/json"}
        for body, status in ((ROWS, 200), ("{", 400)):
            answer = server.post(PREDICT, body, headers)
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (
                status,
                allowed,
            )
        preflight = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        answer = server.ask("OPTIONS", PREDICT, headers=preflight)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, allowed)
        other = server.post(PREDICT, ROWS, {"Origin": "https://other.example"})
        assert other.status == (200 if allowed == "*" else 403)
        # An allowed origin does not replace the check of the host.
        assert server.post(PREDICT, ROWS, {**headers, "Host": "evil.example"}).status == 403


@pytest.mark.parametrize(
    "version_and_headers",
    ["1.1\r\nContent-Length: 5\r\n", "1.1\r\nContent-Length: 0\r\n", "1.0\r\n"],
)
def test_a_body_of_two_lengths_is_refused_and_the_connection_closed(server, version_and_headers):
    chunk = f"{len(ROWS):x}\r\n{ROWS.decode()}\r\n0\r\n\r\n"
    request = (
        f"POST {PREDICT} HTTP/{version_and_headers}Host: localhost\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{chunk}GET {MODEL} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    with connect(server) as connection:
        connection.sendall(request.encode())
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "one length" in json.loads(body)["error"]  # and nothing behind it


def test_a_cancelled_request_is_answered_before_the_server_has_ended():
    async def slow(scope, receive, send):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
            await http_server.error_answer(HTTPException(503, "late"))(scope, receive, send)

    async def end():
        server = http_server.RestServer(slow, ServeOptions(drain_seconds=0))
        with http_server.bound("127.0.0.1", 0) as sockets:
            serving = asyncio.create_task(server.serve(sockets))
            url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
            client = asyncio.create_task(asyncio.to_thread(httpx.get, url, timeout=20))
            while not server.server_state.tasks:
                await asyncio.sleep(0.01)
            server.should_exit = True
            await serving
            assert not server.server_state.tasks
            return await client

    assert asyncio.run(end()).status_code == 503
