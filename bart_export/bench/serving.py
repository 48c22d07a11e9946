"""A server in a process of its own, and the clients that ask it over REST and gRPC.

Clients either ask one request after the other, or at a steady rate whether earlier requests are
answered or not; the time of such a request begins when it is due. Connections are kept.
"""

import contextlib
import dataclasses
import http.client
import itertools
import json
import os
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
from bart_export.server.metrics import MICROSECONDS, RUNTIME_LATENCY
from bart_export.server.rest import METRICS_PATH
from bart_export.server.servable import QUEUE_FULL, Tensors
from bart_export.server.tensors import Array, from_proto, to_proto

PROGRAM = "from bart_export.cli.main import main; main()"
READY = "Model "  # begins the last of the lines that say that a server answers
ENDING_SECONDS = 60.0
PAUSE = 0.05  # seconds between measurements: threads of a pool go on spinning after their work
FRONTS = ("rest", "grpc")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
SIGNATURE = "generate"
TOKENS, LENGTHS = "decoder_token_ids", "decoder_lengths"
OK, REFUSED = "200", "503"
# Before a server closes a connection that nothing comes over (uvicorn does after 5 s).
IDLE_SECONDS = 2.0
# Clients that were refused wait so long before they ask again.
REFUSED_SECONDS = 0.02
REQUEST_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that answers: its process, the name of its model, and ports by front."""

    pid: int
    model: str
    ports: Mapping[str, int]

    def resident_bytes(self) -> int | None:
        """Return how much memory it has in use, None where the system does not say."""
        try:
            pages = pathlib.Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def engine_seconds(self) -> float:
        """Return how long all calls together have waited for the engine, as the server counts."""
        address = f"http://127.0.0.1:{self.ports['rest']}{METRICS_PATH}"
        with urllib.request.urlopen(address) as response:
            text = response.read().decode()
        sums = re.findall(rf"^{RUNTIME_LATENCY}_sum\{{.*\}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, sums)) / MICROSECONDS


@contextlib.contextmanager
def running(directory: pathlib.Path, engine: str, *options: str) -> Iterator[Server]:
    """Serve an artifact with an engine on free ports, for the length of a block.

    `options` are more arguments of `bart-export serve`.

    Raises:
        EngineError: if the server ends before it answers, with what it said last.
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
    """Wait until a server answers; return its ports by front, None if it ends instead."""
    ports = {}
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.match(r"(gRPC|REST): .*?:(\d+)", line):
            ports[found[1].lower()] = int(found[2])
        if line.startswith(READY):
            return ports
    return None


@dataclasses.dataclass(frozen=True)
class Work:
    """How much there is to do: source tokens, and new tokens to generate."""

    source: int
    new_tokens: int

    def __str__(self) -> str:
        return f"source {self.source}, {self.new_tokens} new tokens"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request.

    `question` is the number of what was asked, `status` an HTTP status, or the name of another
    status of gRPC or of an error; `seconds` is from when the request was sent, or was due, to the
    answer's last byte. `token_ids` are the bytes of the answer's tokens, `new_tokens` the length of
    the first sequence without its start token; b"" and 0 where there are none.
    """

    question: int
    status: str
    seconds: float
    token_ids: bytes = b""
    new_tokens: int = 0

    @classmethod
    def of(cls, question: int, seconds: float, token_ids: Array, lengths: Array) -> "Answer":
        """Return an answer with the outputs of `generate`."""
        content = np.ascontiguousarray(token_ids, np.int32).tobytes()
        return cls(question, OK, seconds, content, int(np.ravel(lengths)[0]) - 1)


class RestClient:
    """A client over an HTTP connection that is kept; used by one thread."""

    def __init__(self, server: Server, asked: Sequence[Tensors]) -> None:
        port = server.ports["rest"]
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
        self.path = f"/v1/models/{server.model}:predict"
        self.bodies = [rest_body(inputs) for inputs in asked]
        self.used = time.monotonic()
        self.close = self.connection.close

    def ask(self, question: int, began: float) -> Answer:
        """Ask a question; whatever goes wrong is a status."""
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
            return Answer(question, status, seconds)
        outputs = json.loads(body)["outputs"]
        return Answer.of(question, seconds, np.array(outputs[TOKENS]), np.array(outputs[LENGTHS]))


class GrpcClient:
    """A client over a gRPC channel; all channels of a process share its connection."""

    def __init__(self, server: Server, asked: Sequence[Tensors]) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}")
        self.predict = self.channel.unary_unary(PREDICT)
        self.requests = [grpc_request(server.model, inputs) for inputs in asked]
        self.close = self.channel.close

    def ask(self, question: int, began: float) -> Answer:
        """Ask a question; whatever goes wrong is a status."""
        try:
            body = self.predict(self.requests[question], timeout=REQUEST_SECONDS)
        except grpc.RpcError as error:
            # A connection that fails is UNAVAILABLE as well.
            status = REFUSED if error.details() == QUEUE_FULL else error.code().name
            return Answer(question, status, time.perf_counter() - began)
        seconds = time.perf_counter() - began
        outputs = messages.PredictResponse.FromString(body).outputs
        tokens, lengths = (from_proto(outputs[name], name) for name in (TOKENS, LENGTHS))
        return Answer.of(question, seconds, tokens, lengths)


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
    """Return a serialized PredictRequest, arrays as `tf.make_tensor_proto` writes them."""
    message = messages.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = SIGNATURE
    for name, array in inputs.items():
        message.inputs[name].CopyFrom(to_proto(array, as_content=array.dtype != object))
    serialized: bytes = message.SerializeToString()
    return serialized


class Clients:
    """Clients of a server, each in a thread while it asks; they keep their connections.

    `asked` are the inputs of `generate` that a question's number names.
    """

    def __init__(self, server: Server, asked: Sequence[Tensors]) -> None:
        self.server, self.asked = server, asked
        self.clients: dict[str, list[Client]] = {front: [] for front in FRONTS}

    def close(self) -> None:
        """Close all connections."""
        for client in itertools.chain.from_iterable(self.clients.values()):
            client.close()

    def take(self, front: str, count: int) -> list[Client]:
        """Return `count` clients of a front, made if need be."""
        clients = self.clients[front]
        while len(clients) < count:
            clients.append(CLIENTS[front](self.server, self.asked))
        return clients[:count]

    def in_turn(self, front: str, clients: int, count: int) -> tuple[float, list[Answer]]:
        """Ask `count` requests, `clients` side by side, each client the next as it is free.

        Returns:
            The seconds that all took, and the answers.
        """
        numbers = itertools.count()

        def work(client: Client) -> Iterator[Answer]:
            while (number := next(numbers)) < count:
                answer = client.ask(number % len(self.asked), time.perf_counter())
                if answer.status == REFUSED:
                    time.sleep(REFUSED_SECONDS)
                yield answer

        return together(work, self.take(front, clients))

    def steadily(self, rate: float, seconds: float, clients: int) -> tuple[float, list[Answer]]:
        """Ask at a rate, over both fronts alike, with `clients` threads to wait for answers.

        Args:
            rate: requests due in a second.
            seconds: for how long.
            clients: as many as may be waiting at a time; a request that finds none free is late,
                and its time runs.
        """
        numbers, began = itertools.count(), time.perf_counter() + 0.1

        def work(client: Client) -> Iterator[Answer]:
            while (number := next(numbers)) < rate * seconds:
                due = began + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                yield client.ask(number % len(self.asked), due)

        half = -(-clients // len(FRONTS))
        return together(work, [client for front in FRONTS for client in self.take(front, half)])


def together(
    work: Callable[[Client], Iterator[Answer]], clients: Sequence[Client]
) -> tuple[float, list[Answer]]:
    """Have all clients work in threads; return the seconds that took, and all answers."""
    with ThreadPoolExecutor(len(clients)) as executor:
        began = time.perf_counter()
        answers = list(executor.map(lambda client: list(work(client)), clients))
        seconds = time.perf_counter() - began
    return seconds, list(itertools.chain.from_iterable(answers))


def inputs_of(artifact: Artifact, work: Work, rows: int, count: int) -> list[Tensors]:
    """Return `count` inputs of `generate`, the same for the same arguments.

    Each has `rows` random sources, and settings for exactly so much work; what the work leaves open
    is the artifact's own.
    """
    length = work.new_tokens + 1
    generation = artifact.generation.replace(max_length=length, min_length=length)
    settings = {
        tensor.name: np.repeat(default(tensor, generation), rows)
        for tensor in contract.GENERATION_INPUTS
    }
    lengths = np.full(rows, work.source, np.int32)
    sources = np.random.default_rng(0).integers(
        0, artifact.config.vocabulary_size, (count, rows, work.source), np.int32
    )
    return [{"encoder_token_ids": ids, "encoder_lengths": lengths} | settings for ids in sources]


def ask_alone(engine: str, clients: Clients, front: str, work: Work) -> tuple[float, float]:
    """Ask one request; return the seconds that it took, and those of its engine.

    Raises:
        EngineError: if it is not answered, or with another number of tokens.
    """
    time.sleep(PAUSE)
    before = clients.server.engine_seconds()
    _, (answer,) = clients.in_turn(front, 1, 1)
    received = f"{answer.new_tokens} tokens" if answer.status == OK else answer.status
    if received != f"{work.new_tokens} tokens":
        raise EngineError(
            f"Expected {engine} over {front} to generate {work.new_tokens} tokens for a request by "
            f"itself, received {received}."
        )
    return answer.seconds, clients.server.engine_seconds() - before
