"""The table of `rest_rows`, for models of all types and shapes: `typed` and `half_plus_two`."""

# fmt: off
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
