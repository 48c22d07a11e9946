"""The first tokens of long texts are right, and little more is tokenized."""

import json
import random

import pytest
from support.paths import DATA
from support.tokenizer_samples import PIECES, cut_anywhere, vocabulary_of

from bart_export.errors import InputError
from bart_export.text.tokenizer import FIRST_CHARACTERS, BartTokenizer


def check(tokenizer, texts, lengths):
    """Compare each text, truncated to each length, with the full text."""
    for text in texts:
        whole = tokenizer.tokenize(text)
        for length in lengths:
            cut = tokenizer.encode(text, length, truncate=True)
            expected = [*whole[: length - 2], tokenizer.end_token_id]
            assert cut == [tokenizer.start_token_id, *expected], (text, length)


def test_random_texts_are_cut_where_the_whole_text_is():
    random_of = random.Random(3)
    merges = [("Ġ", "a"), ("a", "a"), ("'", "r"), ("r", "e"), ("Ġ", "Ġ"), ("'", "s"), ("aa", "a")]
    tokenizer = BartTokenizer(vocabulary_of(merges), merges)
    odd = [piece for piece in PIECES if len(piece.encode()) < 4]
    texts = ["".join(random_of.choices(odd, k=random_of.randrange(20, 120))) for _ in range(1500)]
    assert min(map(len, texts)) < FIRST_CHARACTERS * 3 < sorted(map(len, texts))[100]
    check(tokenizer, texts, (2, 3, 4, 5, 7))


def test_random_merges_of_one_endless_word_are_cut_where_the_whole_word_is():
    random_of = random.Random(4)
    for _ in range(150):
        tokens, merges = list("abc"), {}
        for _ in range(random_of.randrange(1, 12)):
            left, right = random_of.choices(tokens, k=2)
            merges[left, right] = None
            tokens.append(left + right)
        shuffled = random_of.sample(list(merges), k=len(merges))
        tokenizer = BartTokenizer(vocabulary_of(shuffled), shuffled)
        words = ["".join(random_of.choices("abc", k=600)), "ab" * 300, "abc" * 200, "a" * 601]
        # Some of which the beginning that is tried first has hardly more tokens than are wanted.
        longest = max((left + right for left, right in merges), key=len)
        words += [longest * 7 + "".join(random_of.choices(tokens, k=60)) for _ in range(10)]
        check(tokenizer, words, range(3, 14))


def test_wherever_a_beginning_is_cut_the_tokens_before_are_right():
    check(*cut_anywhere(), (8, 14, 17, 32))


def test_a_character_far_to_the_right_that_changes_the_first_tokens_is_seen():
    # Of a chain of letters the last two merge first, then the two before them, and so on: whether
    # its first letter is a token depends on how many there are.
    letters = [chr(code) for code in (*range(65, 91), *range(97, 123))]
    merges = list(zip(letters, letters[1:], strict=False))[::-1]
    tokenizer = BartTokenizer(vocabulary_of(merges), merges)
    texts = ["".join(letters[:length]) for length in range(24, 53)]
    assert len(texts[1]) > FIRST_CHARACTERS * 3
    check(tokenizer, texts, (5,))
    assert len({tuple(tokenizer.encode(text, 5, truncate=True)) for text in texts}) == 2


@pytest.fixture
def sizes(tokenizer, monkeypatch):
    """Return the sizes of the texts that are tokenized from now on."""
    library, found = tokenizer._bpe, []

    class Noted:
        def encode(self, text):
            found.append(len(text))
            return library.encode(text)

        def __getattr__(self, name):
            return getattr(library, name)

    monkeypatch.setattr(tokenizer, "_bpe", Noted())
    return found


@pytest.mark.parametrize("word", ["a", "-", " ", "ÃÂ", "漢字仮名交", "one two "])
def test_15_megabytes_are_cut_without_tokenizing_the_rest(tokenizer, sizes, word):
    text = word * (15_000_000 // len(word.encode()))
    ids = tokenizer.encode(text, 1024, truncate=True)
    read = list(sizes)
    assert ids == [0, *tokenizer.tokenize(text[:200_000])[:1022], 2]
    assert sum(read) < 200_000


def test_what_has_too_many_bytes_is_refused_untokenized_and_says_so(tokenizer, sizes):
    with pytest.raises(InputError, match=r"at most 1024 tokens.*received 15000000 bytes"):
        tokenizer.encode("a" * 15_000_000, 1024)
    assert sizes == []
    # As many as fit at best are tokenized, and the line says what came of them.
    longest = 128
    assert max(len(left + right) for left, right in tokenizer.merges) == longest
    with pytest.raises(InputError, match=r"at most 12 tokens.*received 322\."):
        tokenizer.encode("a" * 10 * longest, 12)
    with pytest.raises(InputError, match=r"at most 12 tokens.*received 1281 bytes"):
        tokenizer.encode("a" * (10 * longest + 1), 12)


def test_the_longest_text_that_fits_is_not_refused(tokenizer):
    # The longest token of the vocabulary, as often as there is room.
    longest = max((left + right for left, right in tokenizer.merges), key=len)
    text = tokenizer.detokenize([tokenizer.token_to_id(longest)])
    ids = tokenizer.encode(text, 3)
    assert ids == [0, tokenizer.token_to_id(longest), 2]


@pytest.mark.parametrize("truncate", [True, False])
def test_a_lone_surrogate_behind_the_cut_is_refused_all_the_same(tokenizer, truncate):
    text = "one two " * 10_000 + "\udc80"
    with pytest.raises(InputError, match=r"lone surrogate U\+DC80 at position 80000"):
        tokenizer.encode(text, 16, truncate=truncate)


def test_golden_texts_are_cut_where_the_whole_text_is(tokenizer):
    rows = json.loads((DATA / "golden/tokenization.json").read_text(encoding="utf-8"))
    long = "\n".join(row["text"] for row in rows)
    check(tokenizer, [long, long[::-1], long.replace(" ", "")], (2, 3, 64, 1024))
