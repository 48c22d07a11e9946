"""Request bodies, whole and damaged."""

import copy

# A valid request for each method and kind of model.
WHOLE = [
    ("/v1/models/half_plus_two:predict", {"instances": [[1.0], [2.0]]}),
    ("/v1/models/typed:predict", {"signature_name": "two", "inputs": {"x": [1.0], "z": [2.5]}}),
    ("/v1/models/typed:predict",
     {"signature_name": "string", "instances": ["a", {"b64": "YQ=="}]}),
    ("/v1/models/typed/versions/1:predict",
     {"signature_name": "matrix", "inputs": [[1, 2], [3, 4]]}),
    ("/v1/models/text:predict", {"instances": ["A library."]}),
    ("/v1/models/text/labels/stable:predict",
     {"signature_name": "generate_text",
      "instances": [{"text": "A library.", "max_length": 5, "min_length": 0, "length_penalty": 1.0,
                     "repetition_penalty": 1.0, "early_stopping": "never"}]}),
    ("/v1/models/text:predict",
     {"signature_name": "tokenize", "inputs": {"text": ["A library.", ""]}}),
    ("/v1/models/text:predict",
     {"signature_name": "detokenize",
      "inputs": {"decoder_token_ids": [[2, 5, 6]], "decoder_lengths": [3]}}),
    ("/v1/models/text:generate", {"text": "A library.", "max_length": 4, "num_beams": 2}),
]  # fmt: skip

ODD_VALUES = [
    None, True, False, 0, -1, 1.5, 2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 2**64, 10**400, 1e308,
    float("nan"), float("inf"), "", "a", "\x00", "\u00e9\U0001f40d", "x" * 5000, [], {}, [[]], [{}],
    [[], [1]], [1, [2]], [1, "a"], {"b64": "YQ=="}, {"b64": "?"}, {"b64": 1}, {"b64": "", "x": 1},
    {"": ""}, [None] * 100, list(range(2000)),
]  # fmt: skip
KEYS = ["", "x", "text", "b64", "inputs", "instances", "signature_name", "parameters",
        "max_length", "num_beams", "early_stopping", "max_new_tokens"]  # fmt: skip


def places(document, path=()):
    """Return the path to every part of a JSON document."""
    found = [path]
    if isinstance(document, dict):
        children = list(document.items())
    else:
        children = list(enumerate(document)) if isinstance(document, list) else []
    for key, value in children:
        found += places(value, (*path, key))
    return found


def odd_document(generator, document):
    """Return a document with one or two of its parts replaced, removed or doubled."""
    document = copy.deepcopy(document)
    for _ in range(generator.randint(1, 2)):
        path = generator.choice(places(document))
        if not path:
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        change = generator.randrange(4)
        if change == 0:
            del parent[path[-1]]
        elif change == 1 and isinstance(parent, dict):
            parent[generator.choice(KEYS)] = parent.pop(path[-1])
        elif change == 1:
            parent.append(parent[path[-1]])
        else:
            parent[path[-1]] = copy.deepcopy(generator.choice(ODD_VALUES))
    return document


TOKENS = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u0000", b"\\ud800", b"NaN", b"-",
          b"1e999", b"1e-999", b"0" * 50, b"null", b"\xff", b"\xef\xbb\xbf", b"\x00", b"\n",
          b'{"b64":"YQ"}', b"\xc3\xa9"]  # fmt: skip


def damaged(generator, data):
    """Return bytes with a few of them changed, removed, doubled, inserted or swapped."""
    data = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        place, other = sorted(generator.randrange(len(data) + 1) for _ in range(2))
        change = generator.randrange(5)
        if change == 0 and place < len(data):
            data[place] = generator.randrange(256)
        elif change == 1:
            del data[place : place + generator.randrange(8)]
        elif change == 2:
            data[place:place] = data[place:other]
        elif change == 3:
            data[place:place] = generator.choice(TOKENS)
        elif place < other < len(data):
            data[place], data[other] = data[other], data[place]
    return bytes(data)
