"""Files of texts are read line by line, and a line that is no example is named."""

import hashlib
import os

import pytest

from bart_export.errors import InputError
from bart_export.verify import data
from bart_export.verify.data import Example


def test_examples_come_in_order_with_their_references(tmp_path):
    path = tmp_path / "data.jsonl"
    # A line separator that is no line feed belongs to the text.
    path.write_text('{"text": "a\u2028b", "reference": "c"}\n\n{"text": "d", "id": 3}\n', "utf-8")
    assert data.read(path) == [Example("a\u2028b", "c"), Example("d", None)]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert data.read(path) == [Example("a\u2028b", "c"), Example("d", None)]
    assert data.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must have a text"),
        (b'{"text": "a"}\n{"text": \n', "line 2, must be an object .* but is no JSON"),
        (b'{"text":' * 100_000, "but is no JSON: it is nested too deeply"),
        (b'{"text": "a", "n": %s}' % (b"9" * 5000), "but is no JSON: 9{20}… is beyond 64 bits"),
        (b'{"text": "a", "text": "b"}', "line 1, .* 'text' more than once"),
        (b'["a"]', r'line 1, .* received \["a"\]'),
        (b'{"source": "a"}', "received null"),
        (b'{"text": " "}', 'received " "'),
        (b'{"text": "a", "reference": 3}', "received the reference 3"),
        (b'{"text": "\xff"}', "must be UTF-8"),
    ],
)
def test_what_is_no_example_is_named_by_file_and_line(tmp_path, content, words):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}.*{words}") as error:
        data.read(path)
    assert "\n" not in str(error.value)


def test_a_file_has_a_bound(tmp_path):
    path = tmp_path / "data.jsonl"
    line = b'{"text": "a"}\n'
    path.write_bytes(line * data.MOST_LINES)
    assert len(data.read(path)) == data.MOST_LINES
    path.write_bytes(line * (data.MOST_LINES + 1))
    with pytest.raises(InputError, match="at most 100,000 lines"):
        data.read(path)
    with path.open("wb") as file:
        file.truncate(data.LARGEST + 1)
    with pytest.raises(InputError, match="it has more than 67,108,864 bytes"):
        data.read(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is no regular file"):
        data.read(tmp_path / "pipe")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        data.read(tmp_path / "missing")
