"""The REST service as a table of requests and responses, by TensorFlow Serving's rules.

A row is (method, path, body, status, expected). A body that is not text is sent as JSON. Expected
is a part of the text if it is text, the whole JSON if it is an object, and b"" for no body.

`ANY_ENGINE` asks the model `text`, versions 1 and 2, of which 1 is labelled `stable`; its only
input is `text`, its only output `generated_text`. The other tables ask models that only TensorFlow
can have: those of `typed_saved_model` and `half_plus_two`.
"""

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
# fmt: on
