"""The REST service as a table of requests and responses, by TensorFlow Serving's rules.

A row is (method, path, body, status, expected). A body that is not text is sent as JSON. Expected
is a part of the response if it is text, and its whole JSON if it is an object.

`ANY_ENGINE` is for the model `text` on both engines: versions 1, labelled `stable`, and 2 with the
input `text` and the output `generated_text`. `SAVED_MODEL` is for the models `typed` and
`half_plus_two` on TensorFlow.
"""

import contextlib
import shutil

import pytest
from support import made_up_artifacts
from support.made_up_saved_models import write_half_plus_two
from support.rest_server import served
from support.typed_saved_model import write_text, write_typed

from bart_export.server.metrics import Metrics
from bart_export.server.model_store import ModelStore
from bart_export.server.open_version import opener
from bart_export.server.options import ServeOptions
from bart_export.server.versions import LITERT, TENSORFLOW, ServedModel, VersionPolicy

ENGINES = (TENSORFLOW, LITERT)
OPTIONS = ServeOptions()

# fmt: off
TEXT = "/v1/models/text"
PREDICT = f"{TEXT}:predict"
PARSE_ERROR = "JSON Parse error: "

ADDRESSES = [
    ("GET", TEXT, None, 200, '"version": "2"'),
    ("GET", "/v1/models/t%65xt?x=1", None, 200, '"state": "AVAILABLE"'),
    ("GET", f"{TEXT}/versions/0001", None, 200, {"model_version_status": [
        {"version": "1", "state": "AVAILABLE",
         "status": {"error_code": "OK", "error_message": ""}}]}),
    ("GET", f"{TEXT}/labels/nope", None, 200, '"version": "1"'),
    ("GET", f"{TEXT}/metadata", None, 200, '"version": "2"'),
    ("GET", f"{TEXT}/versions/1/metadata", None, 200, '"version": "1"'),
    ("GET", f"{TEXT}/labels/stable/metadata", None, 200, '"version": "1"'),
    ("GET", "/v1/models/nope", None, 404, "Could not find any versions of model nope"),
    ("GET", "/v1/models/te%zzxt", None, 404, "Could not find any versions of model te%zzxt"),
    ("GET", "/v1/models/%ff", None, 404, "Could not find any versions of model \ufffd"),
    ("GET", f"{TEXT}/versions/9", None, 404, "Could not find version 9 of model text"),
    ("GET", f"{TEXT}/versions/9223372036854775808", None, 404, "Could not find version 9223372"),
    ("GET", f"{TEXT}/versions/{'9' * 5000}", None, 400, "a version of at most 19 digits"),
    ("GET", f"{TEXT}/versions/latest", None, 400, 'at most 19 digits, received "latest"'),
    ("GET", "/v1/models/nope/metadata", None, 404, "Servable not found for request: Latest(nope)"),
    ("GET", f"{TEXT}/versions/9/metadata", None, 404, "request: Specific(text, 9)"),
    ("GET", f"{TEXT}/labels/nope/metadata", None, 400,
     "Unrecognized servable version label: nope"),
    ("GET", "/v1/models", None, 404, {"error": "Not Found: GET /v1/models"}),
    ("GET", f"{TEXT}/", None, 404, {"error": "Not Found: GET /v1/models/text/"}),
    ("GET", f"{TEXT}/versions/1/labels/stable", None, 404, "Not Found: GET /v1/models/text/ver"),
    ("GET", "/healthz", None, 404, "Not Found: GET /healthz"),
    ("GET", PREDICT, None, 404, "Could not find any versions of model text:predict"),
    ("PUT", TEXT, "{}", 405, {"error": "Method Not Allowed: PUT /v1/models/text"}),
    ("OPTIONS", PREDICT, None, 405, "Method Not Allowed: OPTIONS /v1/models/text:predict"),
    ("POST", TEXT, "{}", 405, "Method Not Allowed: POST /v1/models/text"),
    ("POST", f"{TEXT}:classify", {}, 404, "Expected the method predict or generate. Classify, Reg"),
    ("POST", f"{TEXT}/versions/1:explain", {}, 404, "Expected the method predict or generate."),
]

ONE, TWO = {"instances": ["a"]}, {"instances": [{"text": "a"}, {"text": "b"}]}
BODIES = [
    ("POST", PREDICT, {**ONE, "signature_name": "", "more": 1}, 200, '"predictions": ['),
    ("POST", PREDICT, {**TWO, "signature_name": "serving_default"}, 200, '"predictions": ['),
    ("POST", PREDICT, {"inputs": ["a"]}, 200, '"outputs": ['),
    ("POST", PREDICT, {"inputs": {"text": ["a"], "more": 1}}, 200, '"outputs": ['),
    ("POST", PREDICT, {"instances": [{"b64": "YQ"}]}, 200, '"predictions": ['),
    ("POST", PREDICT, '\ufeff{"instances": ["a"]}', 200, '"predictions": ['),
    ("POST", f"{TEXT}/versions/1:predict", ONE, 200, '"predictions": ['),
    ("POST", f"{TEXT}/labels/stable:predict", ONE, 200, '"predictions": ['),
    ("POST", "/v1/models/nope:predict", ONE, 404, "Servable not found for request: Latest(nope)"),
    ("POST", "/v1/models/nope:predict", "{", 400, PARSE_ERROR),
    ("POST", "/v1/models/nope:generate", {"text": "a"}, 404, "Latest(nope)"),
    ("POST", f"{TEXT}/versions/9:predict", ONE, 404, "request: Specific(text, 9)"),
    ("POST", f"{TEXT}/labels/nope:predict", ONE, 400, "Unrecognized servable version label: nope"),
    ("POST", PREDICT, None, 400, f"{PARSE_ERROR}Expecting value: line 1"),
    ("POST", PREDICT, b'{"instances": ["\xff"]}', 400, f"{PARSE_ERROR}'utf-8' codec can't decode"),
    ("POST", PREDICT, ["a"], 400, "to be a JSON object, received a list of 1"),
    ("POST", PREDICT, {**ONE, "signature_name": 1}, 400, "'signature_name' to be a string"),
    ("POST", PREDICT, {**ONE, "signature_name": "nope"}, 400,
     {"error": 'Serving signature key "nope" not found.'}),
    ("POST", PREDICT, {"signature_name": "no\r\npe\x9b"}, 400, '"no pe\\u009b" not found'),
    ("POST", PREDICT, {"signature_name": "\ud800"}, 400, "not found"),
    ("POST", PREDICT, {"instances": ["a"] * 33}, 400, "at most 32 rows, received 33"),
    ("POST", PREDICT, {"inputs": [1]}, 400, 'Expected text[0] to be a string or {"b64": "..."}'),
]
ANY_ENGINE = ADDRESSES + BODIES

TYPED = "/v1/models/typed:predict"
HALF = "/v1/models/half_plus_two"


def column(signature, value):
    """Return a body in column form."""
    return {"signature_name": signature, "inputs": value}


def rows(signature, *values):
    """Return a body in row form."""
    return {"signature_name": signature, "instances": list(values)}


def text_of(signature, values):
    """Return a body in column form from literal values, which may be invalid JSON."""
    return f'{{"signature_name": "{signature}", "inputs": [{values}]}}'


VALUES = [
    ("POST", TYPED, rows("float32", 1.5, 2), 200, {"predictions": [1.5, 2.0]}),
    ("POST", TYPED, column("float32", [1.5, 2]), 200, {"outputs": [1.5, 2.0]}),
    ("POST", TYPED, column("float64", [1 / 3, 1e-7]), 200, "[0.3333333333333333, 1e-07]"),
    ("POST", TYPED, text_of("float32", "NaN, Infinity, -Infinity"), 200,
     "[NaN, Infinity, -Infinity]"),
    ("POST", TYPED, column("int64", [2**63 - 1, -(2**63)]), 200,
     {"outputs": [2**63 - 1, -(2**63)]}),
    ("POST", TYPED, column("uint64", [2**64 - 1]), 200, {"outputs": [2**64 - 1]}),
    ("POST", TYPED, column("uint32", [2**32 - 1]), 200, {"outputs": [2**32 - 1]}),
    ("POST", TYPED, column("int32", [-(2**31)]), 200, {"outputs": [-(2**31)]}),
    ("POST", TYPED, column("int8", [127, -128]), 200, {"outputs": [127, -128]}),
    ("POST", TYPED, column("uint8", [255]), 200, {"outputs": [255]}),
    ("POST", TYPED, column("int16", [-32768]), 200, {"outputs": [-32768]}),
    ("POST", TYPED, column("uint16", [65535]), 200, {"outputs": [65535]}),
    ("POST", TYPED, column("float16", [0.1]), 200, {"outputs": [0.1]}),
    ("POST", TYPED, column("bool", [True, False]), 200, {"outputs": [True, False]}),
    ("POST", TYPED, rows("string", "a", "\u00e9\n\"\\"), 200,
     {"predictions": ["a", "\u00e9\n\"\\"]}),
    ("POST", TYPED, rows("raw", "a", {"b64": "/+8="}), 200,
     {"predictions": [{"b64": "YQ=="}, {"b64": "/+8="}]}),
    ("POST", TYPED, rows("both", "a"), 200,
     {"predictions": [{"text": "a", "text_bytes": {"b64": "YQ=="}}]}),
    ("POST", TYPED, rows("matrix", [1, 2], [3, 4]), 200, {"predictions": [[1, 2], [3, 4]]}),
    ("POST", TYPED, column("matrix", [[], []]), 200, {"outputs": [[], []]}),
    ("POST", TYPED, column("scalar", 1.5), 200, {"outputs": 1.5}),
    ("POST", TYPED, column("total", [1, 2]), 200, {"outputs": 3.0}),
    ("POST", TYPED, rows("none", 1), 200, {"predictions": []}),
    ("POST", TYPED, column("uneven", [1]), 200, {"outputs": {"once": [1], "twice": [1, 1]}}),
    ("POST", TYPED, rows("two", {"x": 1, "z": 2}), 200,
     {"predictions": [{"product": 2, "sum": 3}]}),
    ("POST", TYPED, column("two", {"x": [1], "z": [2]}), 200,
     {"outputs": {"product": [2], "sum": [3]}}),
    ("POST", TYPED, column("pick", [0, 2]), 200, {"outputs": [10, 30]}),
    ("POST", f"{HALF}:predict", {"instances": [[1], [2]]}, 200, {"predictions": [[2.5], [3.0]]}),
    ("GET", f"{HALF}/metadata", None, 200, '"method_name": "tensorflow/serving/predict"'),
]

WRONG_VALUES = [
    ("POST", TYPED, {"inputs": [1]}, 400, 'Serving signature key "serving_default" not found'),
    ("POST", TYPED, column("bfloat16", [1]), 501, "bfloat16"),
    ("POST", TYPED, rows("total", 1), 400, "equal numbers of rows for a response in row form"),
    ("POST", TYPED, rows("uneven", 1), 400, "received once [1], twice [2]. Use the column form"),
    ("POST", TYPED, column("constant", {}), 400, "Expected a signature with inputs"),
    ("POST", TYPED, column("pick", [3]), 400, "indices[0] = 3 is not in [0, 3)"),
    ("POST", TYPED, column("two", {"x": [1, 2], "z": [1, 2, 3]}), 400, "Incompatible shapes"),
    ("POST", f"{HALF}:generate", {"text": "a"}, 501, "A SavedModel cannot stream"),
]

SAVED_MODEL = VALUES + WRONG_VALUES
# fmt: on


@contextlib.contextmanager
def serving(models, find_versions):
    """Serve models over REST, opened by the server's own opener."""
    store = ModelStore(opener(OPTIONS, Metrics()), OPTIONS, find_versions)
    try:
        store.configure(models)
        with served(store, OPTIONS) as server:
            yield server
    finally:
        store.stop()


def text_model(base_path, engine):
    return ServedModel(
        name="text",
        base_path=base_path,
        engine=engine,
        policy=VersionPolicy(latest=None),
        labels={"stable": 1},
    )


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """Serve the made-up SavedModels."""
    root = tmp_path_factory.mktemp("models")
    models = [text_model(root / "text", TENSORFLOW)]
    for name, write in (("half_plus_two", write_half_plus_two), ("typed", write_typed)):
        models.append(ServedModel(name=name, base_path=root / name, engine=TENSORFLOW))
        (root / name).mkdir()
        write(root / name / "1")
    (root / "text").mkdir()
    write_text(root / "text" / "1")
    shutil.copytree(root / "text" / "1", root / "text" / "2")

    def find_versions(served_model):
        return {int(path.name): path for path in served_model.base_path.iterdir()}

    with serving(models, find_versions) as server:
        yield server


@pytest.fixture(scope="module")
def artifact(mini_artifact, tmp_path_factory):
    """Serve the embedded preset's artifact twice, as two versions."""
    first, second = mini_artifact.directory, tmp_path_factory.mktemp("artifacts") / "second"
    made_up_artifacts.export_again(second, mini_artifact, 2)
    with serving([text_model(first, LITERT)], lambda _: {1: first, 2: second}) as server:
        yield server


SERVERS = {TENSORFLOW: "saved_models", LITERT: "artifact"}


def names(rows):
    """Return a short name for each row."""
    return [
        f"{number}-{method}-{path[-30:]}-{status}"
        for number, (method, path, _, status, _) in enumerate(rows)
    ]


def check(server, method, path, body, status, expected):
    answer = server.ask(method, path, body)
    assert answer.status == status, answer.text
    if path.startswith("/v1/"):
        assert answer.headers["Content-Type"] == "application/json"
    if isinstance(expected, dict):
        assert answer.json == expected
    elif status != 200 and path.startswith("/v1/"):
        assert list(answer.json) == ["error"]
        assert expected in answer.json["error"]
    else:
        assert expected in answer.text


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", ANY_ENGINE, ids=names(ANY_ENGINE))
def test_text(request, engine, row):
    check(request.getfixturevalue(SERVERS[engine]), *row)


@pytest.mark.parametrize("row", SAVED_MODEL, ids=names(SAVED_MODEL))
def test_saved_models(saved_models, row):
    check(saved_models, *row)
