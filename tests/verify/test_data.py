"""Files of texts are read line by line, and ROUGE is that of its definition."""

import hashlib
import os

import numpy as np
import pytest

from bart_export.artifact.figures import TextFile
from bart_export.errors import InputError
from bart_export.verify import data
from bart_export.verify.data import Example


def test_examples_come_in_order_with_their_references(tmp_path):
    path = tmp_path / "data.jsonl"
    # A line separator that is no line feed belongs to the text.
    path.write_text('{"text": "a\u2028b", "reference": "c"}\n\n{"text": "d", "id": 3}\n', "utf-8")
    for content in (path.read_bytes(), b"\xef\xbb\xbf" + path.read_bytes()):
        path.write_bytes(content)
        texts = data.read(path)
        assert texts.examples == [Example("a\u2028b", "c"), Example("d", None)]
        assert texts.file == TextFile(hashlib.sha256(content).hexdigest(), 2)


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
        (b'{"text": "a"}\n' * (data.MOST_LINES + 1), "at most 100,000 lines"),
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
    path.write_bytes(b'{"text": "a"}\n' * data.MOST_LINES)
    assert len(data.read(path).examples) == data.MOST_LINES
    with path.open("wb") as file:
        file.truncate(data.LARGEST + 1)
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("data.jsonl", "it has more than 67,108,864 bytes"),
        ("pipe", "it is no regular file"),
        ("missing", "No such file"),
    ):
        with pytest.raises(InputError, match=words):
            data.read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        # After Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, section 3.1. The
        # stem of "killed" is "kill", and of the second text's bigrams one is the reference's.
        ("police kill the gunman", (100, 100, 100)),
        ("the gunman kill police", (100, 100 / 3, 50)),
        # 1 of 4 words is found, and 1 of 1 was right: F = 2 * 0.25 * 1 / 1.25.
        ("gunman", (40, 0, 40)),
    ],
)
def test_rouge_is_that_of_its_definition(text, scores):
    found = data.rouge_scores(["police killed the gunman"], [text])
    assert tuple(score.item() for score in found.values()) == pytest.approx(scores)


def test_losses_are_differences_of_means():
    references = ["a b c d", "a b c d"]
    loss = data.rouge_losses(references, references, ["a b c d", "a b"])["rouge_1"]
    f = 100 * 2 * 0.5 / 1.5
    assert loss.model == 100
    assert loss.file == pytest.approx((100 + f) / 2)
    assert loss.loss == pytest.approx((100 - f) / 2)
    assert (loss.low, loss.high) == pytest.approx((0, 100 - f))


HALF = 1.96 * 0.5 / np.sqrt(400)


@pytest.mark.parametrize(
    ("differences", "expected", "within"),
    [
        ([2.0, 2.0, 2.0], (2, 2), 0),  # whatever is drawn, the mean is the same
        ([0.0, 1.0], (0, 1), 0),  # means of two draws: 0, 1/2, 1 with 1/4, 1/2, 1/4
        # Of five draws all are 1 with (4/5)^5 = 0.33, at most one is with 5 * 4/5^5 + 1/5^5 = 0.7 %
        # and at most two are with 6 %: the middle 95 % end at 2/5.
        ([0.0, 1.0, 1.0, 1.0, 1.0], (0.4, 1), 1e-12),
        ([0.0, 1.0] * 200, (0.5 - HALF, 0.5 + HALF), 0.003),  # the normal interval
    ],
)
def test_the_interval_is_that_of_draws_with_replacement(differences, expected, within):
    found = data.bootstrap_interval(np.array(differences))
    assert found == pytest.approx(expected, abs=within)
    assert data.bootstrap_interval(np.array(differences)) == found  # the draws are seeded
