"""Expensive requests take time proportional to their size and do not block others."""

import contextlib
import gzip
import threading
import time

import grpc
import pytest
import requests
from support.serving_process import LOOPBACK, serving_process

from bart_export.errors import BartExportError
from bart_export.server import models_config
from bart_export.server.messages import DataType, PredictRequest

MEGABYTE = 2**20
LISTS = 65_000  # of a body; more are not read
# Bodies of a REST request.
JSON = {
    "backslashes": lambda size: b'{"inputs": ["' + b"\\\\" * (size // 2),
    "quotation marks": lambda size: b'{"instances":[-Inf,"' + b'\\"' * (size // 2) + b"\\]}",
    "open string": lambda size: b'{"instances": [Inf' + b'"' * size,
    "closed strings": lambda size: b'{"instances": [' + b'"a",' * (size // 4) + b"Inf",
    "surrogates": lambda size: b'{"inputs": "' + b"\\ud800" * (size // 6) + b'"}',
    "digits": lambda size: b'{"inputs": [' + b"9" * size + b"]}",
    "integers": lambda size: b'{"inputs": [' + b",".join([b"9" * 4000] * (size // 4000)) + b"]}",
    "fraction": lambda size: b'{"inputs": [0.' + b"5" * size + b"]}",
    "spaces": lambda size: b" " * size,
    "no UTF-8": lambda size: b'{"inputs": "' + b"\xc3\xa9" * (size // 2) + b'\xff"}',
    "opened": lambda size: b'{"inputs": ' + b"[" * min(size, LISTS),
    "nested": lambda size: b'{"a":' * min(size // 6, LISTS) + b"1" + b"}" * min(size // 6, LISTS),
    "lists": lambda size: b'{"inputs": [' + b"[]," * (size // 3) + b"[]]}",
    "empty lists": lambda size: b'{"inputs": [' + b"[]," * min(size // 3, LISTS) + b"[]]}",
    "empty objects": lambda size: b'{"inputs": [' + b"{}," * min(size // 3, LISTS) + b"{}]}",
    "names": lambda size: b'{"inputs": {'
    + b",".join(b'"%d": 0' % number for number in range(size // 11)) + b"}}",
    "equal names": lambda size: b'{"inputs": {' + b",".join([b'"": 0'] * (size // 6)) + b"}}",
    "rows": lambda size: b'{"instances": [' + b'{"x":1},' * min(size // 8, LISTS) + b'{"x":"a"}]}',
    "numbers": lambda size: b'{"inputs": [' + b"1," * (size // 2) + b"null]}",
    "base64": lambda size: b'{"inputs": {"b64": "' + b"YQ==" * (size // 4) + b'"}}',
    "uneven": lambda size: b'{"inputs": [' + b"[1]," * min(size // 4, LISTS) + b"[1, 2]]}",
    "long name": lambda size: b'{"signature_name": "' + b"a" * size + b'", "inputs": 1}',
    "text": lambda size: b'{"text": "' + b"a" * size + b'"}',
    "parameters": lambda size: b'{"text": "a", '
    + b",".join(b'"%d": 0' % number for number in range(size // 11)) + b"}",
}  # fmt: skip

# Bodies that are compressed.
MEMBER = gzip.compress(b"")
GZIP = {
    "members": lambda size: MEMBER * (size // len(MEMBER)),
    "bomb": lambda size: gzip.compress(b"[" + b" " * size * 20),
    "header": lambda size: b"\x1f\x8b\x08\x18" + b"\0" * 6 + b"a" * size,
    "stored": lambda size: gzip.compress(b"a" * size, 0),
}


def tensor(axes, **fields):
    """Return a PredictRequest for a model `text` whose only input is `text`."""
    request = PredictRequest(model_spec={"name": "text"})
    proto = request.inputs["text"]
    for size in axes:
        proto.tensor_shape.dim.add(size=size)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return request.SerializeToString()


# PredictRequests.
GRPC = {
    "axes": lambda size: tensor([1] * (size // 4), dtype=DataType.DT_FLOAT, float_val=[1.0]),
    "filled": lambda size: tensor([size * 4], dtype=DataType.DT_STRING, string_val=[b"a"]),
    "filled rows": lambda size: tensor([1, size], dtype=DataType.DT_FLOAT, float_val=[1.0]),
    "strings": lambda size: tensor([size // 2], dtype=DataType.DT_STRING,
                                   string_val=[b""] * (size // 2)),
    "lengths": lambda size: tensor([1, size], dtype=DataType.DT_STRING,
                                   tensor_content=b"\0" * size),
    "open lengths": lambda size: tensor([1, size], dtype=DataType.DT_STRING,
                                        tensor_content=b"\x80" * size),
    "bytes": lambda size: tensor([1, size], dtype=DataType.DT_BOOL, tensor_content=b"\1" * size),
    "halves": lambda size: tensor([1, size // 2], dtype=DataType.DT_HALF,
                                  half_val=[1] * (size // 2)),
}  # fmt: skip
CONFIGS = {
    "comments": lambda size: b"#\n" * (size // 2),
    "open string": lambda size: b'model_config_list { config { name: "' + b"a" * size,
    "escapes": lambda size: b'model_config_list { config { name: "' + b"\\\\" * (size // 2) + b'"',
    "pieces": lambda size: b"model_config_list { config { name: " + b'"a" ' * (size // 4) + b"} }",
    "models": lambda size: b"model_config_list { " + b"config{} " * (size // 9) + b"}",
    "opened": lambda size: b"model_config_list { " * (size // 20),
    "word": lambda size: b"a" * size,
    "spaces": lambda size: b" " * size,
    "no UTF-8": lambda size: b"\xff" * size,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_read_in_proportion_to_its_size(name, tmp_path):
    seconds = []
    for times in (1, 2, 4):
        (tmp_path / "models.config").write_bytes(CONFIGS[name](MEGABYTE // 8 * times))
        begun = time.process_time()
        with contextlib.suppress(BartExportError):
            models_config.read_config(tmp_path / "models.config")
        seconds.append(time.process_time() - begun)
    # Quadratic time would give 16. Times of a few milliseconds are not reliable.
    assert seconds[2] / max(seconds[0], 0.01) < 11, seconds
    assert seconds[0] < 4, seconds


@pytest.fixture(scope="module")
def running(symmetric_artifact, tmp_path_factory):
    """Serve an artifact as the model `text`, with the default limits."""
    config = tmp_path_factory.mktemp("config") / "models.config"
    path = symmetric_artifact.directory
    config.write_text(
        f'model_config_list {{ config {{ name: "text" model_platform: "litert" base_path: "{path}"'
        " } }"
    )
    with serving_process("--model-config-file", config) as process:
        yield process
        assert process.logged("ERROR") == 0, process.log


class Health:
    """Polls the state of a model and records the slowest answer."""

    def __init__(self, url):
        self.url = url
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.slowest = 0.0
        self.answers = 0

    def watch(self):
        with requests.Session() as session:
            while not self.ended.is_set():
                began = time.monotonic()
                assert session.get(self.url, timeout=60).status_code == 200
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.answers += 1
                time.sleep(0.002)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


# On an idle machine, answers take a tenth. A busy one may be slow now and then, but not each time.
HEALTHY_SECONDS, TRIES = 1, 4
LARGEST = MEGABYTE - 100


def hold_up_nobody(running, ask):
    """Ask until others are answered in time meanwhile, at most `TRIES` times; return the answer."""
    slowest = []
    while not slowest or (slowest[-1] >= HEALTHY_SECONDS and len(slowest) < TRIES):
        with Health(running.url("/v1/models/text")) as health:
            answer = ask()
        slowest.append(health.slowest)
    assert slowest[-1] < HEALTHY_SECONDS, slowest
    return answer


@pytest.mark.parametrize(
    ("method", "encoding", "name"),
    [("predict", "identity", name) for name in JSON]
    + [("predict", "gzip", name) for name in GZIP]
    + [("generate", "identity", name) for name in ("text", "parameters", "names")],
)
def test_a_body_holds_up_nobody(running, method, encoding, name):
    body = {"identity": JSON, "gzip": GZIP}[encoding][name](LARGEST)
    url, headers = running.url(f"/v1/models/text:{method}"), {"Content-Encoding": encoding}

    def ask():
        return [requests.post(url, body, headers=headers, timeout=60) for _ in range(2)]

    for answer in hold_up_nobody(running, ask):
        assert answer.status_code in ({200} if name == "text" != method else set()) | {400, 413}
        if answer.status_code != 200:
            assert list(answer.json()) == ["error"]
            assert len(answer.json()["error"]) < 1100


@pytest.mark.parametrize("name", GRPC)
def test_a_message_holds_up_nobody(running, name):
    message = GRPC[name](LARGEST)
    with grpc.insecure_channel(f"{LOOPBACK}:{running.port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        def ask():
            with pytest.raises(grpc.RpcError) as raised:
                call(message, timeout=60)
            return raised.value.code()

        assert hold_up_nobody(running, ask) is grpc.StatusCode.INVALID_ARGUMENT
