"""Inputs that are expensive to parse, of any size."""

import gzip

from bart_export.server.messages import DataType, PredictRequest

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
