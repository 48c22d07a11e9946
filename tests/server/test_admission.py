"""Which requests are let in: hosts and origins that browsers name, types and lengths of bodies."""

import json
import socket

import pytest
from support.rest_server import ANSWER, METRICS, MODEL, PREDICT, ROWS, serving

from bart_export.server.admission import host_check
from bart_export.server.options import ServeOptions

# Each with a prefix for the server's port.
HOSTS = [
    ("localhost:{port}", True),
    ("LocalHost.:{port}", True),
    ("localhost", True),
    ("127.0.0.1:{port}", True),
    ("127.1.2.3", True),
    ("[::1]:{port}", True),
    ("evil.example", False),
    ("evil.example:{port}", False),
    ("localhost.evil.example", False),
    ("evil.example@localhost", False),
    ("localhost:80@evil.example", False),
    ("192.0.2.1:{port}", False),
    ("0.0.0.0:{port}", False),
    ("", False),
]


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.mark.parametrize(("host", "is_let_in"), HOSTS)
def test_a_request_must_name_this_machine(server, host, is_let_in):
    headers = {"Host": host.format(port=server.port)}
    for method, path, body in (
        ("GET", MODEL, None),
        ("GET", "/", None),
        ("GET", METRICS, None),
        ("POST", PREDICT, ROWS),
    ):
        answer = server.ask(method, path, body, headers)
        assert answer.status == (200 if is_let_in else 403), path
        if not is_let_in:
            assert "--allowed-host" in answer.json["error"]


def test_a_request_without_a_host_comes_from_no_browser(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(f"GET {MODEL} HTTP/1.0\r\n\r\n".encode())
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("options", "host", "is_ours"),
    [
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
    assert host_check(ServeOptions(**options))(host) is is_ours


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
        # It is for the host to be named, whoever asks.
        assert server.post(PREDICT, ROWS, {**headers, "Host": "evil.example"}).status == 403


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("application/x-www-form-urlencoded", 200),
        ("text/plain", 415),
        ("text/plain; charset=UTF-8", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonp", 415),
        ("text/html", 415),
    ],
)
def test_a_body_of_another_kind_is_refused(server, content_type, status):
    answer = server.post(PREDICT, ROWS, {"Content-Type": content_type} if content_type else {})
    assert answer.status == status
    assert answer.json == ANSWER if status == 200 else "Content-Type" in answer.json["error"]


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
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(request.encode())
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "one length" in json.loads(body)["error"]  # and nothing behind it
