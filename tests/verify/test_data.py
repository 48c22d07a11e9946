"""Files of texts, ROUGE scores and bootstrap intervals."""

import hashlib
import os

import numpy as np
import pytest

from bart_export.artifact.figures import TextFile
from bart_export.errors import InputError
from bart_export.verify import data
from bart_export.verify.data import Example


def test_examples_are_read_in_order_with_their_references(tmp_path):
    path = tmp_path / "data.jsonl"
    # Only a line feed ends a line.
    path.write_text('{"text": "a\u2028b", "reference": "c"}\n\n{"text": "d", "id": 3}\n', "utf-8")
    for content in (path.read_bytes(), b"\xef\xbb\xbf" + path.read_bytes()):
        path.write_bytes(content)
        texts = data.read_texts(path)
        assert texts.examples == [Example("a\u2028b", "c"), Example("d", None)]
        assert texts.file == TextFile(hashlib.sha256(content).hexdigest(), 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must have at least one text"),
        (b'{"text": "a"}\n{"text": \n', "line 2 must be an object .* but is not JSON"),
        (b'{"text":' * 100_000, "but is not JSON: it is nested too deeply"),
        (b'{"text": "a", "n": %s}' % (b"9" * 5000), "but is not JSON: 9{20}… is beyond 64 bits"),
        (b'{"text": "a", "text": "b"}', "line 1 .* 'text' more than once"),
        (b'["a"]', r'line 1 .* received \["a"\]'),
        (b'{"source": "a"}', "received the text null"),
        (b'{"text": " "}', 'received the text " "'),
        (b'{"text": "a", "reference": 3}', "received the reference 3"),
        (b'{"text": "\xff"}', "must be UTF-8"),
        (b'{"text": "a"}\n' * (data.MOST_LINES + 1), "at most 100,000 lines"),
    ],
)
def test_an_invalid_line_is_named_by_file_and_number(tmp_path, content, words):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}.*{words}"):
        data.read_texts(path)


def test_the_size_of_a_file_is_bounded(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * data.MOST_LINES)
    assert len(data.read_texts(path).examples) == data.MOST_LINES
    with path.open("wb") as file:
        file.truncate(data.LARGEST + 1)
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("data.jsonl", "it has more than 67,108,864 bytes"),
        ("pipe", "it is not a regular file"),
        ("missing", "No such file"),
    ):
        with pytest.raises(InputError, match=words):
            data.read_texts(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        # After Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004, section 3.1. The
        # stem of "killed" is "kill"; the second text shares one bigram with the reference.
        ("police kill the gunman", (100, 100, 100)),
        ("the gunman kill police", (100, 100 / 3, 50)),
        # Recall 1/4, precision 1: F = 2 * 0.25 * 1 / 1.25.
        ("gunman", (40, 0, 40)),
    ],
)
def test_rouge_follows_its_definition(text, scores):
    found = data.rouge_scores(["police killed the gunman"], [text])
    assert tuple(score.item() for score in found.values()) == pytest.approx(scores)


def test_losses_are_differences_of_means():
    references = ["a b c d", "a b c d"]
    loss = data.rouge_losses(references, references, ["a b c d", "a b"])["rouge_1"]
    f = 100 * 2 * 0.5 / 1.5
    figures = (loss.model, loss.file, loss.loss, loss.low, loss.high)
    assert figures == pytest.approx((100, (100 + f) / 2, (100 - f) / 2, 0, 100 - f))


HALF = 1.96 * 0.5 / np.sqrt(400)


@pytest.mark.parametrize(
    ("differences", "expected", "within"),
    [
        ([2.0, 2.0, 2.0], (2, 2), 0),  # every draw has the same mean
        # Of five draws all are 1 with (4/5)^5 = 0.33, at most one is with 5 * 4/5^5 + 1/5^5 = 0.7 %
        # and at most two are with 6 %: the middle 95 % end at 2/5.
        ([0.0, 1.0, 1.0, 1.0, 1.0], (0.4, 1), 1e-12),
        ([0.0, 1.0] * 200, (0.5 - HALF, 0.5 + HALF), 0.003),  # the normal interval
    ],
)
def test_the_bootstrap_interval_draws_with_replacement(differences, expected, within):
    found = data.bootstrap_interval(np.array(differences))
    assert found == pytest.approx(expected, abs=within)
    assert data.bootstrap_interval(np.array(differences)) == found  # the draws are seeded
