"""Opening a version directory and running its warm-up requests."""

import logging
import os
import struct
import sys
from concurrent.futures import Future

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from support.arithmetic import Arithmetic
from tensorflow_serving.apis import prediction_log_pb2

from bart_export.errors import EngineError, InputError, MissingExtra
from bart_export.export.warm_up import write_requests
from bart_export.server import open_version
from bart_export.server.messages import PredictRequest, tensor_proto
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.status import Code, StatusError
from bart_export.server.versions import ServedModel


class Opened(Arithmetic):
    """An Arithmetic that records its calls, and fails with `error`."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.error = None

    def submit(self, call):
        self.calls.append((call.signature, call.outputs))
        if self.error is not None:
            raise self.error
        return super().submit(call)


@pytest.fixture
def opened(monkeypatch):
    """Return the servable that is opened for any directory."""
    servable = Opened()
    monkeypatch.setattr(open_version, "open_servable", lambda *_: servable)
    yield servable
    servable.close()


@pytest.fixture
def load(opened, tmp_path):
    """Return a function that opens a version."""

    def open_with(**fields):
        served = ServedModel(name="m", base_path=tmp_path, engine="tensorflow")
        return open_version.opener(ServeOptions(**fields), Metrics())(served, 1, tmp_path)

    return open_with


def asking(*x, signature="", dtype=np.float32, name="x", outputs=()):
    return PredictRequest(
        model_spec={"name": "m", "signature_name": signature},
        inputs={name: tensor_proto(np.array(x, dtype))},
        output_filter=outputs,
    )


def test_warm_up_requests_run_before_a_version_is_returned(opened, load, tmp_path, caplog):
    write_requests(tmp_path, [asking(1), asking(2, signature="sums", name="a")])
    with caplog.at_level(logging.INFO):
        assert load() is opened
    assert opened.calls == [("serving_default", ("y",)), ("sums", ("difference", "sum"))]
    assert "ran 2 warm-up requests" in caplog.text


def test_a_warm_up_request_may_name_its_outputs(opened, load, tmp_path):
    write_requests(tmp_path, [asking(1, signature="sums", name="a", outputs=["sum"])])
    load()
    assert opened.calls == [("sums", ("sum",))]


@pytest.mark.parametrize(
    ("wrong", "code", "reason"),
    [
        (asking(1, signature="foo"), Code.FAILED_PRECONDITION, 'key "foo" not found'),
        (asking(1, name="z"), Code.INVALID_ARGUMENT, "Expected the inputs {x}, received {z}"),
        (
            asking(1, dtype=np.int32),
            Code.INVALID_ARGUMENT,
            "Expects arg[0] to be float but int32 is provided",
        ),
    ],
)
def test_a_failed_warm_up_request_fails_the_load(opened, load, tmp_path, wrong, code, reason):
    write_requests(tmp_path, [asking(1), wrong, asking(2)])
    with pytest.raises(StatusError) as refused:
        load()
    assert refused.value.code is code
    path = tmp_path / open_version.WARMUP_REQUESTS
    assert refused.value.message.startswith(f"Warmup record 2 from {path} failed: ")
    assert reason in refused.value.message
    assert len(opened.calls) <= 2
    assert opened.closed


def test_an_engine_error_fails_the_load_with_its_status(opened, load, tmp_path):
    opened.error = InputError("too long")
    write_requests(tmp_path, [asking(1)])
    with pytest.raises(StatusError, match="failed: too long") as refused:
        load()
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_a_warm_up_request_times_out_with_the_load(opened, load, tmp_path, monkeypatch):
    """Such as one that waits for a batch to fill."""
    monkeypatch.setattr(opened, "submit", lambda _: Future())
    write_requests(tmp_path, [asking(1)])
    with pytest.raises(StatusError, match="Warmup record 1 .* Timed out waiting") as caught:
        load(load_seconds=0.1)
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    assert opened.closed


@pytest.mark.parametrize(("requests", "warmup"), [(None, True), ([asking(1)], False)])
def test_warm_up_is_optional(opened, load, tmp_path, requests, warmup):
    if requests:
        write_requests(tmp_path, requests)
    load(warmup=warmup)
    assert opened.calls == []


def write_raw(tmp_path, *records):
    """Write records with TensorFlow's own writer."""
    path = tmp_path / open_version.WARMUP_REQUESTS
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.mark.parametrize("field", ["classify_log", "session_run_log", None])
def test_other_kinds_of_warm_up_requests_are_skipped(opened, load, tmp_path, field):
    log = prediction_log_pb2.PredictionLog()
    if field:
        getattr(log, field).SetInParent()
    write_raw(tmp_path, log.SerializeToString())
    load()
    assert opened.calls == []


def test_a_record_must_be_a_prediction_log(load, tmp_path):
    write_raw(tmp_path, b"\xff\xff")
    with pytest.raises(StatusError, match="Failed to parse warmup record 1") as refused:
        load()
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_more_than_a_thousand_records_are_refused(opened, load, tmp_path):
    write_requests(tmp_path, [asking(1)] * 1000)
    load()
    opened.calls.clear()
    write_requests(tmp_path, [asking(1)] * 1001)
    with pytest.raises(StatusError, match=r"exceeds the maximum \(1000\)"):
        load()
    assert opened.calls == []


def test_a_huge_warm_up_file_is_refused(opened, load, tmp_path):
    path = tmp_path / open_version.WARMUP_REQUESTS
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(1 << 35)
    with pytest.raises(StatusError, match=f"at most {1 << 28} bytes; has {1 << 35}") as refused:
        load()
    assert refused.value.code is Code.INVALID_ARGUMENT


def flip(position):
    def damage(content):
        changed = bytearray(content)
        changed[position] ^= 1
        return bytes(changed)

    return damage


def long_length(content):
    """Return content whose first record has a huge length."""
    return struct.pack("<Q", 2**62) + content[8:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip(0), "corrupted record at 0"),
        (flip(8), "corrupted record at 0"),
        (flip(12), "corrupted record at 12"),
        (flip(-1), "corrupted record at 33"),
        (lambda content: content[:-1], "truncated record at 21"),
        (lambda content: content[:-5], "truncated record at 21"),
        (lambda content: content[:25], "truncated record at 21"),
        (lambda content: content + b"\0", "truncated record at 42"),
        (long_length, "truncated record at 0"),
        (lambda _: b'{"instances": ["no TFRecord"]}', "truncated record at 0"),
    ],
    ids=[
        "length", "checksum of length", "content", "checksum of content", "short checksum",
        "short content", "short header", "more", "too long", "text",
    ],
)  # fmt: skip
def test_a_damaged_warm_up_file_is_data_loss(opened, load, tmp_path, damage, message):
    path = write_raw(tmp_path, b"first", b"later")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StatusError, match=f"{message}.*TFRecord format") as refused:
        load()
    assert refused.value.code is Code.DATA_LOSS
    assert opened.calls == []


def test_the_tensorflow_engine_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    served = ServedModel(name="m", base_path=tmp_path, engine="tensorflow")
    with pytest.raises(MissingExtra, match=r"pip install .*\[export\]"):
        open_version.open_servable(served, 1, tmp_path, ServeOptions(), Metrics())


def test_an_artifact_replaced_before_it_is_opened_is_refused(
    symmetric_artifact,
):
    served = ServedModel(name="m", base_path=symmetric_artifact.directory, engine="litert")
    load = open_version.opener(ServeOptions(), Metrics())
    exports = symmetric_artifact.manifest.exports
    with pytest.raises(EngineError, match=f"export {exports + 1}, but export {exports} has"):
        load(served, exports + 1, symmetric_artifact.directory)
    load(served, exports, symmetric_artifact.directory).close()
