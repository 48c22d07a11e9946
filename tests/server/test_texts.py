"""Texts that are blank or too long, from both engines, over REST, gRPC and as a stream."""

import json

import grpc
import numpy as np
import pytest
import requests
from support.rest_server import running

from bart_export.runtime.generator import Generator
from bart_export.server import messages
from bart_export.server.messages import object_array, tensor_proto
from bart_export.server.options import ServeOptions
from bart_export.server.versions import LITERT, TENSORFLOW, ServedModel

SHORT = "The river rose two metres overnight."
BLANK = ("", " \n\t", "\u3000\u00a0\x1f")
CUT = "word " * 300
# Each request, the rows that are cut, and those that are blank.
REQUESTS = [
    ((CUT,), "0", ""),
    (BLANK, "", "0,1,2"),
    ((SHORT, "", CUT, " ", CUT), "2,4", "1,3"),
]
# With so many tokens the model makes up a text for a blank one, too.
SETTINGS = {"max_length": 12, "min_length": 8, "length_penalty": 1.0, "repetition_penalty": 1.0,
            "early_stopping": "false"}  # fmt: skip
ENGINES = (TENSORFLOW, LITERT)


@pytest.fixture(scope="module")
def artifact(symmetric_artifact):
    return symmetric_artifact.directory


@pytest.fixture(scope="module")
def generator(artifact):
    return Generator.from_artifact(artifact)


@pytest.fixture(scope="module")
def server(artifact, saved_model_artifact):
    models = [
        ServedModel(
            name=TENSORFLOW,
            base_path=saved_model_artifact.directory / "saved_model",
            engine=TENSORFLOW,
        ),
        ServedModel(name=LITERT, base_path=artifact, engine=LITERT),
    ]
    with running(models, ServeOptions(port=0, rest_api_port=0)) as serving:
        yield serving


def url(server, model, method):
    return f"http://127.0.0.1:{server.rest_api_port}/v1/models/{model}:{method}"


def expected(generator, texts, **settings):
    """Return what is to be answered: nothing to a blank text."""
    return [
        generator.generate(text, truncate=True, **settings).text if text.strip() else ""
        for text in texts
    ]


@pytest.mark.parametrize("model", ENGINES)
@pytest.mark.parametrize(("texts", "cut", "blank"), REQUESTS)
def test_rest_tells_in_headers(server, generator, model, texts, cut, blank):
    rows = [{"text": text, **SETTINGS, "max_length": 9 + row} for row, text in enumerate(texts)]
    body = {"signature_name": "generate_text", "instances": rows}
    answer = requests.post(url(server, model, "predict"), json=body, timeout=60)
    for row, (text, given) in enumerate(zip(texts, answer.json()["predictions"], strict=True)):
        settings = {"max_length": 9 + row, "min_length": 8}
        assert given["generated_text"] == expected(generator, [text], **settings)
        assert generator.generate(text, truncate=True, allow_empty=True, **settings).text
        assert (given["scores"] == [0.0]) == (not text.strip())
    assert answer.headers.get("truncated-rows", "") == cut
    assert answer.headers.get("empty-rows", "") == blank


@pytest.mark.parametrize("model", ENGINES)
@pytest.mark.parametrize(("texts", "cut", "blank"), REQUESTS)
def test_grpc_tells_in_trailing_metadata(server, generator, model, texts, cut, blank):
    request = messages.PredictRequest(
        model_spec={"name": model, "signature_name": "generate_text"},
        # One setting for all rows, as a client of gRPC may send it.
        inputs={
            "text": tensor_proto(object_array(text.encode() for text in texts)),
            "max_length": tensor_proto(np.array([9] * len(texts), np.int32)),
            "min_length": tensor_proto(np.array([0] * len(texts), np.int32)),
        },
        output_filter=["generated_text"],
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        data, call = predict.with_call(request.SerializeToString(), timeout=60)
    response = messages.PredictResponse.FromString(data)
    assert list(response.outputs) == ["generated_text"]
    given = [text.decode() for text in response.outputs["generated_text"].string_val]
    assert given == expected(generator, texts, max_length=9, min_length=0)
    assert [dim.size for dim in response.outputs["generated_text"].tensor_shape.dim] == [
        len(texts), 1
    ]  # fmt: skip
    told = dict(call.trailing_metadata())
    assert told.get("truncated-rows", "") == cut
    assert told.get("empty-rows", "") == blank


@pytest.mark.parametrize(
    ("text", "truncated", "empty"),
    [(SHORT, False, False), (CUT, True, False), *[(text, False, True) for text in BLANK]],
)
def test_a_stream_tells_in_its_last_event(server, generator, text, truncated, empty):
    body = {"text": text, "max_length": 9, "min_length": 0}
    answer = requests.post(url(server, LITERT, "generate"), json=body, timeout=60)
    *tokens, done = answer.text.strip().split("\n\n")
    told = json.loads(done.partition("data: ")[2])
    assert told["generated_text"] == expected(generator, [text], max_length=9, min_length=0)
    assert (told["truncated"], told["empty"]) == (truncated, empty)
    assert told["source_tokens"] == len(generator.encode(text, truncate=True))
    assert (tokens == []) == empty


def test_a_stream_of_a_blank_text_has_as_many_sequences_as_were_asked_for(server):
    body = {"text": " ", "num_beams": 3, "num_return_sequences": 2}
    answer = requests.post(url(server, LITERT, "generate"), json=body, timeout=60)
    told = json.loads(answer.text.partition("data: ")[2])
    assert (told["generated_text"], told["scores"]) == (["", ""], [0.0, 0.0])
    wrong = requests.post(
        url(server, LITERT, "generate"), json={**body, "num_beams": 0}, timeout=60
    )
    assert wrong.status_code == 400


@pytest.mark.parametrize("model", ENGINES)
def test_ids_are_not_texts(server, model):
    """Who asks with ids gets what he asks for, and is told nothing."""
    body = {"signature_name": "tokenize", "inputs": {"text": ["", CUT]}}
    answer = requests.post(url(server, model, "predict"), json=body, timeout=60)
    assert answer.json()["outputs"]["encoder_token_ids"][0][:2] == [0, 2]
    assert "truncated-rows" not in answer.headers
    assert "empty-rows" not in answer.headers
