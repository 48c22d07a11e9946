"""Warm-up requests: read, written and run before a version is served."""

import os
import struct

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from support.made_up_saved_models import write_half_plus_two
from tensorflow_serving.apis import prediction_log_pb2

from bart_export.errors import InputError
from bart_export.server import messages, tensors, warmup
from bart_export.server.options import ServeOptions
from bart_export.server.status import Code, StatusError
from bart_export.server.tensorflow_engine import open_saved_model


class Counting:
    """A servable that notes the calls that pass through it to another."""

    def __init__(self, servable):
        self.servable = servable
        self.signature_defs = servable.signature_defs
        self.calls = []
        self.error = None

    def submit(self, call):
        self.calls.append((call.signature, call.outputs))
        if self.error is not None:
            raise self.error
        return self.servable.submit(call)


@pytest.fixture(scope="module")
def half_plus_two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("half_plus_two") / "123"
    write_half_plus_two(directory)
    servable = open_saved_model(directory, ServeOptions())
    yield servable
    servable.close()


@pytest.fixture
def servable(half_plus_two):
    return Counting(half_plus_two)


def spec(signature):
    return messages.ModelSpec(name="whatever", signature_name=signature)


def predicting(*x, signature="", dtype=np.float32, name="x"):
    proto = tensors.to_proto(np.array(x, dtype))
    return messages.PredictRequest(model_spec=spec(signature), inputs={name: proto})


def run(servable, tmp_path, *requests):
    warmup.write_records(tmp_path / warmup.REQUESTS, requests)
    return warmup.run_warmup(servable, tmp_path)


def test_requests_warm_up(servable, tmp_path):
    filtered = predicting(1)
    filtered.output_filter.append("y")
    assert run(servable, tmp_path, predicting(1, 2), filtered) == 2
    assert servable.calls == [("serving_default", ("y",))] * 2


def test_a_version_without_requests_is_warm(servable, tmp_path):
    assert warmup.run_warmup(servable, tmp_path) == 0
    assert run(servable, tmp_path) == 0
    assert servable.calls == []


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (predicting(1, signature="foo"), Code.FAILED_PRECONDITION, 'key "foo" not found'),
        (predicting(1, name="z"), Code.INVALID_ARGUMENT, "Expected the inputs {x}, received {z}"),
        (
            predicting(1, dtype=np.int32),
            Code.INVALID_ARGUMENT,
            "Expects arg[0] to be float but int32 is provided",
        ),
    ],
)
def test_a_request_that_fails_fails_the_load(servable, tmp_path, request_, code, reason):
    with pytest.raises(StatusError) as refused:
        run(servable, tmp_path, predicting(1), request_, predicting(2))
    assert refused.value.code is code
    path = tmp_path / warmup.REQUESTS
    assert refused.value.message.startswith(f"Warmup record 2 from {path} failed: ")
    assert reason in refused.value.message
    assert len([call for call in servable.calls if call[0] == "serving_default"]) <= 2


def test_an_error_of_the_package_fails_the_load_as_it_would_a_call(servable, tmp_path):
    servable.error = InputError("too long")
    with pytest.raises(StatusError, match="failed: too long") as refused:
        run(servable, tmp_path, predicting(1))
    assert refused.value.code is Code.INVALID_ARGUMENT


def write_raw(tmp_path, *records):
    """Write records with TensorFlow's own writer."""
    path = tmp_path / warmup.REQUESTS
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


@pytest.mark.parametrize("field", ["classify_log", "session_run_log"])
def test_other_kinds_of_requests_are_passed_over(servable, tmp_path, field):
    log = prediction_log_pb2.PredictionLog()
    getattr(log, field).SetInParent()
    write_raw(tmp_path, log.SerializeToString())
    assert warmup.run_warmup(servable, tmp_path) == 1
    assert servable.calls == []


def test_a_log_of_nothing_is_passed_over(servable, tmp_path):
    write_raw(tmp_path, b"")
    assert warmup.run_warmup(servable, tmp_path) == 1


def test_a_record_that_is_no_log_is_invalid(servable, tmp_path):
    write_raw(tmp_path, b"\xff\xff")
    with pytest.raises(StatusError, match="Failed to parse warmup record 1") as refused:
        warmup.run_warmup(servable, tmp_path)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_no_more_than_a_thousand_records_are_run(servable, tmp_path):
    run(servable, tmp_path, *[predicting(1)] * 1000)
    servable.calls.clear()
    with pytest.raises(StatusError, match=r"exceeds the maximum \(1000\)") as refused:
        run(servable, tmp_path, *[predicting(1)] * 1001)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert servable.calls == []


def test_a_file_larger_than_any_warm_up_is_not_read(servable, tmp_path):
    path = tmp_path / warmup.REQUESTS
    path.parent.mkdir()
    with path.open("wb") as file:
        length = warmup.LENGTH.pack(1 << 34)
        file.write(length + warmup.CHECKSUM.pack(warmup.masked_crc32c(length)))
        file.truncate(1 << 35)
    with pytest.raises(StatusError, match=f"at most {1 << 28} bytes; has {1 << 35}") as refused:
        warmup.run_warmup(servable, tmp_path)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert servable.calls == []


def test_what_is_written_is_what_tensorflow_serving_reads(tmp_path):
    requests = [predicting(1, 2), predicting(3, signature="foo")]
    path = tmp_path / "new" / "requests"
    warmup.write_records(path, requests)
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path))
    ]
    for log, request in zip(logs, requests, strict=True):
        assert log.predict_log.request.SerializeToString(
            deterministic=True
        ) == request.SerializeToString(deterministic=True)


def test_records_of_tensorflow_are_read(tmp_path):
    records = [b"", b"a", bytes(range(256)) * 300]
    path = write_raw(tmp_path, *records)
    assert list(warmup.read_records(path)) == records


def flip(position):
    def damage(content):
        changed = bytearray(content)
        changed[position] ^= 1
        return bytes(changed)

    return damage


def long_length(content):
    """Return a first record that says, with a right checksum, that it is very long."""
    length = struct.pack("<Q", 2**62)
    return length + struct.pack("<I", warmup.masked_crc32c(length)) + content[12:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip(0), "corrupted record at 0"),
        (flip(8), "corrupted record at 0"),
        (flip(12), "corrupted record at 0"),
        (flip(-1), "corrupted record at 21"),
        (lambda content: content[:-1], "truncated record at 21"),
        (lambda content: content[:-5], "truncated record at 21"),
        (lambda content: content[:25], "truncated record at 21"),
        (lambda content: content + b"\0", "truncated record at 42"),
        (long_length, "truncated record at 0"),
        (lambda _: b'{"instances": ["no TFRecord"]}', "corrupted record at 0"),
    ],
    ids=[
        "length", "checksum of length", "content", "checksum of content", "short checksum",
        "short content", "short header", "more", "too long", "text",
    ],
)  # fmt: skip
def test_damage_is_data_loss(servable, tmp_path, damage, message):
    path = write_raw(tmp_path, b"first", b"later")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StatusError, match=f"^{message} of .*TFRecord format") as refused:
        warmup.run_warmup(servable, tmp_path)
    assert refused.value.code is Code.DATA_LOSS
    assert servable.calls == []


@pytest.mark.parametrize(
    ("content", "checksum"),
    [
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_crc32c_is_that_of_the_standard(content, checksum):
    assert warmup.crc32c(content) == checksum
