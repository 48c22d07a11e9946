"""Added tokens and the space before a text: ids are those of the `tokenizers` library."""

import random

import pytest
import tokenizers
from support import tokenizer_samples
from support.growth import growth
from support.tokenizer_samples import (
    FLAGS,
    MERGES,
    PIECES,
    random_tokenizer,
    tokenizer_of,
    vocabulary_of,
)
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from bart_export.errors import InputError, TokenizerError
from bart_export.text.added_tokens import LONGEST, MOST, AddedToken, is_word, read_added_tokens
from bart_export.text.tokenizer import BartTokenizer, IncrementalDetokenizer
from bart_export.text.vocabulary import SPECIAL_TOKENS

CONTENTS = (*tokenizer_samples.CONTENTS, "<mask>", "<s>")


def library_of(tokenizer):
    """Return the library's tokenizer of the same tables and tokens."""
    library = tokenizers.Tokenizer(BPE(tokenizer.vocabulary, MERGES))
    library.pre_tokenizer = ByteLevel(add_prefix_space=tokenizer.add_prefix_space)
    library.add_tokens(
        [
            tokenizers.AddedToken(token.content, **{flag: getattr(token, flag) for flag in FLAGS})
            for token in tokenizer.added_tokens
        ]
    )
    return library


def test_random_tokens_in_random_texts_have_the_ids_of_tokenizers():
    random_of = random.Random(5)
    pieces = [*PIECES, *CONTENTS, *["<hl>", "<mask>", " ", "a"] * 8, "_", "\u0301", "\u200d"]
    found = 0
    for _ in range(150):
        tokenizer = random_tokenizer(random_of, CONTENTS)
        library = library_of(tokenizer)
        added = tokenizer.added_tokens
        own = {tokenizer.vocabulary[token.content] for token in added}
        for _ in range(150):
            text = "".join(random_of.choices(pieces, k=random_of.randrange(12)))
            ids = tokenizer.tokenize(text, special_tokens=True)
            assert ids == library.encode(text, add_special_tokens=False).ids, (text, added)
            length = random_of.randrange(2, 6)
            cut = tokenizer.encode(text, length, truncate=True, special_tokens=True)
            assert cut[1:-1] == ids[: length - 2], (text, added)
            found += not own.isdisjoint(ids)
    assert found > 5000


def test_special_tokens_of_bart_are_characters_and_others_are_not():
    tokenizer = tokenizer_of([AddedToken("<hl>", special=True), AddedToken("<sep>")])
    for token in SPECIAL_TOKENS:
        assert not tokenizer.special_token_ids.intersection(tokenizer.tokenize(f"a {token} b"))
    for token in ("<hl>", "<sep>"):
        assert tokenizer.token_to_id(token) in tokenizer.tokenize(f"a {token} b")


def test_every_character_is_a_word_or_none_as_tokenizers_has_it():
    tokenizer = tokenizer_of([AddedToken("<hl>", single_word=True)])
    library, id = library_of(tokenizer), tokenizer.token_to_id("<hl>")
    random_of = random.Random(6)
    codes = [*range(0x300), 0x2054, 0x200C, 0x200D, 0x16FE0, *random_of.sample(range(0xD800), 400)]
    words = 0
    for code in codes:
        for text in (f"{chr(code)}<hl>", f"<hl>{chr(code)}"):
            assert (id in library.encode(text).ids) is not is_word(chr(code)), hex(code)
        words += is_word(chr(code))
    assert 100 < words < len(codes) - 100


def test_special_tokens_are_left_out_of_a_text_and_others_stay():
    added = [AddedToken("<hl>", special=True), AddedToken("<sep>"), AddedToken("é")]
    tokenizer = tokenizer_of(added)
    ids = tokenizer.encode("a <hl>a<sep>é", 64)
    assert tokenizer.detokenize(ids) == "a a<sep>é"
    assert tokenizer.detokenize(ids, skip_special_tokens=False) == "<s>a <hl>a<sep>é</s>"
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [*map(detokenizer.push, ids), detokenizer.finish()]
    assert "".join(pieces) == "a a<sep>é"


@pytest.mark.parametrize("fill", ["<", "<hl", "<hl>", "<hl> ", " ", "a", "<hl>a "])
def test_4_megabytes_of_anything_are_cut_in_linear_time(fill):
    added = [AddedToken(f"<hl{'x' * number}>", lstrip=True, rstrip=True) for number in range(50)]
    tokenizer = tokenizer_of([*added, AddedToken("<", single_word=True), AddedToken(" ")])
    text = fill * (4_000_000 // len(fill)) + "<hl>"
    cut = tokenizer.encode(text, 1024, truncate=True)
    assert cut[1:-1] == tokenizer.tokenize(text[:20_000])[: len(cut) - 2]

    def encode(size):
        tokenizer.encode(fill * (size // len(fill)), 1024, truncate=True)

    assert growth(encode, 250_000, 1_000_000) < 10  # 16 if it were quadratic


def test_whitespace_that_tokens_take_does_not_make_a_text_too_long():
    tokenizer = tokenizer_of([AddedToken("<hl>", lstrip=True)])
    ids = tokenizer.encode(" " * 1_000_000 + "<hl>a", 4)
    assert ids[1:-1] == [tokenizer.token_to_id("<hl>"), tokenizer.token_to_id("a")]
    with pytest.raises(InputError, match=r"at most 4 tokens.*received 1000009 bytes"):
        tokenizer.encode(" " * 1_000_000 + "<hl> aaaa", 4)


def test_a_token_without_an_id_is_refused():
    with pytest.raises(TokenizerError, match="must have every added token, received '<hl>'"):
        BartTokenizer(vocabulary_of(MERGES), MERGES, [AddedToken("<hl>")])


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        ("", {}),
        ("a" * (LONGEST + 1), {}),
        ("\ud83d", {}),
        (" a", {"lstrip": True}),
        ("a\u3000", {"rstrip": True}),
        ("\n", {"lstrip": True}),
    ],
)
def test_a_token_that_no_text_can_be_cut_at_is_refused(content, flags):
    with pytest.raises(TokenizerError, match=r"added token must have 1 to \d+ characters"):
        AddedToken(content, **flags)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        [{}],
        ["<hl>"],
        [{"content": 3}],
        [{"content": "<hl>", "special": 1}],
        [{"content": "<hl>", "upper": True}],
        [{"content": f"<{number}>"} for number in range(MOST + 1)],
    ],
)
def test_what_is_no_list_of_added_tokens_is_refused(stored):
    with pytest.raises(TokenizerError, match=r"^here must (be|contain) "):
        read_added_tokens("here", stored)
