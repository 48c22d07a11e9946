"""Vocabulary and merges, from each of the files they are kept in."""

import json

import pytest
from edited_checkpoints import SYMMETRIC, copy, edit_json
from tokenizers.implementations import ByteLevelBPETokenizer

from bart_export import checkpoints
from bart_export.errors import TokenizerError


@pytest.fixture
def directory(tmp_path):
    """A checkpoint that keeps its tokenizer as the `tokenizers` library writes it."""
    place = copy(tmp_path / "bart")
    vocabulary, merges = place / "vocab.json", place / "merges.txt"
    tokenizer = ByteLevelBPETokenizer(str(vocabulary), str(merges))
    tokenizer.save(str(place / "tokenizer.json"))
    vocabulary.unlink()
    merges.unlink()
    return place


def read(directory):
    return checkpoints.read(directory, weights=False)


def test_tokenizer_json_says_the_same_as_the_two_files(directory):
    expected, whole = read(SYMMETRIC), read(directory)
    assert len(expected.merges) == 763
    assert (whole.vocabulary, whole.merges) == (expected.vocabulary, expected.merges)


def test_merges_may_be_strings(directory):
    path = directory / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    pairs = stored["model"]["merges"]
    assert isinstance(pairs[0], list)
    stored["model"]["merges"] = [" ".join(pair) for pair in pairs]
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert read(directory).merges == read(SYMMETRIC).merges


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("model", {"type": "Unigram"}, "type='Unigram'"),
        ("model", {"byte_fallback": True}, "byte_fallback=True"),
        ("model", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ("model", {"merges": ["a b c"]}, "'a b c'"),
        ("model", {"merges": 3}, "a list of merges"),
        ("model", {"vocab": {"a": 0}}, "special tokens"),
        ("pre_tokenizer", {"add_prefix_space": True}, "add_prefix_space=false"),
        ("pre_tokenizer", {"type": "Whitespace"}, "ByteLevel"),
        (None, {"normalizer": {"type": "Lowercase"}}, "must not normalize"),
        (None, {"added_tokens": [{"id": 1024, "content": "<sep>"}]}, "'<sep>'"),
        (None, {"model": 3}, "must hold a model"),
    ],
)
def test_a_tokenizer_that_does_more_is_refused(directory, part, changes, said):
    path = directory / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    (stored if part is None else stored[part]).update(changes)
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(TokenizerError) as refused:
        read(directory)
    assert said in str(refused.value)


def test_added_tokens_must_be_in_the_vocabulary(tmp_path):
    directory = copy(tmp_path / "bart")
    added = directory / "added_tokens.json"
    number = read(SYMMETRIC).vocabulary["<mask>"]
    added.write_text(json.dumps({"<mask>": number}))
    assert read(directory).vocabulary["<mask>"] == number
    edit_json(added, **{"<sep>": 1024})
    with pytest.raises(TokenizerError, match="adds the token '<sep>'"):
        read(directory)


def test_missing_files_are_told_and_can_be_done_without(tmp_path):
    directory = copy(tmp_path / "bart")
    (directory / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"neither vocab\.json with merges\.txt nor tokenizer"):
        read(directory)
    alone = checkpoints.read(directory, weights=False, tokenizer=False)
    assert (dict(alone.vocabulary), alone.merges) == ({}, ())
