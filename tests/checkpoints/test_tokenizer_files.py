"""Vocabulary, merges and added tokens from all tokenizer files."""

import json
import re
import shutil

import keras_hub
import numpy as np
import pytest
from support.edited_checkpoints import copy, refusal
from support.paths import CASES, SYMMETRIC
from tokenizers.implementations import ByteLevelBPETokenizer

from bart_export.checkpoints import resolve
from bart_export.errors import TokenizerError
from bart_export.text.added_tokens import AddedToken
from bart_export.verify import tokenization
from bart_export.verify.golden import TEXTS

# Keras' saving causes this warning under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def directory(tmp_path):
    """A checkpoint with a tokenizer.json of the `tokenizers` library."""
    place = copy(tmp_path / "bart")
    vocabulary, merges = place / "vocab.json", place / "merges.txt"
    tokenizer = ByteLevelBPETokenizer(str(vocabulary), str(merges))
    tokenizer.save(str(place / "tokenizer.json"))
    vocabulary.unlink()
    merges.unlink()
    return place


def read(directory):
    return resolve.read(directory, weights=False)


def edit(directory, part, **changes):
    """Change a part of tokenizer.json, or its top level if `part` is None."""
    path = directory / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    (stored if part is None else stored[part]).update(changes)
    path.write_text(json.dumps(stored), encoding="utf-8")


def test_tokenizer_json_equals_vocab_json_and_merges_txt(directory):
    expected, whole = read(SYMMETRIC), read(directory)
    assert len(expected.merges) == 763
    assert (whole.vocabulary, whole.merges) == (expected.vocabulary, expected.merges)
    edit(directory, "model", merges=[" ".join(pair) for pair in expected.merges])  # older files
    assert read(directory).merges == expected.merges


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("model", {"type": "Unigram"}, 'type="Unigram"'),
        ("model", {"byte_fallback": True}, "byte_fallback=true"),
        ("model", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ("model", {"merges": ["a b c"]}, '"a b c"'),
        ("model", {"merges": 3}, "a list of merges"),
        ("model", {"merges": [["Ġ", "q~"]]}, "tokenizer.json must merge tokens of the vocabulary"),
        ("model", {"vocab": {"a": 0}}, "special tokens"),
        ("model", {"dropout": 0.1}, "dropout=0.1"),
        ("pre_tokenizer", {"add_prefix_space": 1}, "must be true or false"),
        ("pre_tokenizer", {"type": "Whitespace"}, "ByteLevel"),
        ("pre_tokenizer", {"use_regex": False}, "regular expression"),
        (None, {"pre_tokenizer": None}, "received null"),
        (None, {"normalizer": {"type": "Lowercase"}}, "must not normalize"),
        (
            None,
            {"post_processor": {"type": "BertProcessing", "cls": ["<x>", 0], "sep": ["</s>", 2]}},
            "around a text",
        ),
        (None, {"post_processor": {"type": "TemplateProcessing", "single": []}}, "around a text"),
        (None, {"truncation": {"direction": "Left", "max_length": 9}}, "received left"),
        (None, {"added_tokens": [{"id": 1030, "content": "<sep>"}]}, "ids from 0 to 1030"),
        (None, {"added_tokens": [{"id": 3, "content": "Ġthe"}]}, '"Ġthe" in'),
        (None, {"added_tokens": [{"id": 1024, "content": "<sep>"}]}, "vocabulary_size=1024"),
        (None, {"added_tokens": [{"content": "<sep>"}]}, '"<sep>" in'),
        (None, {"added_tokens": [{"id": 4, "content": "<mask>", "fuzzy": True}]}, "'fuzzy'"),
        (None, {"added_tokens": {"<mask>": 4}}, "must be a list"),
        (None, {"model": 3}, "must have a model"),
    ],
)
def test_tokenizers_with_other_features_are_rejected(directory, part, changes, said):
    edit(directory, part, **changes)
    assert said in refusal(directory, TokenizerError, weights=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer_class": "MBartTokenizer"}, '"MBartTokenizer"'),
        ({"mask_token": "[MASK]"}, "mask_token"),
        ({"cls_token": {"content": "<cls>", "lstrip": False}}, "cls_token"),
        ({"truncation_side": "left"}, "truncation_side"),
        ({"add_prefix_space": "yes"}, "add_prefix_space"),
        ({"additional_special_tokens": ["<hl>"]}, '"<hl>" in'),
        ({"additional_special_tokens": "<hl>"}, "must be a list"),
        ({"added_tokens_decoder": {"7": {"content": "<s>"}}}, '"<s>" in'),
        ({"added_tokens_decoder": {"seven": {"content": "<hl>"}}}, 'received "seven"'),
        ({"added_tokens_decoder": {"7": "<hl>", "8": {"text": "<hl>"}}}, "Added tokens"),
        ({"added_tokens_decoder": []}, "must be an object"),
        ({"split_special_tokens": True, "extra_special_tokens": ["Ġthe"]}, "must be false"),
    ],
)
def test_settings_that_would_change_ids_are_rejected(tmp_path, changes, said):
    directory = copy(tmp_path / "bart")
    (directory / "tokenizer_config.json").write_text(json.dumps(changes))
    line = refusal(directory, TokenizerError, weights=False)
    assert said in line and str(directory) in line


def test_merges_of_unknown_tokens_are_rejected(tmp_path):
    directory = copy(tmp_path / "bart")
    (directory / "merges.txt").write_text("t h\nq \x9b2J\n", encoding="utf-8")
    line = refusal(directory, TokenizerError)
    assert re.search(r"merges\.txt must merge tokens.*u009b2J", line) and line.isprintable()


def replaced(directory, **settings):
    """Remove a checkpoint's last token and its merges; return the free id."""
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    last = max(vocabulary, key=vocabulary.__getitem__)
    merges = (directory / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    (directory / "merges.txt").write_text(
        "\n".join(line for line in merges if last not in line.replace(" ", "")) + "\n",
        encoding="utf-8",
    )
    number = vocabulary.pop(last)
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    for name, stored in settings.items():
        (directory / f"{name}.json").write_text(json.dumps(stored(number)), encoding="utf-8")
    return number


HL = {"content": "<hl>", "lstrip": True, "special": True}
MARKED = AddedToken("<hl>", lstrip=True, special=True)


def by_name(number):
    return {"<hl>": number}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"added_tokens": by_name}, AddedToken("<hl>", normalized=True)),
        (
            {
                "added_tokens": by_name,
                "special_tokens_map": lambda number: {"additional_special_tokens": ["<hl>"]},
            },
            AddedToken("<hl>", special=True),
        ),
        (
            {
                "added_tokens": by_name,
                "special_tokens_map": lambda number: {
                    "additional_special_tokens": [{**HL, "__type": "AddedToken"}]
                },
            },
            MARKED,
        ),
        (
            {
                "tokenizer_config": lambda number: {"added_tokens_decoder": {str(number): HL}},
                # Not read if there is an added_tokens_decoder.
                "added_tokens": lambda number: {"<other>": number},
            },
            MARKED,
        ),
    ],
    ids=["added", "special and added", "map", "config"],
)
def test_added_tokens_are_found_in_all_files_of_transformers(tmp_path, files, expected):
    directory = copy(tmp_path / "bart")
    number = replaced(directory, **files)
    found = read(directory)
    assert found.vocabulary["<hl>"] == number
    assert found.added_tokens == (expected,)
    assert number in found.tokenizer().tokenize("a <hl> b")
    tokenization.check_tokenizer(found, found.tokenizer(), TEXTS)


def test_tokenizer_json_overrides_older_files(directory):
    expected = read(directory)
    shutil.copyfile(SYMMETRIC / "vocab.json", directory / "vocab.json")
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "special_tokens_map.json").write_text(json.dumps({"mask_token": "<mask>"}))
    found = read(directory)
    assert (found.vocabulary, found.merges) == (expected.vocabulary, expected.merges)
    tokenization.check_tokenizer(found, found.tokenizer(), TEXTS)


@pytest.mark.parametrize("whole", [None, False, True])
@pytest.mark.parametrize("stated", [None, False, True])
def test_add_prefix_space_of_the_configuration_takes_precedence(directory, whole, stated):
    edit(directory, "pre_tokenizer", add_prefix_space=bool(whole))
    if stated is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": stated}))
    found = read(directory)
    assert found.add_prefix_space is bool(whole if stated is None else stated)
    tokenization.check_tokenizer(found, found.tokenizer(), TEXTS)


@pytest.mark.parametrize("name", ["added-token-in-vocabulary", "added-tokens-json"])
def test_an_added_token_has_one_id(name):
    tokenizer = resolve.read(CASES / name).tokenizer()
    a, blank, b = (tokenizer.token_to_id(token) for token in "aĠb")
    assert tokenizer.tokenize("a <hl> b") == [a, blank, 267, blank, b]
    assert tokenizer.tokenize("<hl>") == [267]


@pytest.fixture(scope="module")
def keras_presets(tmp_path_factory):
    """Return `preset(name, vocabulary, settings)`, which saves one with KerasHub."""
    place = tmp_path_factory.mktemp("keras")
    golden = read(SYMMETRIC)
    merges = [" ".join(pair) for pair in golden.merges]

    def preset(name, added, **settings):
        vocabulary = {**golden.vocabulary, **{token: 1024 + i for i, token in enumerate(added)}}
        tokenizer = keras_hub.models.BartTokenizer(vocabulary, merges, **settings)
        backbone = keras_hub.models.BartBackbone(len(vocabulary), 1, 2, 16, 24, 0.1, 32)
        keras_hub.models.BartSeq2SeqLM(
            backbone, keras_hub.models.BartSeq2SeqLMPreprocessor(tokenizer)
        ).save_to_preset(str(place / name))
        return tokenizer, place / name

    return preset


@pytest.mark.parametrize(
    ("added", "settings"),
    [
        ([], {"add_prefix_space": True}),
        (["<hl>"], {"unsplittable_tokens": ["<hl>"]}),
        (["<hl>", "[a b]"], {"unsplittable_tokens": ["[a b]", "</s>", "<hl>"]}),
    ],
    ids=["prefix", "one", "several"],
)
def test_keras_presets_give_the_ids_of_kerashub(keras_presets, added, settings):
    theirs, directory = keras_presets("_".join(settings) + str(len(added)), added, **settings)
    found = read(directory)
    ours = found.tokenizer()
    texts = ["a <hl> the call", "the[a b]call", "two words, and more", *TEXTS[:2]]
    assert [ours.tokenize(text) for text in texts] == [
        np.array(theirs(text)).tolist() for text in texts
    ]
    tokenization.check_tokenizer(found, ours, TEXTS)


def test_keras_tokenizers_with_padding_are_rejected(keras_presets):
    _, directory = keras_presets("padded", [], sequence_length=12)
    assert "must be null, because padding is not supported, received 12" in refusal(
        directory, TokenizerError
    )


def test_missing_tokenizers_are_reported_unless_not_needed(tmp_path):
    directory = copy(tmp_path / "bart")
    (directory / "merges.txt").unlink()
    said = "neither tokenizer.json nor vocab.json with merges"
    assert said in refusal(directory, TokenizerError)
    alone = resolve.read(directory, weights=False, tokenizer=False)
    assert (dict(alone.vocabulary), alone.merges) == ({}, ())
