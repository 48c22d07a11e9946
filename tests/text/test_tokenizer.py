import json
import re

import numpy as np
import pytest
from support.paths import DATA

from bart_export.errors import ConfigurationError, InputError, TokenizerError
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS, read_merges, read_vocabulary

VOCABULARY_FILE = DATA / "vocabulary/vocabulary.json"
MERGES_FILE = DATA / "vocabulary/merges.txt"
GOLDEN = json.loads((DATA / "golden/tokenization.json").read_text(encoding="utf-8"))


def small_files(folder, *, vocabulary=None, merges="Ġ a\n"):
    """Write the smallest valid tokenizer files, perhaps modified."""
    if vocabulary is None:
        tokens = (*SPECIAL_TOKENS, *BYTE_SYMBOLS, "Ġa")
        vocabulary = {token: id for id, token in enumerate(tokens)}
    files = folder / "vocabulary.json", folder / "merges.txt"
    text = vocabulary if isinstance(vocabulary, str) else json.dumps(vocabulary)
    files[0].write_text(text, encoding="utf-8")
    files[1].write_text(merges, encoding="utf-8")
    return files


def test_golden_texts_become_their_ids_and_come_back(tokenizer):
    assert len(GOLDEN) == 600
    assert [tokenizer.tokenize(row["text"]) for row in GOLDEN] == [row["ids"] for row in GOLDEN]
    assert [tokenizer.detokenize(row["ids"]) for row in GOLDEN] == [row["text"] for row in GOLDEN]


def test_characters_of_all_planes_survive_the_round_trip(tokenizer):
    planes = [range(0xD800), range(0xE000, 0x110000)]
    text = "".join(chr(code) for plane in planes for code in plane[::7])
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_special_tokens_are_tokens_when_asked_for(tokenizer):
    # "<mask>" takes the whitespace before it, as Hugging Face's tokenizer does; others do not.
    hello, world, space = 31414, 232, 1437
    typed = tokenizer.tokenize("Hello \n<mask> world", special_tokens=True)
    assert typed == [hello, tokenizer.mask_token_id, world]
    typed = tokenizer.tokenize("Hello </s> world", special_tokens=True)
    assert typed == [hello, space, tokenizer.end_token_id, world]
    typed = tokenizer.tokenize("<s><pad><unk></s>", special_tokens=True)
    assert typed == [0, 1, 3, 2]


def test_special_ids_are_found_by_name(tmp_path):
    tokens = (*BYTE_SYMBOLS, "Ġa", *reversed(SPECIAL_TOKENS))
    small = BartTokenizer.from_files(
        *small_files(tmp_path, vocabulary={token: id for id, token in enumerate(tokens)})
    )
    assert (small.start_token_id, small.pad_token_id, small.end_token_id) == (261, 260, 259)
    assert (small.unknown_token_id, small.mask_token_id) == (258, 257)
    assert small.encode(" a", 3) == [261, 256, 259]


def test_encode_puts_both_ends(tokenizer):
    assert tokenizer.encode("Hello world", 4) == [0, 31414, 232, 2]
    assert tokenizer.encode("", 2) == [0, 2]
    assert tokenizer.encode("Hello <mask>", 4, special_tokens=True) == [0, 31414, 50264, 2]


SURROGATE = r"lone surrogate U\+D83D at position 3"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda it: it.encode("Hello world", 3), r"at most 3 tokens.*received 4\..*truncate"),
        (lambda it: it.encode("", 1, truncate=True), "at least 2.*received 1"),
        (lambda it: it.tokenize("abc\ud83d"), SURROGATE),
        (lambda it: it.tokenize("abc\ud83d", special_tokens=True), SURROGATE),
        (lambda it: it.tokenize(b"abc"), "must be a str, received a bytes"),
        (lambda it: it.detokenize([0, -1]), "0 to 50264, received -1"),
        (lambda it: it.detokenize([0, 50265]), "0 to 50264, received 50265"),
        (lambda it: it.token_to_id(" world"), 'received " world"'),
    ],
)
def test_what_has_no_ids_or_no_text_is_refused(tokenizer, ask, message):
    with pytest.raises(InputError, match=message):
        ask(tokenizer)


NO_BOOLS, NO_IDS = ("yes", 1, None, np.True_), ("a", 1.0, True, None, [1])


@pytest.mark.parametrize(
    ("ask", "values", "message"),
    [
        (lambda it, value: it.encode("a", value), NO_IDS, "max_length must be an integer of"),
        (lambda it, value: it.encode("a", truncate=value), NO_BOOLS, "truncate must be true"),
        (lambda it, value: it.encode("a", truncate=True, special_tokens=value), NO_BOOLS,
         "special_tokens must be true or false"),
        (lambda it, value: it.tokenize("a", special_tokens=value), NO_BOOLS, "must be true or"),
        (lambda it, value: it.detokenize([2, value]), NO_IDS, "A token id must be from 0 to 50264"),
        (lambda it, value: it.detokenize(value), (None, 5, np.array(4)), "must be a list of token"),
        (lambda it, value: it.detokenize([], skip_special_tokens=value), NO_BOOLS, "must be true"),
        (lambda it, value: it.id_to_token(value), NO_IDS, "A token id must be from 0 to 50264"),
        (lambda it, value: it.token_to_id(value), (5, None, ["a"]), "token must be one of the"),
        (lambda it, value: it.from_artifact(value), ("a", None), "artifact must be from Artifact"),
        (lambda it, value: it.from_files(value, MERGES_FILE), (5, None), "vocabulary_file must be"),
        (lambda it, value: it.from_files(VOCABULARY_FILE, value), (b"a", []), "merges_file must"),
        (lambda it, value: it.from_files(VOCABULARY_FILE, value), ("a\0", "\ud800"), "no file can"),
        (lambda it, value: it.from_files(VOCABULARY_FILE, MERGES_FILE, value), (5, "ab", [None]),
         "An added token must be an AddedToken"),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused(tokenizer, ask, values, message):
    for value in values:
        with pytest.raises((ConfigurationError, InputError, TokenizerError), match=message):
            ask(tokenizer, value)


def test_ids_may_be_an_array(tokenizer):
    ids = tokenizer.encode("Hello world", np.int64(9))
    assert tokenizer.detokenize(np.array(ids)) == tokenizer.detokenize(ids) == "Hello world"


def test_detokenize_skips_or_shows_special_tokens(tokenizer):
    ids = [2, 0, 31414, 3, 232, 50264, 2, 1, 1]
    assert tokenizer.detokenize(ids) == "Hello world"
    shown = tokenizer.detokenize(ids, skip_special_tokens=False)
    assert shown == "</s><s>Hello<unk> world<mask></s><pad><pad>"


def test_the_two_tables_can_be_read_back(tokenizer):
    assert tokenizer.vocabulary == read_vocabulary(VOCABULARY_FILE)
    assert tokenizer.token_to_id("Ġworld") == tokenizer.vocabulary["Ġworld"] == 232
    assert tokenizer.id_to_token(232) == "Ġworld"
    assert tokenizer.merges == read_merges(MERGES_FILE)


def test_merges_open_with_and_without_a_version_line(tmp_path):
    lines = MERGES_FILE.read_text(encoding="utf-8").split("\n", 1)
    assert lines[0].startswith("#version")
    bare = tmp_path / "merges.txt"
    bare.write_text(lines[1], encoding="utf-8")
    reopened = BartTokenizer.from_files(VOCABULARY_FILE, bare)
    # " t" is made by the very first merge, and by no other.
    assert reopened.tokenize(" t") == [326]
    assert reopened.tokenize(GOLDEN[-1]["text"]) == GOLDEN[-1]["ids"]


def test_windows_line_ends_in_merges_are_line_ends(tmp_path):
    vocabulary_file, merges_file = small_files(tmp_path)
    merges_file.write_bytes("#version: 0.2\r\nĠ a\r\n".encode())
    assert len(BartTokenizer.from_files(vocabulary_file, merges_file).tokenize(" a")) == 1


def complete(*, without=(), change=()):
    tokens = [token for token in (*SPECIAL_TOKENS, *BYTE_SYMBOLS, "Ġa") if token not in without]
    return {**{token: id for id, token in enumerate(tokens)}, **dict(change)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocabulary": '{"<s>": 0'}, r"vocabulary\.json must be a JSON object.*invalid JSON"),
        ({"vocabulary": '{"a":' * 100_000}, "invalid JSON: it is nested too deeply"),
        ({"vocabulary": f'{{"a": {"9" * 5000}}}'}, "invalid JSON: a number has too many digits"),
        ({"vocabulary": "[]"}, r"vocabulary\.json must be a JSON object"),
        ({"vocabulary": "{}"}, r"vocabulary\.json must be a JSON object"),
        ({"vocabulary": complete(change={"a": "7"})}, r"vocabulary\.json .*integer ids"),
        ({"vocabulary": complete(change={"a": True})}, r"vocabulary\.json .*integer ids"),
        ({"vocabulary": complete(change={"a": 9})}, r"vocabulary\.json must number its 262"),
        ({"vocabulary": complete(change={"a": 999})}, r"ids from 0 to 999"),
        ({"vocabulary": complete(without=["<mask>"])}, r'vocabulary\.json .*special.*"<mask>"'),
        ({"vocabulary": complete(without=["</s>"])}, r'vocabulary\.json .*special.*"</s>"'),
        ({"vocabulary": complete(without=["Ġ", "Ġa"])}, r'256 byte symbols; 1 are.*"Ġ"'),
        ({"merges": "Ġ a\nĠ b\n"}, r'merges\.txt: The merges must merge tokens.*"Ġb"'),
        ({"merges": "Ġ a\n\nĠ a\n"}, r"merges\.txt .*received \"\" on line 2"),
        ({"merges": "#version: 0.2\nĠ a b\n"}, r"merges\.txt .*received \"Ġ a b\" on line 2"),
        ({"merges": "{}"}, r"merges\.txt .*received \"{}\" on line 1"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused_by_name(tmp_path, files, message):
    with pytest.raises(TokenizerError, match=message):
        BartTokenizer.from_files(*small_files(tmp_path, **files))


@pytest.mark.parametrize("name", ["vocabulary.json", "merges.txt"])
def test_a_file_that_is_missing_or_not_text_is_refused_by_name(tmp_path, name):
    files = small_files(tmp_path)
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=rf"{re.escape(name)} must be UTF-8"):
        BartTokenizer.from_files(*files)
    (tmp_path / name).unlink()
    with pytest.raises(TokenizerError, match=rf"{re.escape(name)} cannot be read: No such file"):
        BartTokenizer.from_files(*files)
