"""What both services refuse, with the official stubs: TensorFlow Serving's codes and texts."""

import pytest
from support.grpc_front import front, refused, spec, tensor


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with front(tmp_path_factory.mktemp("m")) as running:
        yield running


X = tensor("x", [1.0])
ONE_FLOAT = "dtype: DT_FLOAT tensor_shape { dim { size: 1 } }"
CONFIG = "config {{ model_config_list {{ {} }} }}"
LISTED = 'config {{ name: "{}" base_path: "{}" model_platform: "tensorflow" {} }}'

REFUSALS = [
    ("Predict", X, "INVALID_ARGUMENT", "Missing ModelSpec"),
    ("Predict", "model_spec {}", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ("Predict", spec(name="q") + X, "NOT_FOUND", "Servable not found for request: Latest(q)"),
    (
        "Predict",
        spec(rest="version { value: 99 }") + X,
        "NOT_FOUND",
        "Servable not found for request: Specific(m, 99)",
    ),
    (
        "Predict",
        spec(rest="version { value: 0 }") + X,
        "NOT_FOUND",
        "Servable not found for request: Specific(m, 0)",
    ),
    (
        "Predict",
        spec(rest='version_label: "L"') + X,
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: L",
    ),
    (
        "Predict",
        spec("foo") + X,
        "FAILED_PRECONDITION",
        'Serving signature key "foo" not found.',
    ),
    (
        "Predict",
        spec() + X + tensor("z", [1.0]),
        "INVALID_ARGUMENT",
        "Expected the inputs {x}, received {x,z}. Missing but required: {}. Unknown: {z}.",
    ),
    (
        "Predict",
        spec(),
        "INVALID_ARGUMENT",
        "Expected the inputs {x}, received {}. Missing but required: {x}. Unknown: {}.",
    ),
    (
        "Predict",
        spec("sums") + tensor("b", [1.0]),
        "INVALID_ARGUMENT",
        "Expected the inputs {a,b}, received {b}. Missing but required: {a}. Unknown: {}.",
    ),
    (
        "Predict",
        spec() + f'inputs {{ key: "x" value {{ {ONE_FLOAT} tensor_content: "abc" }} }}',
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    ),
    (
        "Predict",
        spec() + 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: -1 } } } }',
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    ),
    (
        "Predict",
        spec() + 'inputs { key: "x" value { tensor_shape { dim { size: 1 } } } }',
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    ),
    (
        "Predict",
        spec() + tensor("x", ["1"]),
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but string is provided",
    ),
    (
        "Predict",
        spec() + X + 'output_filter: "z"',
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    ),
    (
        "Predict",
        spec() + X + 'output_filter: "y" output_filter: "y"',
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: y",
    ),
    ("Predict", spec("fail") + X, "INTERNAL", "RuntimeError: the engine broke"),
    ("Classify", spec("classify"), "UNIMPLEMENTED", "Ask Predict."),
    ("Regress", spec("regress"), "UNIMPLEMENTED", "Ask Predict."),
    ("MultiInference", "", "UNIMPLEMENTED", "Ask Predict."),
    ("GetModelStatus", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
    (
        "GetModelStatus",
        spec(name="q"),
        "NOT_FOUND",
        "Could not find any versions of model q",
    ),
    (
        "GetModelStatus",
        spec(rest="version { value: 99 }"),
        "NOT_FOUND",
        "Could not find version 99 of model m",
    ),
    ("GetModelMetadata", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
    (
        "GetModelMetadata",
        spec(),
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    ),
    (
        "GetModelMetadata",
        spec() + 'metadata_field: "foo"',
        "INVALID_ARGUMENT",
        "Metadata field foo is not supported",
    ),
    (
        "GetModelMetadata",
        spec(name="q") + 'metadata_field: "signature_def"',
        "NOT_FOUND",
        "Servable not found for request: Latest(q)",
    ),
    (
        "HandleReloadConfigRequest",
        "",
        "INVALID_ARGUMENT",
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList "
        "is currently supported",
    ),
    (
        "HandleReloadConfigRequest",
        CONFIG.format(LISTED.format("m", "/m", "") * 2),
        "INVALID_ARGUMENT",
        "Illegal to list model m multiple times in config list",
    ),
    (
        "HandleReloadConfigRequest",
        CONFIG.format(LISTED.format("m", "m", "")),
        "INVALID_ARGUMENT",
        "Expected model m to have an absolute path or URI; got base_path()=m",
    ),
    (
        "HandleReloadConfigRequest",
        CONFIG.format('config { name: "m" base_path: "/m" }'),
        "INVALID_ARGUMENT",
        "Expected model m to have the model_platform tensorflow or litert, received none",
    ),
    (
        "HandleReloadConfigRequest",
        CONFIG.format('config { name: "m" base_path: "/m" model_platform: "p" }'),
        "INVALID_ARGUMENT",
        "tensorflow or litert, received p",
    ),
]


@pytest.mark.parametrize(("method", "text", "code", "details"), REFUSALS)
def test_what_is_wrong_is_refused_as_tensorflow_serving_does(served, method, text, code, details):
    told = refused(served, method, text)
    assert told[0] == code
    assert details in told[1]
