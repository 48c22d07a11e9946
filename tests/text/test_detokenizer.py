import random

import pytest

from bart_export.errors import InputError
from bart_export.text.tokenizer import IncrementalDetokenizer, generated_text
from bart_export.text.vocabulary import BYTE_SYMBOLS


def pieces(tokenizer, ids, **options):
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@pytest.mark.parametrize(
    ("bytes", "expected"),
    [(4, ["", "", "", "🚀", "Hello", ""]), (2, ["", "", "\ufffdHello", ""]), (0, ["Hello", ""])],
)
def test_a_character_is_held_back_until_its_last_byte(tokenizer, bytes, expected):
    rocket = [tokenizer.token_to_id(BYTE_SYMBOLS[byte]) for byte in "🚀".encode()[:bytes]]
    assert pieces(tokenizer, [*rocket, tokenizer.token_to_id("Hello")]) == expected
    assert pieces(tokenizer, rocket)[-1] == ("\ufffd" if bytes == 2 else "")


def test_an_id_past_the_vocabulary_is_refused_and_the_sequence_goes_on(tokenizer):
    detokenizer = IncrementalDetokenizer(tokenizer)
    with pytest.raises(InputError, match="received 50265"):
        detokenizer.push(50265)
    assert detokenizer.push(tokenizer.token_to_id("Hello")) == "Hello"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["</s>", "<s>", "ĠHello", "Ġworld"], "Hello world"),
        (["Hello", "Ġworld"], "Hello world"),
        (["Ġ", "ĠHello"], " Hello"),
        (["Ġ"], ""),
        (["Ċ", "ĠHello"], "\n Hello"),
        ([], ""),
    ],
)
def test_a_generated_text_does_not_begin_with_the_space_of_a_word(tokenizer, tokens, text):
    ids = [tokenizer.token_to_id(token) for token in tokens]
    assert generated_text(tokenizer, ids) == text
    detokenizer = IncrementalDetokenizer(tokenizer, keep_first_space=False)
    for _ in range(2):  # and so with the next sequence
        assert "".join([*map(detokenizer.push, ids), detokenizer.finish()]) == text


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_pieces_joined_are_the_whole_for_any_ids(tokenizer, skip_special_tokens):
    # Half of the ids are single bytes and special tokens: most sequences are not UTF-8.
    randomness = random.Random(0)
    single = [tokenizer.token_to_id(symbol) for symbol in BYTE_SYMBOLS] + [0, 1, 2, 3, 50264]
    replaced = 0
    for _ in range(3000):
        ids = [
            randomness.choice(single) if randomness.random() < 0.5 else randomness.randrange(50265)
            for _ in range(randomness.randrange(1, 24))
        ]
        whole = tokenizer.detokenize(ids, skip_special_tokens=skip_special_tokens)
        parts = pieces(tokenizer, ids, skip_special_tokens=skip_special_tokens)
        assert "".join(parts) == whole
        parts = pieces(
            tokenizer, ids, skip_special_tokens=skip_special_tokens, keep_first_space=False
        )
        assert "".join(parts) == whole.removeprefix(" ")
        replaced += "\ufffd" in whole
    assert replaced > 1000
