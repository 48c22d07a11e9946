"""Bodies that RapidJSON, as TensorFlow Serving sets it up, takes or refuses."""

import math
import time

import pytest

from bart_export.server import json_document
from bart_export.server.status import Code, StatusError

NAN, INFINITY = float("nan"), float("inf")
ACCEPTED = [
    (b'{"a": [1, -2.5, true, null, "x"]}', {"a": [1, -2.5, True, None, "x"]}),
    (b"\xef\xbb\xbf {}", {}),
    (b" \t\r\n[] ", []),
    (b"[NaN, -NaN, Inf, -Inf, Infinity, -Infinity]",
     [NAN, NAN, INFINITY, -INFINITY, INFINITY, -INFINITY]),
    (b'["Inf", "a\\"Inf", Inf]', ["Inf", 'a"Inf', INFINITY]),
    (b'{"a": 1} trailing "garbage', {"a": 1}),
    (b"[1]]", [1]),
    (b'{"a": 1, "b": 2, "a": 3}', {"a": 1, "b": 2}),
    (b'["\\ud83d\\ude00", "\\u00e9", "\xc3\xa9"]', ["\U0001f600", "é", "é"]),
    (b'["\\\\ud800", "\\\\\\\\udc00"]', ["\\ud800", "\\\\udc00"]),
    (b'["\\u0000\x7f"]', ["\0\x7f"]),
    (b"[1e-400, -0, 1E+2, 1e308]", [0.0, 0, 100.0, 1e308]),
    (b"[18446744073709551615, 1" + b"0" * 300 + b"]", [2**64 - 1, 10**300]),
    (b"[" * 300 + b"]" * 300, None),
]  # fmt: skip


def same(value, expected):
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, float) and math.isnan(expected):
        return math.isnan(value)
    return value == expected and type(value) is type(expected)


@pytest.mark.parametrize(("body", "expected"), ACCEPTED)
def test_what_is_accepted(body, expected):
    value = json_document.parse(body)
    assert expected is None or same(value, expected)


def test_the_first_of_equal_keys_keeps_its_place():
    assert list(json_document.parse(b'{"b": 1, "a": 2, "b": 3, "a": 4}').items()) == [
        ("b", 1),
        ("a", 2),
    ]


REFUSED = [
    (b"", "The document is empty"),
    (b" \n ", "The document is empty. at offset: 3"),
    (b"\xef\xbb\xbf", "The document is empty. at offset: 0"),
    (b"trailing", "Invalid value. at offset: 0"),
    (b"[1, nan]", "Invalid value. at offset: 4"),
    (b"[Infi]", "Invalid value. at offset: 1"),
    (b"[1,]", "Invalid value. at offset: 3"),
    (b"[+1]", "Invalid value. at offset: 1"),
    (b"[\xff]", "Invalid value. at offset: 1"),
    (b"[01]", "Missing a comma or a closing bracket after a value. at offset: 2"),
    (b"[1.]", "Missing a comma or a closing bracket after a value. at offset: 2"),
    (b'{"a": 1 "b"}', "Missing a comma or a closing bracket after a value. at offset: 8"),
    (b'{"a": 1', "Missing a comma or a closing bracket after a value. at offset: 7"),
    (b"{a: 1}", "Missing a name for object member. at offset: 1"),
    (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
    (b'{"\xc3\xa9": x}', "Invalid value. at offset: 7"),
    (b'["a', "Missing a closing quotation mark in string. at offset: 1"),
    (b'["a\nb"]', "Invalid encoding in string. at offset: 3"),
    (b'["\\q"]', "Invalid escape character in string. at offset: 2"),
    (b'["\\u12"]', "Incorrect hex digit after \\u escape in string. at offset: 3"),
    (b'["\\ud800"]', "The surrogate pair in string is invalid. at offset: 2"),
    (b'["\\udc00"]', "The surrogate pair in string is invalid. at offset: 2"),
    (b'["\\ud83d\\ude00\\ud83d"]', "The surrogate pair in string is invalid. at offset: 14"),
    (b'["\\uD83D\\\\ude00"]', "The surrogate pair in string is invalid. at offset: 2"),
    (b'{"\\udc80": 1}', "The surrogate pair in string is invalid. at offset: 2"),
    (b"[1e400]", "Number too big to be stored in double."),
    (b"[-1" + b"0" * 400 + b".5]", "Number too big to be stored in double."),
    (b"[1" + b"0" * 5000 + b"]", "Number too big to be stored in double."),
    (b"[" * 500_000, "The document is nested too deeply."),
    (b'{"a":' * 500_000, "The document is nested too deeply."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "reason"), REFUSED, ids=[f"{body[:12]!r}: {reason[:20]}" for body, reason in REFUSED]
)
def test_what_is_refused(body, reason):
    with pytest.raises(StatusError) as raised:
        json_document.parse(body)
    expected = (Code.INVALID_ARGUMENT, f"JSON Parse error: {reason}")
    assert (raised.value.code, raised.value.message) == expected


def test_bytes_that_are_not_utf_8_pass_through_strings():
    every_byte = bytes(range(0x80, 0x100))
    for raw in (every_byte, b"\xed\xa0\x80", b"\xf0\x9f\x98", "é".encode("latin-1")):
        (text,) = json_document.parse(b'["' + raw + b'"]')
        assert json_document.as_bytes(text) == raw


def test_integers_are_doubles_where_a_double_is_wanted():
    assert json_document.double(2**64) == 2.0**64
    with pytest.raises(StatusError, match="Number too big"):
        json_document.double(10**309)


def test_a_value_is_shown_up_to_256_bytes():
    assert json_document.shown({"a": [1, "é", None]}) == (
        '{\n    "a": [\n        1,\n        "é",\n        null\n    ]\n}'
    )
    assert json_document.shown("x" * 300) == '"' + "x" * 255
    assert json_document.shown("é" * 300).encode() == b'"' + "é".encode() * 127 + "\ufffd".encode()
    begun = time.process_time()
    assert len(json_document.shown({"instances": [0] * 1_000_000})) == 256
    assert time.process_time() - begun < 0.2


def test_a_value_is_shown_as_text_that_can_be_sent():
    (text,) = json_document.parse(b'["\xff"]')
    assert json_document.shown(text).encode() == '"\ufffd"'.encode()


BASE64 = [
    ("YQ==", b"a"),
    ("YQ", b"a"),
    ("YWI=", b"ab"),
    ("YWI", b"ab"),
    ("YWJj", b"abc"),
    ("", b""),
    ("Y W\nI=", b"ab"),
    ("/+8=", b"\xff\xef"),
    ("_-8=", None),
    ("YQ_-__==", None),
    ("YQ=", None),
    ("YQ===", None),
    ("YWJj=", None),
    ("Y", None),
    ("Y===", None),
    ("YQ=a", None),
    ("Y\u00e9==", None),
]


@pytest.mark.parametrize(("text", "expected"), BASE64)
def test_base64_is_of_the_standard_alphabet_padded_or_not(text, expected):
    if expected is not None:
        assert json_document.base64_bytes({"b64": text}) == expected
        return
    with pytest.raises(StatusError, match="^Unable to base64 decode$") as raised:
        json_document.base64_bytes({"b64": text})
    assert raised.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("value", [{"b64": 1}, {"b64": "YQ", "a": 1}, {"a": "YQ"}, {}, "YQ"])
def test_only_an_object_of_b64_stands_for_bytes(value):
    assert not json_document.is_base64(value)
    with pytest.raises(StatusError, match="not formatted correctly for base64 data$"):
        json_document.base64_bytes(value)


def test_types_have_the_names_of_rapidjson():
    values = json_document.parse(b'[null, false, true, "", 1, 1.5, [], {}]')
    assert [json_document.type_name(value) for value in values] == [
        "Null", "False", "True", "String", "Number", "Number", "Array", "Object",
    ]  # fmt: skip
