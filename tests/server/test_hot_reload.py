"""New versions of a model under load: no request fails or is answered by a wrong version.

A real `bart-export serve` process serves SavedModels that return their version number, or an
artifact that is replaced as by an export, while two REST and two gRPC clients send requests.
"""

import contextlib
import dataclasses
import itertools
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import requests
import tensorflow as tf
from support import made_up_artifacts
from support.served_directories import wait_until
from support.serving_process import LOOPBACK, serving_process
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from bart_export.runtime.generator import Generator

POLL_SECONDS = 0.1
POLLING = ("--poll-seconds", POLL_SECONDS)
MEGABYTE = 2**20
WEIGHTS_MEGABYTES = 16
DATA = "variables/variables.data-00000-of-00001"


@dataclasses.dataclass(frozen=True)
class Answer:
    """A client's response, and when it was requested; `version` is None over REST."""

    asked: float
    version: int | None
    outputs: dict


@contextlib.contextmanager
def rest_asking(running, signature):
    """Return a function that sends requests over REST, on one connection."""
    with requests.Session() as session:

        def ask(inputs):
            given = {name: [value] for name, value in inputs.items()}
            body = {"signature_name": signature, "inputs": given}
            response = session.post(running.url("/v1/models/m:predict"), json=body, timeout=60)
            assert response.status_code == 200, response.text
            outputs = response.json()["outputs"]
            return None, {name: value for name, (value,) in outputs.items()}

        yield ask


@contextlib.contextmanager
def grpc_asking(running, signature):
    """Return a function that sends requests with the official stub, on one connection."""
    with grpc.insecure_channel(f"{LOOPBACK}:{running.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def ask(inputs):
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = "m", signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto([value]))
            response = stub.Predict(request, timeout=60)
            arrays = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
            outputs = {name: array[0].tolist() for name, array in arrays.items()}
            return response.model_spec.version.value, outputs

        yield ask


@contextlib.contextmanager
def clients(running, signature, inputs_of):
    """Run four clients for the length of a block; none may fail.

    Returns:
        The answers of each client, at least one, and a function that waits for more.
    """
    ended, answers, asking = threading.Event(), [[] for _ in range(4)], []

    def work(front, answers):
        with front(running, signature) as ask:
            for number in itertools.count():
                if ended.is_set():
                    return
                asked = time.monotonic()
                answers.append(Answer(asked, *ask(inputs_of(number))))

    def wait_for_answers(more=1):
        counts = [len(each) + more for each in answers]
        wait_until(
            lambda: (
                any(future.done() for future in asking)
                or all(len(each) >= count for each, count in zip(answers, counts, strict=True))
            ),
            60,
        )

    with ThreadPoolExecutor(4) as executor:
        fronts = (rest_asking, rest_asking, grpc_asking, grpc_asking)
        asking += map(executor.submit, [work] * 4, fronts, answers)
        try:
            wait_for_answers()
            yield answers, wait_for_answers
        finally:
            ended.set()
        for future in asking:
            future.result()


def check(answers, known, version_of):
    """Check that clients were answered by the right versions.

    Args:
        answers: the answers of each client.
        known: the time from which each version was available.
        version_of: answer -> the version that gave it.
    """
    for each in answers:
        told = [version_of(answer) for answer in each]
        assert told == sorted(told)
        assert set(told) == set(known)
        for answer, version in zip(each, told, strict=True):
            assert answer.version in (None, version)
            # After a switch, the previous version answers no new request.
            assert version >= max(number for number, at in known.items() if at <= answer.asked)


class Numbered(tf.Module):
    """A model that returns its number, one of its weights (all equal to it), and its input."""

    def __init__(self, number):
        super().__init__()
        self.number = tf.Variable(number)
        self.weights = tf.Variable(tf.fill([WEIGHTS_MEGABYTES * MEGABYTE // 4], number))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="x")])
    def answer(self, x):
        return {"number": self.number + 0 * x, "weight": tf.gather(self.weights, x), "x": x + 0}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Return the SavedModels of three versions, by number."""
    root = tmp_path_factory.mktemp("numbered")
    for number in (1, 2, 3):
        module = Numbered(number)
        tf.saved_model.save(module, str(root / str(number)), signatures={"answer": module.answer})
    return {number: root / str(number) for number in (1, 2, 3)}


def inputs_of(number):
    """Return the inputs of a client's request."""
    return {"x": number % 1000}


def number_of(answer):
    """Return the number of the model that answered."""
    assert answer.outputs["number"] == answer.outputs["weight"]
    return answer.outputs["number"]


def appear(source, base_path, number):
    """Copy a version into place atomically."""
    shutil.copytree(source, base_path / f"unfinished-{number}").rename(base_path / str(number))


@pytest.fixture
def base_path(numbered, tmp_path):
    """Return a base path with version 1."""
    (tmp_path / "m").mkdir()
    appear(numbered[1], tmp_path / "m", 1)
    return tmp_path / "m"


def copy_slowly(source, directory):
    """Copy a version; yield at each incomplete stage."""
    graph, data = (source / "saved_model.pb").read_bytes(), (source / DATA).read_bytes()
    (directory / "variables").mkdir(parents=True)
    yield
    for name, content in (
        ("saved_model.pb", graph[: len(graph) // 2]),
        ("saved_model.pb", graph),
        (DATA, data[: len(data) // 2]),
        ("variables/variables.index", (source / "variables/variables.index").read_bytes()),
    ):
        (directory / name).write_bytes(content)
        yield
    (directory / DATA).write_bytes(data)


def test_versions_appear_under_load(numbered, base_path):
    arguments = ("--model-name", "m", "--model-base-path", base_path, *POLLING)
    with serving_process(*arguments) as running:
        known = {1: 0.0}
        with clients(running, "answer", inputs_of) as (answers, wait_for_answers):
            appear(numbered[2], base_path, 2)
            running.wait_for("m", 2)
            known[2] = time.monotonic()
            wait_for_answers(2)
            wait_until(lambda: running.logged("unloaded version 1") == 1)
            for _ in copy_slowly(numbered[3], base_path / "3"):
                time.sleep(4 * POLL_SECONDS)
                states = running.states("m")
                assert states[2] == "AVAILABLE"
                assert states.get(3) != "AVAILABLE"
            running.wait_for("m", 3)
            known[3] = time.monotonic()
            wait_for_answers(20)
        check(answers, known, number_of)
        for each in answers:
            given = [answer.outputs["x"] for answer in each]
            assert given == [number % 1000 for number in range(len(given))]
        ended = {1: "END", 2: "END", 3: "AVAILABLE"}
        wait_until(lambda: running.states("m") == ended)
    assert running.logged("ERROR") == running.logged("m: version 3 cannot be loaded")


def test_removed_versions_leave_no_resources_behind(numbered, base_path):
    arguments = ("--model-name", "m", "--model-base-path", base_path, *POLLING)
    measured = []
    with (
        serving_process(*arguments) as running,
        clients(running, "answer", inputs_of) as (_, wait_for_answers),
    ):
        for number in range(2, 14):
            appear(numbered[1], base_path, number)
            running.wait_for("m", number)
            line = f"unloaded version {number - 1}"
            wait_until(lambda line=line: running.logged(line) == 1)
            shutil.rmtree(base_path / str(number - 1))
            wait_for_answers()
            measured.append((running.threads(), running.files(), running.megabytes()))
    threads, files, megabytes = zip(*measured, strict=True)
    assert max(threads[-3:]) <= max(threads[:3]) + 2, threads
    assert max(files[-3:]) <= max(files[:3]) + 2, files
    # Nine versions more: kept, each would hold its weights.
    assert max(megabytes[-3:]) < max(megabytes[:3]) + 3 * WEIGHTS_MEGABYTES, megabytes


TEXT = "A library for reading and writing compressed archives."


def test_an_artifact_is_replaced_under_load(symmetric_artifact, distilled_artifact, tmp_path):
    """Two checkpoints with different answers take turns."""
    made = {1: symmetric_artifact, 2: distilled_artifact, 3: symmetric_artifact}
    settings = {
        "max_length": 12, "min_length": 0, "length_penalty": 1.0, "repetition_penalty": 1.0
    }  # fmt: skip
    scores = {
        number: Generator.from_artifact(made[number].directory)
        .generate(TEXT, early_stopping=False, **settings)
        .score
        for number in (1, 2)
    }
    assert abs(scores[1] - scores[2]) > 0.01
    inputs = {"text": TEXT, "early_stopping": "false", **settings}
    switches = []

    def number_of_scores(answer):
        (score,) = answer.outputs["scores"]
        (number,) = (one for one in (1, 2) if abs(scores[one] - score) < 1e-3)
        past = max(one for one, at in enumerate(switches, 1) if at <= answer.asked)
        return 3 if number == 1 and past >= 2 else number

    made_up_artifacts.export_again(tmp_path / "m", made[1], 1)
    with serving_process(tmp_path / "m", "--threads", "1", *POLLING) as running:
        switches.append(0.0)
        with clients(running, "generate_text", lambda _: inputs) as (answers, wait_for_answers):
            for number in (2, 3):
                made_up_artifacts.export_again(tmp_path / "m", made[number], number)
                running.wait_for("m", number)
                switches.append(time.monotonic())
                wait_for_answers(5)
        check(answers, dict(enumerate(switches, 1)), number_of_scores)
        wait_until(lambda: running.logged("unloaded version 2") == 1)
    assert running.logged("ERROR") == running.logged("WARNING") == 0, running.log
