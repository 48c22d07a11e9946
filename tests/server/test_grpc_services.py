"""Both services with the official stubs: what they answer and what they refuse."""

import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from support.arithmetic import SIGNATURES
from support.grpc_front import call, front, refused, request_of, spec, tensor
from support.served_directories import wait_until
from tensorflow_serving.apis import get_model_metadata_pb2

from bart_export.server.options import MAX_ANSWER_BYTES

AVAILABLE, END = 30, 50
PAIR = tensor("a", [3.0, 4.0]) + tensor("b", [1.0, 2.0])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with front(tmp_path_factory.mktemp("m")) as running:
        yield running


def test_predict_answers_in_typed_fields_and_says_what_answered(served):
    response = call(served, "Predict", spec() + tensor("x", [1.0, 2.0]))
    assert list(response.outputs["y"].float_val) == [2.5, 3.0]
    assert response.outputs["y"].tensor_content == b""
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [2]
    spec_of_response = response.model_spec
    assert (spec_of_response.name, spec_of_response.version.value) == ("m", 2)
    assert spec_of_response.signature_name == "serving_default"


@pytest.mark.parametrize(
    ("choice", "version"),
    [("", 2), ("version { value: 1 }", 1), ('version_label: "stable"', 1)],
)
def test_a_version_is_chosen_by_number_or_label(served, choice, version):
    response = call(served, "Predict", spec("sums", rest=choice) + PAIR)
    assert response.model_spec.version.value == version
    assert response.model_spec.signature_name == "sums"


@pytest.mark.parametrize(
    ("wanted", "names"),
    [((), {"sum", "difference"}), (("sum",), {"sum"}), (("difference",), {"difference"})],
)
def test_only_the_outputs_of_the_filter_come_back(served, wanted, names):
    given = spec("sums") + PAIR + "".join(f'output_filter: "{name}"' for name in wanted)
    assert set(call(served, "Predict", given).outputs) == names


def test_an_input_with_a_default_may_be_left_out(served):
    response = call(served, "Predict", spec("sums") + tensor("a", [3.0, 4.0]))
    assert list(response.outputs["sum"].float_val) == [4.0, 5.0]


@pytest.mark.parametrize("field", ["float_val: 1", "tensor_content: '....'"])
def test_rows_are_counted_before_a_tensor_is_filled(served, field):
    """Four million rows fit into a message of fifty bytes."""
    axes = "tensor_shape { dim { size: 4194304 } }"
    given = f"{spec()} inputs {{ key: 'x' value {{ dtype: DT_FLOAT {axes} {field} }} }}"
    code, details = refused(served, "Predict", given)
    assert code == "INVALID_ARGUMENT"
    assert "Expected x to have at most 32 rows, received 4194304." in details


def test_an_answer_has_its_bounds(tmp_path):
    value = np.zeros((1, MAX_ANSWER_BYTES // 4 + 1), np.float32)
    given = {"x": tf.make_tensor_proto(value)}
    with front(tmp_path, max_request_bytes=2**27) as served:
        code, details = refused(served, "Predict", spec(), inputs=given, timeout=30)
    assert code == "INVALID_ARGUMENT"
    assert f"at most {MAX_ANSWER_BYTES} bytes" in details


def test_metadata_has_every_signature(served):
    response = call(served, "GetModelMetadata", spec() + 'metadata_field: "signature_def"')
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == set(SIGNATURES)
    sums = signatures.signature_def["sums"]
    assert sums.inputs["a"].dtype == tf.float32.as_datatype_enum
    assert not sums.defaults
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (2, "")


@pytest.mark.parametrize(
    ("choice", "versions"),
    [("", [2, 1]), ("version { value: 1 }", [1]), ('version_label: "none"', [2, 1])],
)
def test_the_status_lists_versions_the_highest_first(served, choice, versions):
    response = call(served, "GetModelStatus", spec(rest=choice))
    states = [(each.version, each.state) for each in response.model_version_status]
    assert states == [(version, AVAILABLE) for version in versions]


def reload_request(*lines):
    """Return the request to serve other models: names, their base paths and what else."""
    config = "".join(
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {rest} }}'
        for name, path, rest in lines
    )
    text = f"config {{ model_config_list {{ {config} }} }}"
    return request_of("HandleReloadConfigRequest", text)


def reload(served, *lines):
    """Ask for other models to be served; see `reload_request`."""
    return served.models.HandleReloadConfigRequest(reload_request(*lines), timeout=30)


ALL = "model_version_policy { all {} }"


def test_a_reload_replaces_what_is_served(tmp_path):
    with front(tmp_path) as served:
        x = tensor("x", [1.0])
        reload(served, ("m", tmp_path, ALL), ("n", tmp_path, ""))
        assert call(served, "Predict", spec(name="n") + x).model_spec.version.value == 2
        reload(served, ("n", tmp_path, 'version_labels { key: "canary" value: 2 }'))
        labelled = spec(name="n", rest='version_label: "canary"')
        assert call(served, "Predict", labelled + x).model_spec.version.value == 2
        assert refused(served, "Predict", spec() + x)[0] == "NOT_FOUND"
        states = call(served, "GetModelStatus", spec()).model_version_status
        assert {each.state for each in states} <= {40, END}
        told = refused(served, "GetModelStatus", spec(name="q"))
        assert told == ("NOT_FOUND", "Could not find any versions of model q")


def test_a_reload_is_refused_unless_it_is_allowed(tmp_path):
    with front(tmp_path, allow_reload_requests=False) as served:
        with pytest.raises(grpc.RpcError, match="--allow-reload-requests") as raised:
            reload(served, ("n", tmp_path, ""))
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert list(served.store.served) == ["m"]


def test_a_reload_goes_on_when_its_client_has_gone(tmp_path):
    loading = threading.Event()
    with front(tmp_path, loading=loading) as served:
        asked = served.models.HandleReloadConfigRequest.future(reload_request(("n", tmp_path, "")))
        wait_until(lambda: "n" in served.store.served)
        asked.cancel()
        loading.set()
        wait_until(lambda: list(served.store.served) == ["n"])
        x = tensor("x", [1.0])
        wait_until(lambda: call(served, "GetModelStatus", spec(name="n")).model_version_status)
        reload(served, ("n", tmp_path, ""))
        assert call(served, "Predict", spec(name="n") + x).outputs


def test_reloads_that_take_long_do_not_hold_up_large_requests(tmp_path):
    loading = threading.Event()
    with front(tmp_path, loading=loading) as served:
        request = reload_request(("m", tmp_path, ALL), ("n", tmp_path, ""))
        asked = [served.models.HandleReloadConfigRequest.future(request) for _ in range(20)]
        wait_until(lambda: "n" in served.store.served)
        large = {"x": tf.make_tensor_proto(np.zeros((1, 100_000), np.float32))}
        assert call(served, "Predict", spec(), inputs=large).outputs
        assert not any(each.done() for each in asked)
        loading.set()
        for each in asked:
            each.result(60)


def test_calls_are_counted_and_timed(tmp_path):
    with front(tmp_path) as served:
        call(served, "Predict", spec() + tensor("x", [1.0]))
        lines = served.metrics.exposition().splitlines()
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 1.0' in lines
    labels = 'API="Predict",entrypoint="GRPC",model_name="m"'
    assert f":tensorflow:serving:request_latency_count{{{labels}}} 1.0" in lines
    labels = 'API="Predict",model_name="m",runtime="TF1"'
    assert f":tensorflow:serving:runtime_latency_count{{{labels}}} 1.0" in lines


X = tensor("x", [1.0])
ONE_FLOAT = "dtype: DT_FLOAT tensor_shape { dim { size: 1 } }"
CONFIG = "config {{ model_config_list {{ {} }} }}"
LISTED = 'config {{ name: "{}" base_path: "{}" model_platform: "tensorflow" {} }}'

REFUSALS = [
    ("Predict", X, "INVALID_ARGUMENT", "Missing ModelSpec"),
    ("Predict", "model_spec {}", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ("Predict", spec(name="q") + X, "NOT_FOUND", "Servable not found for request: Latest(q)"),
    ("Predict", spec(rest="version { value: 99 }") + X, "NOT_FOUND", "request: Specific(m, 99)"),
    ("Predict", spec(rest="version { value: 0 }") + X, "NOT_FOUND", "request: Specific(m, 0)"),
    ("Predict", spec(name="q", rest='version_label: "stable"') + X, "INVALID_ARGUMENT",
     "Unrecognized servable version label: stable"),
    ("Predict", spec(rest='version_label: "L"') + X, "INVALID_ARGUMENT",
     "Unrecognized servable version label: L"),
    ("Predict", spec("foo") + X, "FAILED_PRECONDITION", 'Serving signature key "foo" not found.'),
    ("Predict", spec() + X + tensor("z", [1.0]), "INVALID_ARGUMENT",
     "Expected the inputs {x}, received {x,z}. Missing but required: {}. Unknown: {z}."),
    ("Predict", spec("sums") + tensor("b", [1.0]), "INVALID_ARGUMENT",
     "Expected the inputs {a,b}, received {b}. Missing but required: {a}. Unknown: {}."),
    ("Predict", spec() + f'inputs {{ key: "x" value {{ {ONE_FLOAT} tensor_content: "abc" }} }}',
     "INVALID_ARGUMENT", "tensor parsing error: x"),
    ("Predict", spec() + tensor("x", ["1"]), "INVALID_ARGUMENT",
     "Expects arg[0] to be float but string is provided"),
    ("Predict", spec() + X + 'output_filter: "z"', "INVALID_ARGUMENT",
     "output tensor alias not found in signature: z Outputs expected to be in the set {y}."),
    ("Predict", spec() + X + 'output_filter: "y" output_filter: "y"', "INVALID_ARGUMENT",
     "duplicate output tensor alias: y"),
    ("Predict", spec("fail") + X, "INTERNAL", "RuntimeError: the engine broke"),
    ("Classify", spec("classify"), "UNIMPLEMENTED", "Use Predict."),
    ("Regress", spec("regress"), "UNIMPLEMENTED", "Use Predict."),
    ("MultiInference", "", "UNIMPLEMENTED", "Use Predict."),
    ("GetModelStatus", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
    ("GetModelStatus", spec(name="q"), "NOT_FOUND", "Could not find any versions of model q"),
    ("GetModelStatus", spec(rest="version { value: 99 }"), "NOT_FOUND",
     "Could not find version 99 of model m"),
    ("GetModelMetadata", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
    ("GetModelMetadata", spec(), "INVALID_ARGUMENT",
     "GetModelMetadataRequest must specify at least one metadata_field"),
    ("GetModelMetadata", spec() + 'metadata_field: "foo"', "INVALID_ARGUMENT",
     "Metadata field foo is not supported"),
    ("GetModelMetadata", spec(name="q") + 'metadata_field: "signature_def"', "NOT_FOUND",
     "Servable not found for request: Latest(q)"),
    ("HandleReloadConfigRequest", "", "INVALID_ARGUMENT",
     "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
     "currently supported"),
    ("HandleReloadConfigRequest", CONFIG.format(LISTED.format("m", "/m", "") * 2),
     "INVALID_ARGUMENT", "Illegal to list model m multiple times in config list"),
    ("HandleReloadConfigRequest", CONFIG.format(LISTED.format("m", "m", "")), "INVALID_ARGUMENT",
     "Expected model m to have an absolute path or URI; got base_path()=m"),
    ("HandleReloadConfigRequest", CONFIG.format('config { name: "m" base_path: "/m" }'),
     "INVALID_ARGUMENT", "to have the model_platform tensorflow or litert, received none"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "text", "code", "details"), REFUSALS)
def test_what_is_wrong_is_refused_as_tensorflow_serving_does(served, method, text, code, details):
    told = refused(served, method, text)
    assert told[0] == code
    assert details in told[1]
