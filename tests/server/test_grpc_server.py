"""The gRPC server itself: health, reflection, encryption, limits, and bytes that are no message."""

import json
import socket
import subprocess

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from support.grpc_front import call, front, refused, request_of, spec, tensor
from support.served_directories import wait_until
from tensorflow_serving.apis import (
    model_service_pb2,
    prediction_service_pb2,
    session_service_pb2,
)

from bart_export.errors import ConfigurationError
from bart_export.server import grpc_server
from bart_export.server.grpc_server import server_credentials

SERVING, NOT_SERVING = 1, 2
X = tensor("x", [1.0])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with front(tmp_path_factory.mktemp("m"), max_request_bytes=100_000) as running:
        yield running


def unary(served, path):
    """Return a call of a method that sends and takes bytes."""
    return served.channel.unary_unary(path)


@pytest.mark.parametrize(
    "service",
    [
        "",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "PredictionService",
        "ModelService",
    ],
)
def test_health_says_that_every_service_serves(served, service):
    health = health_pb2_grpc.HealthStub(served.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    assert answer.status == SERVING


def test_watchers_of_health_are_told_when_the_server_ends(tmp_path):
    with front(tmp_path, drain_seconds=60) as served:
        health = health_pb2_grpc.HealthStub(served.channel)
        statuses = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
        assert next(statuses).status == SERVING
        served.end()
        assert next(statuses).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(statuses)
        # A watcher is not waited for, as a call would be.
        assert caught.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_client_learns_services_and_messages_by_reflection(served):
    database = ProtoReflectionDescriptorDatabase(served.channel)
    assert set(database.get_services()) == {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    pool = descriptor_pool.DescriptorPool(database)
    for name in database.get_services():
        assert pool.FindServiceByName(name).methods
    request = (
        pool.FindServiceByName("tensorflow.serving.PredictionService")
        .methods_by_name["Predict"]
        .input_type
    )
    assert request.fields_by_name["output_filter"].number == 3
    assert pool.FindMessageTypeByName("tensorflow.TensorProto").fields_by_name["half_val"]


@pytest.mark.parametrize(
    "path",
    [
        "/tensorflow.serving.SessionService/SessionRun",
        "/tensorflow.serving.PredictionService/PredictStreamed",
        "/made.up.Service/Predict",
    ],
)
def test_what_is_not_served_is_unimplemented(served, path):
    request = session_service_pb2.SessionRunRequest().SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        unary(served, path)(request, timeout=30)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


METHODS = [
    (service.full_name, method.name, method.input_type.full_name)
    for file in (prediction_service_pb2, model_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name not in ("PredictStreamed", "Classify", "Regress", "MultiInference")  # not served
]


@pytest.mark.parametrize("data", [b"\x0a\xff\xff", b"\x0a\x01", b"no message", bytes(range(256))])
@pytest.mark.parametrize(("service", "method", "request_type"), METHODS)
def test_bytes_that_are_no_message_are_an_invalid_argument(
    served, service, method, request_type, data, caplog
):
    with pytest.raises(grpc.RpcError) as caught:
        list(served.channel.stream_stream(f"/{service}/{method}")(iter([data]), timeout=30))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (
        f"Expected a serialized {request_type}, received {len(data)} invalid bytes"
        in caught.value.details()
    )
    assert not caplog.records


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_a_request_beyond_the_limit_is_refused(served, compression):
    request = bytes(200_000)
    with pytest.raises(grpc.RpcError) as caught:
        unary(served, "/tensorflow.serving.PredictionService/Predict")(
            request, timeout=30, compression=compression
        )
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in caught.value.details()


@pytest.mark.parametrize("length", [10, 900, 5000])
def test_long_details_are_cut(served, length):
    name = "é" * length
    code, details = refused(served, "Predict", spec(name=name) + X)
    whole = f"Servable not found for request: Latest({name})"
    assert code == "NOT_FOUND"
    if len(whole) <= 1024:
        assert details == whole
    else:
        assert len(details) == 1024
        assert details == whole[: 1024 - len("...TRUNCATED")] + "...TRUNCATED"


def test_a_deadline_of_the_client_ends_the_call_and_its_work(served):
    arithmetic = served.servables["m", 2]
    stopped = arithmetic.stopped
    code, _ = refused(served, "Predict", spec("wait") + tensor("seconds", [100.0]), timeout=1)
    assert code == "DEADLINE_EXCEEDED"
    wait_until(lambda: arithmetic.stopped == stopped + 1)


def test_a_call_without_deadline_has_that_of_the_server(tmp_path):
    with front(tmp_path, request_seconds=0.3) as served:
        wait = spec("wait") + tensor("seconds", [100.0])
        told = refused(served, "Predict", wait, timeout=None)
        assert told == ("DEADLINE_EXCEEDED", "Timed out waiting for notification")
        wait_until(lambda: served.servables["m", 2].stopped == 1)
        # A client that brings a deadline may wait for longer.
        short = spec("wait") + tensor("seconds", [0.6])
        assert call(served, "Predict", short).outputs


def test_a_client_that_goes_away_stops_the_work(served):
    arithmetic = served.servables["m", 2]
    stopped = arithmetic.stopped
    request = request_of("Predict", spec("wait") + tensor("seconds", [100.0]))
    future = served.prediction.Predict.future(request)
    wait_until(lambda: arithmetic.running == 1)
    future.cancel()
    wait_until(lambda: arithmetic.stopped == stopped + 1)


def openssl(*arguments):
    """Run openssl."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority; `certificate` is its certificate as PEM text."""

    def __init__(self, directory):
        self.directory = directory
        self.key, self.path = self.directory / "ca.key", self.directory / "ca.pem"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", 2, "-subj", "/CN=test authority", "-keyout", self.key, "-out", self.path,
        )  # fmt: skip
        self.certificate = self.path.read_text()

    def sign(self, name):
        """Return a new key and its certificate for localhost, as PEM texts."""
        key, request, certificate, extensions = (
            self.directory / f"{name}.{ending}" for ending in ("key", "csr", "pem", "ext")
        )
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request,
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", request, "-CA", self.path, "-CAkey", self.key,
            "-CAcreateserial", "-days", 2, "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return key.read_text(), certificate.read_text()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def signed(authority):
    """Return the texts of a key and of its certificate."""
    return authority.sign("server")


def ssl_config(directory, **fields):
    """Write an SSLConfig and return its path; texts and truths are its fields' values."""
    path = directory / "ssl.config"
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in fields.items()]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("client_verify", [False, True])
def test_tls_proves_the_server_and_on_demand_its_clients(tmp_path, authority, client_verify):
    key, certificate = authority.sign("server")
    ca, proof = authority.certificate, []
    fields = {"server_key": key, "server_cert": certificate}
    if client_verify:
        fields |= {"custom_ca": ca, "client_verify": True}
        proof = [text.encode() for text in authority.sign("client")]
    trusted = grpc.ssl_channel_credentials(ca.encode(), *proof)
    config = ssl_config(tmp_path, **fields)
    with front(tmp_path, ssl_config_file=config, credentials=trusted) as served:
        assert call(served, "Predict", spec() + X).outputs
        address = f"localhost:{served.port}"
        if client_verify:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.encode()))
        else:
            channel = grpc.insecure_channel(address)
        with channel:
            stub = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            with pytest.raises(grpc.RpcError) as caught:
                stub(b"", timeout=30)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


PEM = "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"server_key": 7}, "must hold a tensorflow.serving.SSLConfig as text"),
        ({"server_cert": ""}, "has no matching key and certificate"),
        ({"server_key": "/etc/ssl/server.key"}, "has no matching key and certificate"),
        ({"custom_ca": "ca.pem", "client_verify": True}, "with client_verify, custom_ca"),
        ({"client_verify": True}, "with client_verify, custom_ca to be the"),
        ({"server_key": PEM}, "has no matching key and certificate"),
        ({"server_cert": PEM}, "has no matching key and certificate"),
        ({"custom_ca": PEM, "client_verify": True}, "has no matching key and certificate"),
    ],
)
def test_a_tls_configuration_that_does_not_fit_is_one_line(tmp_path, signed, capfd, wrong, told):
    key, certificate = signed
    path = ssl_config(tmp_path, **{"server_key": key, "server_cert": certificate, **wrong})
    with pytest.raises(ConfigurationError, match=told) as caught:
        server_credentials(path)
    assert str(path) in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_tls_configuration_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigurationError, match="ssl.config cannot be read: No such file"):
        server_credentials(tmp_path / "ssl.config")


def ended(connection, seconds):
    """Return whether the other side ends a connection within some seconds."""
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n"])
def test_a_connection_that_becomes_no_http2_is_ended(tmp_path, monkeypatch, sent):
    bounds = {**dict(grpc_server.BOUNDS), "grpc.server_handshake_timeout_ms": 300}
    monkeypatch.setattr(grpc_server, "BOUNDS", tuple(bounds.items()))
    with (
        front(tmp_path) as served,
        socket.create_connection(("localhost", served.port)) as connection,
    ):
        connection.sendall(sent)
        assert ended(connection, 60)


def test_there_are_no_more_connections_than_allowed(tmp_path, monkeypatch):
    bounds = {**dict(grpc_server.BOUNDS), "grpc.server_handshake_timeout_ms": 100_000}
    monkeypatch.setattr(grpc_server, "BOUNDS", tuple(bounds.items()))
    with front(tmp_path, max_connections=3) as served:
        assert call(served, "Predict", spec() + X).outputs
        others = [socket.create_connection(("localhost", served.port)) for _ in range(5)]
        wait_until(lambda: sum(ended(other, 0.01) for other in others) == 3)
        assert call(served, "Predict", spec() + X).outputs
        for other in others:
            other.close()
