"""A server in a separate process, and clients that send it requests over REST and gRPC."""

import contextlib
import dataclasses
import http.client
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.errors import EngineError, last_words
from bart_export.server import messages
from bart_export.server.litert_engine import default
from bart_export.server.messages import Array, tensor_proto, to_array
from bart_export.server.metrics import MICROSECONDS, RUNTIME_LATENCY
from bart_export.server.rest import METRICS_PATH
from bart_export.server.servable import QUEUE_FULL, Tensors

PROGRAM = "from bart_export.cli.main import main; main()"
READY = "Model "  # starts the last line that a server prints before it answers
ENDING_SECONDS = 60.0
PAUSE = 0.05  # seconds between measurements: the threads of a pool spin for a while after work
FRONTS = ("rest", "grpc")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
SIGNATURE = "generate"
TOKENS, LENGTHS = "decoder_token_ids", "decoder_lengths"
OK, REFUSED = "200", "503"
# Clients close idle connections before the server does (uvicorn after 5 s).
IDLE_SECONDS = 2.0
REFUSED_SECONDS = 0.02  # wait before the next request after a refusal
REQUEST_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server: its process, the name of its model, and its ports by front."""

    pid: int
    model: str
    ports: Mapping[str, int]

    def engine_seconds(self) -> float:
        """Return the seconds that all calls have spent in the engine, as the server counts them."""
        address = f"http://127.0.0.1:{self.ports['rest']}{METRICS_PATH}"
        with urllib.request.urlopen(address) as response:
            text = response.read().decode()
        sums = re.findall(rf"^{RUNTIME_LATENCY}_sum\{{.*\}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, sums)) / MICROSECONDS


@contextlib.contextmanager
def running(directory: pathlib.Path, engine: str, *options: str) -> Iterator[Server]:
    """Serve an artifact on free ports while a block runs.

    `options` are further arguments of `bart-export serve`.
    """
    directory = directory.resolve()
    command = [sys.executable, "-c", PROGRAM, "serve", str(directory), "--engine", engine]
    command += ["--port", "0", "--rest-api-port", "0", *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        with process:
            try:
                ports = read_ports(process)
                if ports is None:
                    process.wait()
                    log.seek(0)
                    message = last_words(log.read(), process.returncode)
                    raise EngineError(f"Serving {directory} with {engine} failed: {message}")
                yield Server(process.pid, directory.name, ports)
            finally:
                process.terminate()
                try:
                    process.wait(ENDING_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def read_ports(process: "subprocess.Popen[str]") -> dict[str, int] | None:
    """Wait until a server answers; return its ports by front, or None if it ends first."""
    ports = {}
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.match(r"(gRPC|REST): .*?:(\d+)", line):
            ports[found[1].lower()] = int(found[2])
        if line.startswith(READY):
            return ports
    return None


@dataclasses.dataclass(frozen=True)
class Workload:
    """The numbers of source tokens and new tokens of a generation."""

    source: int
    new_tokens: int

    def __str__(self) -> str:
        return f"source {self.source}, {self.new_tokens} new tokens"


@dataclasses.dataclass(frozen=True)
class ServerAnswer:
    """The outcome of a request: the index of its inputs, a status or error name, and its time.

    `token_ids` has the tokens as bytes; `new_tokens` is the number of tokens in the first sequence.
    """

    question: int
    status: str
    seconds: float
    token_ids: bytes = b""
    new_tokens: int = 0

    @classmethod
    def of(cls, question: int, seconds: float, token_ids: Array, lengths: Array) -> "ServerAnswer":
        """Return the answer with these outputs of `generate`."""
        content = np.ascontiguousarray(token_ids, np.int32).tobytes()
        return cls(question, OK, seconds, content, int(np.ravel(lengths)[0]) - 1)


class RestClient:
    """A client with a persistent HTTP connection, for one thread."""

    def __init__(self, server: Server, questions: Sequence[Tensors]) -> None:
        port = server.ports["rest"]
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
        self.path = f"/v1/models/{server.model}:predict"
        self.bodies = [rest_body(inputs) for inputs in questions]
        self.used = time.monotonic()
        self.close = self.connection.close

    def send(self, question: int, began: float) -> ServerAnswer:
        """Send a request; a failure becomes the answer's status."""
        if time.monotonic() - self.used > IDLE_SECONDS:
            self.connection.close()
        try:
            self.connection.request("POST", self.path, self.bodies[question])
            response = self.connection.getresponse()
            status, body = str(response.status), response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            status, body = type(error).__name__, b""
        self.used = time.monotonic()
        seconds = time.perf_counter() - began
        if status != OK:
            return ServerAnswer(question, status, seconds)
        outputs = json.loads(body)["outputs"]
        return ServerAnswer.of(
            question, seconds, np.array(outputs[TOKENS]), np.array(outputs[LENGTHS])
        )


class GrpcClient:
    """A client with a gRPC channel; all channels of a process share one connection."""

    def __init__(self, server: Server, questions: Sequence[Tensors]) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}")
        self.predict = self.channel.unary_unary(PREDICT)
        self.requests = [grpc_request(server.model, inputs) for inputs in questions]
        self.close = self.channel.close

    def send(self, question: int, began: float) -> ServerAnswer:
        """Send a request; a failure becomes the answer's status."""
        try:
            body = self.predict(self.requests[question], timeout=REQUEST_SECONDS)
        except grpc.RpcError as error:
            # A failed connection is UNAVAILABLE, too.
            status = REFUSED if error.details() == QUEUE_FULL else error.code().name
            return ServerAnswer(question, status, time.perf_counter() - began)
        seconds = time.perf_counter() - began
        outputs = messages.PredictResponse.FromString(body).outputs
        tokens, lengths = (to_array(outputs[name], name) for name in (TOKENS, LENGTHS))
        return ServerAnswer.of(question, seconds, tokens, lengths)


Client = RestClient | GrpcClient
CLIENTS: Mapping[str, type[Client]] = {"rest": RestClient, "grpc": GrpcClient}


def rest_body(inputs: Tensors) -> bytes:
    """Return the body of a REST request in column format."""
    listed = {
        name: [text.decode() for text in array] if array.dtype == object else array.tolist()
        for name, array in inputs.items()
    }
    return json.dumps({"signature_name": SIGNATURE, "inputs": listed}).encode()


def grpc_request(model: str, inputs: Tensors) -> bytes:
    """Return a serialized PredictRequest with arrays as `tf.make_tensor_proto` writes them."""
    message = messages.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = SIGNATURE
    for name, array in inputs.items():
        message.inputs[name].CopyFrom(tensor_proto(array, as_content=array.dtype != object))
    serialized: bytes = message.SerializeToString()
    return serialized


class Clients:
    """Clients of a server, each in a thread; `questions` are the inputs of their requests."""

    def __init__(self, server: Server, questions: Sequence[Tensors]) -> None:
        self.server, self.questions = server, questions
        self.clients: dict[str, list[Client]] = {front: [] for front in FRONTS}

    def close(self) -> None:
        """Close all connections."""
        for client in itertools.chain.from_iterable(self.clients.values()):
            client.close()

    def take(self, front: str, count: int) -> list[Client]:
        """Return `count` clients of a front, created on first use."""
        clients = self.clients[front]
        while len(clients) < count:
            clients.append(CLIENTS[front](self.server, self.questions))
        return clients[:count]

    def send_all(self, front: str, clients: int, count: int) -> tuple[float, list[ServerAnswer]]:
        """Send `count` requests from `clients` parallel clients; return the seconds and answers."""
        numbers = itertools.count()

        def work(client: Client) -> Iterator[ServerAnswer]:
            while (number := next(numbers)) < count:
                answer = client.send(number % len(self.questions), time.perf_counter())
                if answer.status == REFUSED:
                    time.sleep(REFUSED_SECONDS)
                yield answer

        return run_clients(work, self.take(front, clients))

    def send_at_rate(
        self, rate: float, seconds: float, clients: int
    ) -> tuple[float, list[ServerAnswer]]:
        """Send `rate` requests per second over both fronts; return the seconds and answers.

        If no client is free, a request is sent late, but its time counts from when it was due.
        """
        numbers, began = itertools.count(), time.perf_counter() + 0.1

        def work(client: Client) -> Iterator[ServerAnswer]:
            while (number := next(numbers)) < rate * seconds:
                due = began + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                yield client.send(number % len(self.questions), due)

        half = -(-clients // len(FRONTS))
        return run_clients(work, [client for front in FRONTS for client in self.take(front, half)])


def run_clients(
    work: Callable[[Client], Iterator[ServerAnswer]], clients: Sequence[Client]
) -> tuple[float, list[ServerAnswer]]:
    """Run all clients in threads; return the seconds and all answers."""
    with ThreadPoolExecutor(len(clients)) as executor:
        began = time.perf_counter()
        answers = list(executor.map(lambda client: list(work(client)), clients))
        seconds = time.perf_counter() - began
    return seconds, list(itertools.chain.from_iterable(answers))


def random_inputs(artifact: Artifact, workload: Workload, rows: int, count: int) -> list[Tensors]:
    """Return `count` inputs of `generate` for this workload, each with `rows` random sources."""
    length = workload.new_tokens + 1
    generation = artifact.generation.replace(max_length=length, min_length=length)
    settings = {
        tensor.name: np.repeat(default(tensor, generation), rows)
        for tensor in contract.GENERATION_INPUTS
    }
    lengths = np.full(rows, workload.source, np.int32)
    sources = np.random.default_rng(0).integers(
        0, artifact.config.vocabulary_size, (count, rows, workload.source), np.int32
    )
    return [{"encoder_token_ids": ids, "encoder_lengths": lengths} | settings for ids in sources]


def send_single(
    engine: str, clients: Clients, front: str, workload: Workload
) -> tuple[float, float]:
    """Send a single request; return its seconds and those in the engine, or raise EngineError."""
    time.sleep(PAUSE)
    before = clients.server.engine_seconds()
    _, (answer,) = clients.send_all(front, 1, 1)
    received = f"{answer.new_tokens} tokens" if answer.status == OK else answer.status
    if received != f"{workload.new_tokens} tokens":
        raise EngineError(
            f"Expected {engine} over {front} to generate {workload.new_tokens} tokens for a single "
            f"request, received {received}."
        )
    return answer.seconds, clients.server.engine_seconds() - before
