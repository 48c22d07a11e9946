"""Requests for `fuzz.py`: damaged bodies, paths and messages, sent to a server.

The server runs in the client's process, so that a crash is counted. A logged error, a status of 500
and an error response without a reason are faults.
"""

import contextlib
import copy
import dataclasses
import gzip
import http.client
import json
import logging
import pathlib
import random
import shutil
import sys
from typing import Any

MODEL = "text"
SETTINGS = {"max_length": 6, "min_length": 0, "length_penalty": 1.0, "repetition_penalty": 1.0,
            "early_stopping": "never"}  # fmt: skip
# Valid requests, to be damaged.
BODIES = [
    (":predict", {"instances": ["A library.", {"b64": "YQ=="}]}),
    ("/versions/1:predict", {"inputs": {"text": ["A library.", ""]}}),
    (":predict", {"signature_name": "generate_text", "instances": [{"text": "A", **SETTINGS}]}),
    (":predict", {"signature_name": "tokenize", "inputs": ["A library.", "word " * 300]}),
    (":predict", {"signature_name": "detokenize",
                  "inputs": {"decoder_token_ids": [[2, 5, 6]], "decoder_lengths": [3]}}),
    (":predict", {"signature_name": "generate", "instances": [
        {"encoder_token_ids": [0, 9, 2], "encoder_lengths": 3, **SETTINGS}]}),
    (":generate", {"text": "A library.", "max_length": 4, "num_beams": 2}),
    (":generate", {"text": "A library.", "do_sample": True, "top_k": 5, "seed": 1}),
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308, float("nan"),
    float("-inf"), "", " ", "a", "\0", "\u00e9\U0001f40d", "\ud800", "x" * 5000, [], {}, [[]],
    [[], [1]], [1, [2]], [1, "a"], {"b64": "YQ=="}, {"b64": "?"}, {"b64": 1}, {"": ""},
    [None] * 100, list(range(2000)), ["a"] * 32, ["a"] * 33,
]  # fmt: skip
PIECES = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\ud800", b"NaN", b"-", b"1e999",
          b"9" * 5000, b"[" * 5000, b"null", b"\xff", b"\xef\xbb\xbf", b"\0", b"\n"]  # fmt: skip
METHODS = ["POST"] * 20 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"]
STATUSES = {200, 400, 403, 404, 405, 413, 415, 429, 501, 503, 504}
CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED",
         "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "OUT_OF_RANGE"}  # fmt: skip
INPUTS = {
    "": ("text",),
    "tokenize": ("text",),
    "generate_text": ("text",),
    "generate": ("encoder_token_ids", "encoder_lengths"),
    "detokenize": ("decoder_token_ids", "decoder_lengths"),
    "nope": ("x",),
}
CALLS = {
    "PredictionService": ("Predict", "Predict", "Predict", "GetModelMetadata"),
    "ModelService": ("GetModelStatus", "HandleReloadConfigRequest"),
}


class Errors(logging.Handler):
    """Collects logged errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.lines.append(self.format(record))


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server, and its ports, channel and logged errors."""

    rest_api_port: int
    channel: Any
    errors: Errors


TESTS = pathlib.Path(__file__).parents[1] / "tests"
SERVERS: dict[pathlib.Path, Server] = {}
OPEN = contextlib.ExitStack()  # closed when the process ends


def prepare(directory: pathlib.Path) -> pathlib.Path:
    """Return a copy of an artifact of a tiny random checkpoint."""
    first = TESTS / "data" / "artifacts" / "first"
    return pathlib.Path(shutil.copytree(first, directory / "made"))


def started(artifact: pathlib.Path) -> Server:
    """Return this process's server, which is started on first use."""
    if artifact not in SERVERS:
        import grpc

        from bart_export.server.options import ServeOptions
        from bart_export.server.versions import LITERT, ServedModel

        sys.path.append(str(TESTS))
        from support.rest_server import running

        errors = Errors()
        logging.getLogger().addHandler(errors)
        model = ServedModel(name=MODEL, base_path=artifact, engine=LITERT)
        options = ServeOptions(port=0, rest_api_port=0, request_seconds=10)
        serving = OPEN.enter_context(running([model], options))
        channel = OPEN.enter_context(grpc.insecure_channel(f"127.0.0.1:{serving.port}"))
        SERVERS[artifact] = Server(serving.rest_api_port, channel, errors)
    return SERVERS[artifact]


def attempt_rest(artifact: pathlib.Path, scratch: pathlib.Path, dice: random.Random) -> str:
    """Send a damaged request over REST and check the form of the response."""
    server = started(artifact)
    address, body = dice.choice(BODIES)
    data = json.dumps(odd(body, dice) if dice.random() < 0.6 else body).encode()
    if dice.random() < 0.5:
        data = damaged(data, dice)
    headers = {}
    if dice.random() < 0.1:
        headers["Content-Encoding"] = "gzip"
        data = gzip.compress(data)
        data = damaged(data, dice) if dice.random() < 0.5 else data
    path = f"/v1/models/{MODEL}{address}"
    if dice.random() < 0.1:
        path = damaged(path.encode(), dice).decode("latin-1")
        path = "".join(one for one in path if "!" <= one <= "~")
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=60)
    with contextlib.closing(connection):
        method = dice.choice(METHODS)
        connection.request(method, path or "/", data, headers)
        answer = connection.getresponse()
        content, status = answer.read(), answer.status
    told = f"{method} {path} {data[:200]!r}: {status} {content[:200]!r}"
    checked(server, status in STATUSES, told)
    if status != 200 and method not in ("HEAD", "OPTIONS") and path.startswith("/v1/"):
        reason = json.loads(content)["error"]
        checked(server, bool(reason) and len(reason.splitlines()) == 1, told)
    return str(status)


def attempt_grpc(artifact: pathlib.Path, scratch: pathlib.Path, dice: random.Random) -> str:
    """Send a damaged message over gRPC and check the form of the response."""
    import grpc

    server = started(artifact)
    service = dice.choice(list(CALLS))
    method = dice.choice(CALLS[service])
    data = message(method, dice)
    if dice.random() < 0.5:
        data = damaged(data, dice)
    call = server.channel.unary_unary(f"/tensorflow.serving.{service}/{method}")
    try:
        call(data, timeout=15)
        code, details = "OK", ""
    except grpc.RpcError as error:
        code, details = error.code().name, error.details()
    told = f"{method} {data[:200]!r}: {code} {details}"
    checked(server, code in CODES and (code == "OK" or bool(details)), told)
    return code


def checked(server: Server, right: bool, told: str) -> None:
    """Raise AssertionError for a wrong response or a logged error."""
    lines = server.errors.lines[:]
    server.errors.lines.clear()
    if lines or not right:
        raise AssertionError(f"{told} {lines}")


def message(method: str, dice: random.Random) -> bytes:
    """Return a request of a method, valid or with inconsistent tensors."""
    from bart_export.server import messages

    name = dice.choice((MODEL, MODEL, MODEL, "", "other"))
    spec = {"name": name, "signature_name": dice.choice(list(INPUTS))}
    if method != "Predict":
        return bytes(messages.PredictRequest(model_spec=spec).SerializeToString())
    request = messages.PredictRequest(model_spec=spec)
    for tensor in INPUTS[spec["signature_name"]]:
        proto = request.inputs[tensor]
        if dice.random() < 0.5:
            fill(proto, tensor)
            continue
        proto.dtype = dice.choice((1, 3, 7, 9, 10, 14, 101))
        for _ in range(dice.choice((0, 1, 1, 1, 2, 3, 40))):
            proto.tensor_shape.dim.add(size=dice.choice((0, 1, 1, 1, 2, 3, 32, 33, -1, 2**62)))
        match dice.randrange(4):
            case 0:
                texts = [dice.randbytes(3), b"A library.", b""]
                proto.string_val.extend(texts[: dice.randrange(4)])
            case 1:
                proto.int_val.extend([dice.choice((0, 5, -1, 2**31 - 1))] * dice.randrange(5))
            case 2:
                proto.tensor_content = dice.randbytes(dice.choice((1, 4, 8, 12, 1000)))
            case 3:
                proto.float_val.append(dice.choice((0.0, float("nan"))))
    return bytes(request.SerializeToString())


def fill(proto: Any, tensor: str) -> None:
    """Fill a tensor with two valid rows."""
    shape, values = ([2], [2, 3]) if tensor.endswith("lengths") else ([2, 3], [0, 9, 2] * 2)
    if tensor == "text":
        proto.dtype, shape = 7, [2]
        proto.string_val.extend([b"A library.", b" "])
    else:
        proto.dtype = 3
        proto.int_val.extend(values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)


def odd(document: Any, dice: random.Random) -> Any:
    """Return a JSON document with one or two parts replaced, removed or duplicated."""
    document = copy.deepcopy(document)
    for _ in range(dice.randint(1, 2)):
        parent = document
        while isinstance(parent, (dict, list)) and parent:
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            key = dice.choice(keys)
            if not isinstance(parent[key], (dict, list)) or dice.random() < 0.4:
                break
            parent = parent[key]
        else:
            continue
        match dice.randrange(3):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(parent[key])
            case _:
                parent[key] = copy.deepcopy(dice.choice(VALUES))
    return document


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Return data with a few bytes changed, removed, duplicated or inserted."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        place, other = sorted(dice.randrange(len(changed) + 1) for _ in range(2))
        match dice.randrange(4):
            case 0 if place < len(changed):
                changed[place] = dice.randrange(256)
            case 1:
                del changed[place : place + dice.randrange(8)]
            case 2:
                changed[place:place] = changed[place:other]
            case _:
                changed[place:place] = dice.choice(PIECES)
    return bytes(changed)
