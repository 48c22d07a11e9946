"""Random bytes, damaged requests, and tensors whose parts do not match.

Each is answered or refused with a reason, the server goes on, and its memory does not grow.
"""

import pathlib
import random

import grpc
import pytest
from support.grpc_front import call, front, request_of, spec, tensor
from support.odd_bodies import damaged
from tensorflow.core.framework.tensor_pb2 import TensorProto

SEED = 20261122
ROUNDS = 1500
SERVICES = {
    "Predict": "PredictionService",
    "GetModelMetadata": "PredictionService",
    "GetModelStatus": "ModelService",
    "HandleReloadConfigRequest": "ModelService",
}
WHOLE = {
    "Predict": spec("sums") + tensor("a", [1.0, 2.0]) + tensor("b", [3.0, 4.0]),
    "GetModelMetadata": spec() + 'metadata_field: "signature_def"',
    "GetModelStatus": spec(),
    "HandleReloadConfigRequest": 'config { model_config_list { config { name: "m" '
    'base_path: "/m" model_platform: "tensorflow" model_version_policy { all {} } '
    'version_labels { key: "stable" value: 1 } } } }',
}
FIELDS = [
    field for field in TensorProto.DESCRIPTOR.fields if field.name.endswith("_val")
    and field.message_type is None and field.name != "float8_val"
]  # fmt: skip
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED",
            "RESOURCE_EXHAUSTED"}  # fmt: skip


@pytest.fixture(scope="module")
def served():
    with front(pathlib.Path("/m")) as running:
        yield running
        call(running, "HandleReloadConfigRequest", WHOLE["HandleReloadConfigRequest"])
        # It still answers, and nothing is left running.
        assert call(running, "Predict", spec() + tensor("x", [1.0])).outputs
        assert running.servables["m", 2].running == 0


def outcome(served, method, data):
    """Send bytes to a method; return the code and the details, or OK."""
    stub = served.channel.unary_unary(f"/tensorflow.serving.{SERVICES[method]}/{method}")
    try:
        stub(data, timeout=20)
        return "OK", ""
    except grpc.RpcError as error:
        return error.code().name, error.details()


def check(told, data):
    """Assert that an outcome is an answer or a refusal with a reason."""
    code, details = told
    assert code == "OK" or (code in REFUSALS and details), (code, details, data)


SIZES = (0, 1, 2, 3, -1, -(2**63), 2**31, 2**62, 2**63 - 1)


def odd_tensor(generator, sizes=SIZES):
    """Return a TensorProto with independently chosen dtype, shape and values."""
    proto = TensorProto(dtype=generator.choice([*range(30), 101, 2**31 - 1]))
    for _ in range(generator.choice((0, 1, 1, 1, 2, 3, 40, 300))):
        proto.tensor_shape.dim.add(size=generator.choice(sizes))
    proto.tensor_shape.unknown_rank = generator.random() < 0.05
    if generator.random() < 0.4:
        proto.tensor_content = generator.randbytes(generator.choice((1, 4, 8, 12, 1000)))
    for field in generator.sample(FIELDS, generator.randrange(3)):
        value = generator.randbytes(3) if field.name == "string_val" else generator.choice((0, 1))
        getattr(proto, field.name).extend([value] * generator.choice((1, 2, 5)))
    return proto


@pytest.mark.parametrize("method", SERVICES)
def test_damaged_requests_are_answered_or_refused_with_a_reason(served, method):
    generator = random.Random(SEED)
    whole = request_of(method, WHOLE[method]).SerializeToString()
    assert outcome(served, method, whole) == ("OK", "")
    codes = set()
    for _ in range(ROUNDS // 5):
        data = damaged(generator, whole)
        told = outcome(served, method, data)
        check(told, data)
        codes.add(told[0])
    assert {"OK", "INVALID_ARGUMENT"} <= codes


def test_tensors_that_do_not_add_up_are_refused_with_a_reason(served):
    generator = random.Random(SEED)
    codes, sizes = set(), (*SIZES, 2**20)
    for _ in range(ROUNDS):
        name, signature = generator.choice((("x", ""), ("text", "upper"), ("a", "sums")))
        request = request_of(
            "Predict", spec(signature), inputs={name: odd_tensor(generator, sizes)}
        )
        told = outcome(served, "Predict", request.SerializeToString())
        check(told, request)
        codes.add(told[0])
    assert codes >= {"OK", "INVALID_ARGUMENT"}
