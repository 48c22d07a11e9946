"""Damaged requests: each is answered or refused with a reason, and leaves nothing behind.

A real `bart-export serve` with both engines is asked with damaged JSON and with bodies that lie
about themselves. All choices come from fixed seeds.
"""

import collections
import contextlib
import gzip
import http.client
import json
import random
import socket

import pytest
import requests
from support.made_up_saved_models import write_half_plus_two
from support.odd_bodies import WHOLE, damaged, odd_document
from support.serving_process import LOOPBACK, serving_process
from support.typed_saved_model import write_typed

SEED = 20261122
LIMIT = 2**20
REQUEST_SECONDS = 3
BOMB = 200  # MiB that a body of 200 kB claims to be
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
STATUSES = {200, 400, 404, 413, 429, 501, 503, 504}
# Allowed growth of a server after the requests.
MEGABYTES, THREADS, FILES = 8, 2, 4
OPTIONS = ("--max-request-bytes", LIMIT, "--request-seconds", REQUEST_SECONDS)


@pytest.fixture(scope="module")
def running(symmetric_artifact, tmp_path_factory):
    """Serve SavedModels of all types and an artifact; at the end all of them still answer."""
    root = tmp_path_factory.mktemp("models")
    models = {"text": ("litert", symmetric_artifact.directory)}
    for name, write in (("half_plus_two", write_half_plus_two), ("typed", write_typed)):
        (root / name).mkdir()
        write(root / name / "1")
        models[name] = ("tensorflow", root / name)
    configs = [
        f'config {{ name: "{name}" model_platform: "{platform}" base_path: "{path}" '
        'version_labels { key: "stable" value: 1 } }'
        for name, (platform, path) in models.items()
    ]
    (root / "models.config").write_text(f"model_config_list {{ {' '.join(configs)} }}")
    with serving_process("--model-config-file", root / "models.config", *OPTIONS) as process:
        yield process
        for path, body in WHOLE:
            assert requests.post(process.url(path), json=body, timeout=20).status_code == 200
    assert process.logged("ERROR") == 0, process.log


class Connection:
    """A connection that reopens after the server has closed it."""

    def __init__(self, running):
        self.running = running
        self.connection = http.client.HTTPConnection(LOOPBACK, running.rest_api_port, timeout=20)

    def post(self, path, body, headers=None):
        """Send a body; return the status and body of a well-formed response."""
        self.connection.request("POST", path, body, headers or {})
        response = self.connection.getresponse()
        content, kind = response.read(), response.headers["Content-Type"]
        told = response.status, content, body
        assert response.status in STATUSES, told
        if response.status == 200:
            assert kind == (EVENTS if path.endswith(":generate") else JSON), told
        else:
            assert kind == JSON, told
            (message,) = json.loads(content).values()
            assert isinstance(message, str), told
            assert message, told
        return response.status, content


@pytest.fixture
def connection(running):
    one = Connection(running)
    with contextlib.closing(one.connection):
        yield one


@pytest.mark.parametrize("rounds", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_damaged_bodies_are_answered_or_refused_with_a_reason(connection, rounds):
    generator, answered = random.Random(SEED), 0
    for path, body in WHOLE:
        whole = json.dumps(body).encode()
        statuses = collections.Counter(
            connection.post(path, damaged(generator, whole))[0] for _ in range(rounds)
        )
        assert statuses[400] > rounds / 10, (path, statuses)
        answered += statuses[200]
        statuses = collections.Counter(
            connection.post(path, json.dumps(odd_document(generator, body)).encode())[0]
            for _ in range(rounds)
        )
        assert statuses[400] > rounds / 10, (path, statuses)
        for _ in range(rounds // 10):
            assert connection.post(path, generator.randbytes(generator.randrange(200)))[0] == 400
    assert answered > rounds / 4


def test_what_is_compressed_cannot_fill_the_memory(running, connection):
    running.reset_peak()
    before, (path, body) = running.peak_megabytes(), WHOLE[0]
    whole = gzip.compress(json.dumps(body).encode())
    bomb = gzip.compress(b"[" + b" " * BOMB * 2**20)
    headers = {"Content-Encoding": "gzip"}
    for _ in range(8):
        assert connection.post(path, bomb, headers)[0] == 413
        assert connection.post(path, bomb * 5, headers)[0] == 413
    assert connection.post(path, gzip.compress(bomb), headers)[0] == 400
    generator = random.Random(SEED)
    statuses = {connection.post(path, damaged(generator, whole), headers)[0] for _ in range(200)}
    assert statuses <= {200, 400}
    assert connection.post(path, whole, headers)[0] == 200
    # Each thread that has decompressed keeps a few freed megabytes, some 45 MB in all.
    assert running.peak_megabytes() < before + BOMB / 2


HEAD = "POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
ROWS = '{"instances": [[1]]}'
# (rest of the request, status)
LIES = [
    (f"Content-Length: 20\r\n\r\n{ROWS}", 200),
    (f"Content-Length: 5\r\n\r\n{ROWS}", 400),
    (f"Content-Length: 21\r\n\r\n{ROWS}", 504),
    (f"Content-Length: 5\r\nContent-Length: 20\r\n\r\n{ROWS}", 400),
    (f"\r\n{ROWS}", 400),
    (f"Transfer-Encoding: brotli\r\n\r\n{ROWS}", 400),
    ("nonsense\r\n\r\n", 400),
]


def raw(running, data, ended=False):
    """Send bytes on a new connection; return all bytes until the server closes it."""
    received = b""
    address = LOOPBACK, running.rest_api_port
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(address, timeout=20) as connection,
    ):
        connection.sendall(data)
        if ended:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(2**16):
            received += part
    return received


@pytest.mark.parametrize(("sent", "status"), LIES)
def test_a_request_that_contradicts_itself_is_refused(running, sent, status):
    assert raw(running, (HEAD + sent).encode()).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("rounds", [500, pytest.param(3000, marks=pytest.mark.slow)])
def test_nonsense_leaves_nothing_behind(running, connection, rounds):
    generator = random.Random(SEED)

    def nonsense(count):
        for _ in range(count):
            path, body = generator.choice(WHOLE)
            connection.post(path, damaged(generator, json.dumps(body).encode()))
            connection.post(path, json.dumps(odd_document(generator, body)).encode())
            connection.post(f"/v1/models/{generator.randrange(2**40)}:predict", b"{}")
            sent = (HEAD + generator.choice(LIES)[0]).encode()
            raw(running, sent[: generator.randrange(300)], ended=True)
        return running.megabytes(), running.threads(), running.files()

    before = nonsense(max(100, rounds // 4))
    for name, most, one, other in zip(
        ("megabytes", "threads", "files"),
        (MEGABYTES, THREADS, FILES),
        before,
        nonsense(rounds),
        strict=True,
    ):
        assert other - one <= most, (name, one, other)
