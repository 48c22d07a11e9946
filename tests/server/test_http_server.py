"""Connections: those that do not move on are ended, and there are never too many."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from support.arithmetic import Arithmetic
from support.rest_server import ANSWER, PREDICT, ROWS, serving
from support.served_directories import wait_until

from bart_export.server import http_server

HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = f"{HEAD}Content-Length: {len(ROWS)}\r\n\r\n".encode() + ROWS
CHUNKED = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
# What a client sends and then stops.
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
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "CLOSING_SECONDS"):
        monkeypatch.setattr(http_server, name, 0.3)


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answers(data):
    """Return the status and the JSON of each answer in some bytes."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        (length,) = (int(line.split(":")[1]) for line in lines if "content-length" in line)
        found.append((int(lines[0].split()[1]), json.loads(rest[:length])))
        data = rest[length:]
    return found


@pytest.mark.parametrize("sent", HALF.values(), ids=HALF)
def test_what_is_not_finished_is_told_of_and_ended(impatient, sent):
    with serving() as server, connect(server) as connection:
        connection.sendall(sent)
        *before, (status, error) = answers(connection.makefile("rb").read())
        assert status == 408
        assert "Expected" in error["error"]
        assert [answer for _, answer in before] == ([ANSWER] if sent.startswith(WHOLE) else [])


def test_a_head_that_comes_byte_by_byte_has_no_more_time(impatient):
    with serving() as server, connect(server) as connection:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 10:
                connection.sendall(b"P")
                time.sleep(0.05)
        assert time.monotonic() < began + 5


def test_a_connection_without_a_request_is_ended(monkeypatch):
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.2)
    with serving() as server, connect(server) as connection:
        connection.sendall(WHOLE)
        assert answers(connection.makefile("rb").read()) == [(200, ANSWER)]


WAITING = json.dumps({"signature_name": "wait", "instances": [0.5]}).encode()
SLOW = f"{HEAD}Content-Length: {len(WAITING)}\r\n\r\n".encode() + WAITING
WAITED = {"predictions": [0.5]}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (WHOLE, [ANSWER]),
        (SLOW, [WAITED]),
        (WHOLE + SLOW + WHOLE, [ANSWER, WAITED, ANSWER]),
        (SLOW.replace(b"HTTP/1.1", b"HTTP/1.0"), [WAITED]),
        (WHOLE[:-1], []),
        (b"", []),
    ],
    ids=["quick", "slow", "several", "HTTP/1.0", "half", "nothing"],
)
def test_a_client_that_sends_no_more_gets_its_answers_and_the_end(sent, expected):
    with serving() as server, connect(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        received = connection.makefile("rb").read()
        assert time.monotonic() - began < http_server.IDLE_SECONDS - 1  # it is not waited for
    final = received.replace(b"HTTP/1.1 100 \r\n\r\n", b"")
    assert [(200, answer) for answer in expected] == answers(final)


def test_a_slow_request_and_a_slow_answer_are_waited_for(impatient):
    body = json.dumps({"signature_name": "wait", "instances": [1.0]}).encode()
    with serving() as server, connect(server) as connection:
        connection.sendall(
            f"{HEAD}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        for byte in range(0, len(body), 4):
            time.sleep(0.1)
            connection.sendall(body[byte : byte + 4])
        assert answers(connection.makefile("rb").read()) == [(200, {"predictions": [1.0]})]


def test_a_client_that_takes_nothing_is_cut_off(impatient, monkeypatch):
    monkeypatch.setattr("bart_export.server.rest.SENDING_SECONDS", 0.2)
    large = json.dumps({"signature_name": "upper", "instances": ["a" * 8_000_000]}).encode()

    def files():
        return len(os.listdir("/proc/self/fd"))

    with serving(request_seconds=2, max_request_bytes=2**24) as server:
        before = files()
        with connect(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wait_until(lambda: files() == before + 2)
            connection.sendall(f"{HEAD}Content-Length: {len(large)}\r\n\r\n".encode() + large)
            wait_until(lambda: files() == before + 1, seconds=30)


def test_bytes_that_are_no_request_are_told_of_as_json():
    with serving() as server, connect(server) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        ((status, error),) = answers(connection.makefile("rb").read())
    assert status == 400
    assert error["error"].startswith("No HTTP request: illegal request line")


def test_many_tiny_chunks_are_refused_and_larger_ones_are_not():
    def sent(size, count):
        with serving() as server, connect(server) as connection:
            chunk = f"{size:x}\r\n{' ' * size}\r\n".encode()
            end = f"{len(ROWS):x}\r\n".encode() + ROWS + b"\r\n0\r\n\r\n"
            request = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                connection.sendall(request + chunk * count + end)
            return connection.makefile("rb").read()

    assert answers(sent(1, 500)) == [(200, ANSWER)]
    assert answers(sent(100, 2000)) == [(200, ANSWER)]
    assert b"expected chunks of 64 bytes on the average" in sent(1, 2000)


def test_whoever_asks_takes_the_place_of_whoever_waits():
    with serving(max_connections=20) as server, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(server)) for _ in range(60)]
        for each in waiting[:10]:
            each.sendall(HALF["half a length"])
        assert server.post(PREDICT, ROWS).json == ANSWER
        # Of 61 there are 20, and of those the one that asked is last.
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


def test_where_all_are_at_work_a_new_one_is_refused_in_words():
    with serving(Arithmetic(workers=1), max_connections=2) as server:
        body = json.dumps({"signature_name": "wait", "instances": [2.0]})
        with server.connection() as one, server.connection() as other:
            for busy in (one, other):
                busy.request("POST", PREDICT, body)
            time.sleep(0.3)
            with connect(server) as refused:
                ((status, error),) = answers(refused.makefile("rb").read())
            assert (status, error) == (
                503,
                {"error": "The server has as many connections as it may"},
            )
            assert one.getresponse().status == 200


def test_an_application_that_breaks_or_answers_nothing_has_a_message(caplog):
    async def broken(scope, receive, send):
        raise ValueError("it broke")

    async def silent(scope, receive, send):
        pass

    async def told(app):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await http_server.answered(app)(scope, None, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    assert asyncio.run(told(broken)) == (500, {"error": "ValueError: it broke"})
    assert asyncio.run(told(silent)) == (504, {"error": "Timed out waiting for notification"})


FEW_FILES = """
import logging, os, resource, socket, sys, time
logging.basicConfig(format="%(message)s")
from bart_export.server import ports
files = len(os.listdir("/proc/self/fd")) + 12
with ports.bound("127.0.0.1", 0) as (listening,):
    listening.listen(200)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(40)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5,) * 2)
    listening.setblocking(False)
    accepted = []
    try:
        while True:
            accepted.append(listening.accept())
    except BlockingIOError:
        print(len(accepted))
"""


def test_where_no_file_may_be_opened_connections_are_closed_with_one_line():
    run = subprocess.run([sys.executable, "-c", FEW_FILES], capture_output=True, text=True)
    assert 0 < int(run.stdout) < 10
    assert run.stderr.splitlines() == ["Connections are refused: Too many open files"]


LIMIT = """
import resource
from bart_export.server import ports
from bart_export.server.options import ServeOptions
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(ports.connection_limit(ServeOptions()), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "told"),
    [(4000, 4096, "1000 4000"), (64, 4096, "1000 2128"), (64, 328, "100 328"), (64, 64, "16 64")],
)
def test_there_are_no_more_connections_than_files(soft, hard, told):
    program = LIMIT.format(soft=soft, hard=hard)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == told, run.stderr
    assert ("at most" in run.stderr) == (told.split()[0] != "1000")
