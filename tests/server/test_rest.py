"""Request bodies and their limits, deadlines, disconnects, metrics and the page."""

import gzip
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.arithmetic import Arithmetic
from support.rest_server import ANSWER, METRICS, PREDICT, ROWS, served, serving, store_of
from support.served_directories import wait_until

from bart_export.server.predict import CONVERTING, QUICK_BYTES
from bart_export.server.versions import ServedModel

TOO_LARGE = "Expected at most 100000 bytes (--max-request-bytes), received a larger request"
TIMED_OUT = {"error": "Timed out waiting for notification"}


@pytest.fixture(scope="module")
def server():
    with serving(max_request_bytes=100_000) as running:
        yield running


def wait_body(seconds):
    return {"signature_name": "wait", "instances": [seconds]}


GZIP = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (iter([ROWS[:5], ROWS[5:]]), {"Content-Type": "application/x-www-form-urlencoded"}),
        (gzip.compress(ROWS), GZIP),
        (gzip.compress(ROWS), {"Content-Encoding": "x-gzip"}),
        (gzip.compress(ROWS), {"Content-Encoding": "identity, gzip"}),
    ],
    ids=["chunks", "gzip", "x-gzip", "identity"],
)
def test_a_body_may_come_in_chunks_as_a_form_or_compressed(server, body, headers):
    answer = server.post(PREDICT, body, headers)
    assert (answer.status, answer.json) == (200, ANSWER)


@pytest.mark.parametrize(
    "body",
    [ROWS, b"", gzip.compress(ROWS)[:-4], gzip.compress(ROWS) + b"more", gzip.compress(b"") * 2],
    ids=["plain", "empty", "cut", "and more", "of nothing"],
)
def test_a_body_that_is_compressed_wrongly_is_refused(server, body):
    answer = server.post(PREDICT, body, GZIP)
    assert answer.status == 400
    assert "Expected a body compressed with gzip" in answer.json["error"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b" " * 100_001, {}),
        (iter([b" " * 60_000, b" " * 60_000]), {}),
        (gzip.compress(b" " * 10_000_000), GZIP),
    ],
    ids=["length", "chunks", "compressed"],
)
def test_a_body_beyond_the_limit_is_refused(server, body, headers):
    answer = server.post(PREDICT, body, headers)
    assert (answer.status, answer.json) == (413, {"error": TOO_LARGE})


def test_a_body_that_says_it_is_beyond_the_limit_is_not_waited_for(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100001\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_up_to_the_limit_is_read(server):
    body = ROWS.ljust(100_000)
    assert server.post(PREDICT, body).json == ANSWER
    assert server.post(PREDICT, gzip.compress(body), GZIP).json == ANSWER


def test_a_connection_lives_through_errors(server):
    with server.connection() as connection:
        for body, status in ((b"{", 400), (b" " * 200_000, 413), (ROWS, 200)):
            connection.request("POST", PREDICT, body)
            response = connection.getresponse()
            response.read()
            assert response.status == status


def test_what_breaks_in_the_engine_has_a_message(server):
    answer = server.post(PREDICT, {"signature_name": "fail", "instances": [1]})
    assert (answer.status, answer.json) == (500, {"error": "RuntimeError: the engine broke"})


def test_what_breaks_outside_of_the_engine_has_a_message():
    with serving() as server:
        server.numbers.registry = None
        answer = server.get(METRICS)
    assert (answer.status, list(answer.json)) == (500, ["error"])


def test_a_call_that_takes_too_long_is_answered_and_stopped():
    servable = Arithmetic()
    with serving(servable, request_seconds=0.2) as server:
        answer = server.post(PREDICT, wait_body(60))
        assert (answer.status, answer.json) == (504, TIMED_OUT)
        wait_until(lambda: servable.stopped == 1)


def test_a_client_that_goes_away_stops_its_call():
    servable = Arithmetic(workers=1)
    with serving(servable) as server:
        with server.connection() as connection:
            connection.request("POST", PREDICT, json.dumps(wait_body(60)))
            wait_until(lambda: servable.running == 1)
        # The only worker is free again.
        assert server.post(PREDICT, ROWS).json == ANSWER
    assert servable.stopped == 1


def test_calls_are_refused_while_the_queue_is_full():
    servable = Arithmetic(workers=1, queue_size=0)
    with serving(servable) as server, server.connection() as busy:
        busy.request("POST", PREDICT, json.dumps(wait_body(60)))
        wait_until(lambda: servable.running == 1)
        answer = server.post(PREDICT, ROWS)
        assert (answer.status, answer.json) == (503, {"error": "The queue is full"})


def test_a_large_body_does_not_hold_up_others():
    """It is parsed in its turn, which it waits for here: on the event loop, all would wait."""
    large = ROWS.ljust(2 * QUICK_BYTES)
    with serving() as server, ThreadPoolExecutor(1) as threads:
        with CONVERTING:
            answer = threads.submit(server.post, PREDICT, large)
            arrived = ':bart_export:requests_in_progress{model_name="m"} 1.0'
            wait_until(lambda: arrived in server.get(METRICS).text)
            assert server.post(PREDICT, ROWS).json == ANSWER
            assert not answer.done()
        assert answer.result().json == ANSWER


def test_requests_are_counted_by_model_and_status():
    with serving() as server:
        server.post(PREDICT, ROWS)
        server.post(PREDICT, "{")
        server.post("/v1/models/other:predict", ROWS)
        answer = server.get(METRICS)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    lines = answer.text.splitlines()
    for line in (
        'request_count{model_name="m",status="OK"} 1.0',
        'request_count{model_name="m",status="INVALID_ARGUMENT"} 1.0',
        'request_count{model_name="",status="NOT_FOUND"} 1.0',
        'request_latency_count{API="predict",entrypoint="REST",model_name="m"} 1.0',
        'runtime_latency_count{API="Predict",model_name="m",runtime="TF1"} 1.0',
    ):
        assert f":tensorflow:serving:{line}" in lines


def test_the_page_names_the_models_and_can_reach_no_other_server(server):
    answer = server.get("/")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    told = {"name": "m", "streams": False, "longest": None, "counts": False}
    listed = json.dumps([told])
    assert f'<script type="application/json" id="models">{listed}</script>' in answer.text
    policy = answer.headers["Content-Security-Policy"]
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert len(nonce) > 16
    assert answer.text.count(f'nonce="{nonce}"') == 2
    assert "default-src 'none'" in policy
    assert nonce not in server.get("/").text
    assert server.ask("HEAD", "/").status == 200


def test_a_model_s_name_cannot_end_its_element(tmp_path):
    name = "</script><script>alert(1)</script>"
    model = ServedModel(name=name, base_path=tmp_path, engine="tensorflow")
    with store_of([model], {(name, 1): Arithmetic()}) as store, served(store) as server:
        assert "<script>alert" not in server.get("/").text


def test_there_is_no_page_where_none_is_wanted():
    with serving(page=False) as server:
        assert server.get("/").status == 404
