"""Clients that ask a server over REST and gRPC, in a process whose threads are not the server's.

Requests go in as bytes, one of each front for each question, and come back as answers: a status,
the time it took, and a digest of the tokens that were generated. Some clients may ask one request
after the other, or requests may be due at a steady rate, whether earlier ones are answered or not;
such a request's time begins when it is due. Connections are kept between requests. As a program
this module is the process of the clients: a line of JSON is an order, a line answers it.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grpc
import numpy as np

from bart_export.errors import EngineError
from bart_export.server import messages
from bart_export.server.servable import QUEUE_FULL
from bart_export.server.tensors import Array, from_proto

FRONTS = ("rest", "grpc")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
TOKENS, LENGTHS = "decoder_token_ids", "decoder_lengths"
OK, REFUSED = "200", "503"
# Before a server closes a connection that nothing comes over (uvicorn does after 5 s).
IDLE_SECONDS = 2.0
# Clients that were refused wait so long before they ask again.
REFUSED_SECONDS = 0.02
REQUEST_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request.

    `question` is the number of what was asked, `status` an HTTP status, or the name of another
    status of gRPC or of an error; `seconds` is from when the request was sent, or was due, to the
    answer's last byte. `new_tokens` and `digest` describe the tokens, 0 and "" if there are none.
    """

    question: int
    status: str
    seconds: float
    new_tokens: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Requests:
    """The same questions for each front: bodies for `model`:predict, PredictRequest messages."""

    model: str
    rest: tuple[bytes, ...]
    grpc: tuple[bytes, ...]


def digest(token_ids: Array, lengths: Array) -> tuple[int, str]:
    """Return how many tokens the first sequence has after its start, and a digest of them all."""
    content = np.ascontiguousarray(token_ids, np.int32).tobytes()
    return int(np.ravel(lengths)[0]) - 1, hashlib.sha256(content).hexdigest()[:16]


class Asker(Protocol):
    """Asks over one front; used by one thread."""

    def ask(self, question: int) -> tuple[str, bytes]:
        """Return the status and the body of an answer; whatever goes wrong is a status."""

    def tokens(self, body: bytes) -> tuple[int, str]:
        """Return what `digest` makes of the body of an answer of status OK."""

    def close(self) -> None:
        """Close the connection."""


class RestAsker:
    """Asks over an HTTP connection that is kept."""

    def __init__(self, port: int, requests: Requests) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
        self.path = f"/v1/models/{requests.model}:predict"
        self.bodies = requests.rest
        self.used = time.monotonic()

    def ask(self, question: int) -> tuple[str, bytes]:
        """Ask; see `Asker`."""
        if time.monotonic() - self.used > IDLE_SECONDS:
            self.connection.close()
        try:
            self.connection.request("POST", self.path, self.bodies[question])
            response = self.connection.getresponse()
            return str(response.status), response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            return type(error).__name__, b""
        finally:
            self.used = time.monotonic()

    def tokens(self, body: bytes) -> tuple[int, str]:
        """Read an answer; see `Asker`."""
        outputs = json.loads(body)["outputs"]
        return digest(np.array(outputs[TOKENS]), np.array(outputs[LENGTHS]))

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class GrpcAsker:
    """Asks over a gRPC channel; all askers of a process share its connection."""

    def __init__(self, port: int, requests: Requests) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.predict = self.channel.unary_unary(PREDICT)
        self.messages = requests.grpc

    def ask(self, question: int) -> tuple[str, bytes]:
        """Ask; see `Asker`."""
        try:
            return OK, self.predict(self.messages[question], timeout=REQUEST_SECONDS)
        except grpc.RpcError as error:
            # A connection that fails is UNAVAILABLE as well.
            return REFUSED if error.details() == QUEUE_FULL else error.code().name, b""

    def tokens(self, body: bytes) -> tuple[int, str]:
        """Read an answer; see `Asker`."""
        outputs = messages.PredictResponse.FromString(body).outputs
        return digest(from_proto(outputs[TOKENS], TOKENS), from_proto(outputs[LENGTHS], LENGTHS))

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


ASKERS: Mapping[str, Callable[[int, Requests], Asker]] = {"rest": RestAsker, "grpc": GrpcAsker}


class Clients:
    """Threads that ask; those of a front keep their connections from order to order."""

    def __init__(self, ports: Mapping[str, int], requests: Requests) -> None:
        self.ports, self.requests = ports, requests
        self.askers: dict[str, list[Asker]] = {front: [] for front in FRONTS}

    def close(self) -> None:
        """Close all connections."""
        for asker in itertools.chain.from_iterable(self.askers.values()):
            asker.close()

    def take(self, front: str, count: int) -> list[Asker]:
        """Return `count` askers of a front, made if need be."""
        askers = self.askers[front]
        while len(askers) < count:
            askers.append(ASKERS[front](self.ports[front], self.requests))
        return askers[:count]

    def in_turn(self, front: str, clients: int, count: int) -> tuple[float, list[Answer]]:
        """Ask `count` requests, `clients` side by side, each client the next as it is free.

        Returns:
            The seconds that all took, and the answers.
        """
        numbers = itertools.count()

        def work(asker: Asker) -> Iterator[Answer]:
            while (number := next(numbers)) < count:
                answer = self.asked(asker, number, time.perf_counter())
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

        def work(asker: Asker) -> Iterator[Answer]:
            while (number := next(numbers)) < rate * seconds:
                due = began + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                yield self.asked(asker, number, due)

        half = -(-clients // len(FRONTS))
        return together(work, [asker for front in FRONTS for asker in self.take(front, half)])

    def asked(self, asker: Asker, number: int, began: float) -> Answer:
        """Ask the question of a request's number."""
        question = number % len(self.requests.rest)
        status, body = asker.ask(question)
        seconds = time.perf_counter() - began
        return Answer(question, status, seconds, *(asker.tokens(body) if status == OK else (0, "")))


def together(
    work: Callable[[Asker], Iterator[Answer]], askers: Sequence[Asker]
) -> tuple[float, list[Answer]]:
    """Have all askers work in threads; return the seconds that took, and all answers."""
    answers: list[list[Answer]] = [[] for _ in askers]
    threads = [
        threading.Thread(target=lambda asker=asker, into=into: into.extend(work(asker)))
        for asker, into in zip(askers, answers, strict=True)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, [answer for some in answers for answer in some]


class ClientProcess:
    """The process of the clients of one server, as who measures knows it.

    Raises:
        EngineError: from each method, if the process has ended.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def in_turn(self, front: str, clients: int, count: int) -> tuple[float, list[Answer]]:
        """See `Clients.in_turn`."""
        return self.order("in_turn", front, clients, count)

    def steadily(self, rate: float, seconds: float, clients: int) -> tuple[float, list[Answer]]:
        """See `Clients.steadily`."""
        return self.order("steadily", rate, seconds, clients)

    def order(self, *words: Any) -> tuple[float, list[Answer]]:
        """Give an order and wait until it is carried out."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()
            seconds, answers = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise EngineError("The process of the clients ended; see above for why.") from None
        return seconds, [Answer(*fields) for fields in answers]


@contextlib.contextmanager
def client_process(ports: Mapping[str, int], requests: Requests) -> Iterator[ClientProcess]:
    """Run clients of a server for the length of a block.

    Args:
        ports: of the server, by front.
        requests: what they ask.
    """
    command = [sys.executable, "-m", __spec__.name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        bodies = {
            front: [base64.b64encode(body).decode() for body in getattr(requests, front)]
            for front in FRONTS
        }
        process.stdin.write(json.dumps([dict(ports), requests.model, bodies]) + "\n")
        try:
            yield ClientProcess(process)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def main() -> None:
    """Carry out orders until there are no more."""
    ports, model, bodies = json.loads(sys.stdin.readline())
    decoded = {front: tuple(map(base64.b64decode, bodies[front])) for front in FRONTS}
    with contextlib.closing(Clients(ports, Requests(model, **decoded))) as clients:
        orders: Mapping[str, Callable[..., Any]] = {
            "in_turn": clients.in_turn,
            "steadily": clients.steadily,
        }
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            seconds, answers = orders[name](*arguments)
            print(json.dumps([seconds, [dataclasses.astuple(one) for one in answers]]), flush=True)


if __name__ == "__main__":
    main()
