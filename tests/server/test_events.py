"""Streaming over a real connection: events, errors before and after the first, disconnects."""

import json

import pytest
from support.counting import LONGEST_TEXT, Counting
from support.rest_server import MODEL, serving

from bart_export.runtime.generator import Generator
from bart_export.server.litert_engine import ArtifactServable
from bart_export.server.metrics import GenerationMetrics, Metrics
from bart_export.server.options import ServeOptions

GENERATE = f"{MODEL}:generate"


@pytest.fixture(scope="module")
def server():
    with serving(Counting()) as running:
        yield running


def events_of(text):
    """Return the (name, data) pairs of a body that has only events."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    pairs = []
    for block in blocks:
        name, data = block.split("\n")
        assert name.startswith("event: ") and data.startswith("data: ")
        pairs.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return pairs


@pytest.mark.parametrize("choice", ["", "/versions/1", "/labels/stable"])
def test_tokens_come_as_events_and_then_the_whole(server, choice):
    answer = server.post(f"{MODEL}{choice}:generate", {"text": "go", "max_length": 3})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    *tokens, done = events_of(answer.text)
    assert tokens == [("token", {"text": f"{number} ", "tokens": number}) for number in (1, 2, 3)]
    assert done == (
        "done",
        {
            "generated_text": ["1 2 3 "],
            "scores": [-0.5],
            "tokens": 3,
            "source_tokens": 2,
            "truncated": False,
            "empty": False,
            "seconds": 0.003,
            "tokens_per_second": 1000.0,
        },
    )


def test_an_event_comes_while_the_next_is_made():
    servable = Counting(pause_after=1)
    with serving(servable) as server, server.connection() as connection:
        connection.request("POST", GENERATE, json.dumps({"text": "go", "max_length": 5}))
        response = connection.getresponse()
        assert response.readline() == b"event: token\n"
        assert json.loads(response.readline().removeprefix(b"data: "))["tokens"] == 1
        servable.pause_after = 5
        assert b"event: done" in response.read()


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (GENERATE, {"text": "go", "max_lenght": 3}, 400, "Did you mean max_length?"),
        (GENERATE, {"text": "go", "max_length": "3"}, 400, "max_length must be an integer"),
        (GENERATE, {"text": "go", "max_length": 1}, 400, "at least 2, received 1"),
        (GENERATE, {"text": "x" * (LONGEST_TEXT + 1)}, 400, "A text may have"),
        (GENERATE, {"text": "go", "num_beams": 33}, 400, "num_beams must be at most 32"),
        (GENERATE, {"text": "go", "num_return_sequences": 1e9}, 400, "must be at most 32"),
        (GENERATE, {"text": ["go"]}, 400, "'text', a string"),
        (GENERATE, {"max_length": 3}, 400, "'text', a string"),
        (GENERATE, ["go"], 400, "'text', a string"),
        (GENERATE, '{"text": ', 400, "JSON Parse error"),
        (GENERATE, {"text": "1"}, 500, "RuntimeError: the engine broke"),
        ("/v1/models/other:generate", {"text": "go"}, 404, "Latest(other)"),
        (f"{MODEL}/versions/2:generate", {"text": "go"}, 404, "Specific(m, 2)"),
        (f"{MODEL}/labels/new:generate", {"text": "go"}, 400, "label: new"),
    ],
)
def test_what_is_wrong_from_the_start_is_an_ordinary_error(server, path, body, status, message):
    answer = server.post(path, body)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    assert message in answer.json["error"]


def test_an_error_after_the_first_token_is_the_last_event(server):
    answer = server.post(GENERATE, {"text": "3", "max_length": 9})
    names = [name for name, _ in events_of(answer.text)]
    assert (answer.status, names) == (200, ["token", "token", "error"])
    assert events_of(answer.text)[-1][1] == {"error": "RuntimeError: the engine broke"}


def test_calls_are_refused_while_the_queue_is_full():
    servable = Counting(queue_size=0, pause_after=1)
    with serving(servable) as server, server.connection() as busy:
        busy.request("POST", GENERATE, json.dumps({"text": "go", "max_length": 20}))
        busy.getresponse()
        answer = server.post(GENERATE, {"text": "go"})
        assert not servable.ended.is_set()
    assert (answer.status, answer.json) == (503, {"error": "The queue is full"})


def test_the_time_limit_ends_a_stream_between_tokens():
    servable = Counting(pause_after=1)
    with serving(servable, request_seconds=2) as server:
        answer = server.post(GENERATE, {"text": "go"})
        assert servable.ended.wait(60)
    token, error = events_of(answer.text)
    assert token == ("token", {"text": "1 ", "tokens": 1})
    assert error == ("error", {"error": "Timed out waiting for notification"})


@pytest.mark.parametrize("after_a_token", [True, False])
def test_a_client_that_goes_away_stops_the_work_before_the_next_token(after_a_token):
    servable = Counting(pause_after=int(after_a_token))
    with serving(servable) as server:
        with server.connection() as connection:
            connection.request("POST", GENERATE, json.dumps({"text": "go"}))
            assert servable.begun.wait(60)
            if after_a_token:
                connection.getresponse().readline()
        assert servable.ended.wait(60)
        assert servable.emitted == after_a_token
        # The lease ends with the work.
        server.store.stop()
        assert servable.closed.wait(60)


@pytest.mark.parametrize(
    ("parameters", "fewest"),
    [({"num_beams": 1}, 5), ({"num_beams": 3, "num_return_sequences": 2}, 2)],
)
def test_pieces_of_a_real_model_are_what_it_generates(mini_artifact, parameters, fewest):
    text = "The river rose two metres overnight, and by morning the lower bridge was closed."
    servable = ArtifactServable(
        mini_artifact.directory, 1, ServeOptions(), GenerationMetrics(Metrics(), "m")
    )
    with serving(servable) as server:
        answer = server.post(GENERATE, {"text": text, **parameters})
    expected = Generator.from_artifact(mini_artifact.directory).generate(text, **parameters)
    *tokens, (name, done) = events_of(answer.text)
    assert name == "done"
    assert len(tokens) >= fewest
    assert "".join(data["text"] for _, data in tokens) == expected.text
    counts = [data["tokens"] for _, data in tokens]
    assert counts == sorted(counts)
    assert len(set(counts)) >= fewest
    assert done["generated_text"] == [sequence.text for sequence in expected.sequences]
    assert done["scores"] == pytest.approx([one.score for one in expected.sequences], abs=1e-4)
    assert done["tokens"] == expected.timings.tokens
