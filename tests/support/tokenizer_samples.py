"""Texts, vocabularies and tokenizers for tests of tokenization in a graph."""

from bart_export.text.added_tokens import AddedToken
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS

# Examples of every kind of piece in the pattern.
PIECES = (
    *("a", "s", "t", "re", "ve", "ll", "d", "m", "S", "é", "ß", "漢字", "ไทย", "ǅ", "ª"),
    *("1", "23", "٤", "Ⅷ", "½", "६"),
    *(" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\x1c"),
    *("'", "''", "\u2019", ".", "-", "€", "👍🏽", "\u0301", "\u200d", "\x00", "\x7f", "\ufffd"),
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "'r", "'v", "'l", "'e", "'x"),
    *("\u180e", "\u200b", "\ufeff", "_", "\U0010ffff", "\ufffe"),
)


def vocabulary_of(merges):
    """Return the smallest vocabulary for these merges."""
    made = [left + right for left, right in merges]
    tokens = dict.fromkeys((*BYTE_SYMBOLS, *made, *SPECIAL_TOKENS))
    return {token: id for id, token in enumerate(tokens)}


MERGES = [("Ġ", "a"), ("a", "a"), ("Ġ", "Ġ"), ("'", "s"), ("a", "b")]
CONTENTS = ("<hl>", "<h", "hl>", "a", "ab", " a", "\n", "<hl><hl>", "é", "'s", "Ġa", "<s>x", "aa",
            "x y", "\u3000", "a<")  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def tokenizer_of(added, *, add_prefix_space=False):
    """Return a small tokenizer with added tokens."""
    vocabulary = vocabulary_of(MERGES)
    for token in added:
        vocabulary.setdefault(token.content, len(vocabulary))
    return BartTokenizer(vocabulary, MERGES, added, add_prefix_space=add_prefix_space)


def random_tokenizer(random_of, contents):
    """Return a tokenizer with some of the contents as added tokens with random flags."""
    added = []
    for content in random_of.sample(contents, k=random_of.randrange(1, 6)):
        flags = {flag: random_of.random() < 0.4 for flag in FLAGS}
        if content[0].isspace():
            flags |= {"lstrip": False, "rstrip": False}
        added.append(AddedToken(content, **flags))
    return tokenizer_of(added, add_prefix_space=random_of.random() < 0.5)


def expected(host, texts, max_length):
    """Return the ids of each text by the host's tokenizer, truncated after tokenizing all of it."""
    return [
        [host.start_token_id, *host.tokenize(text)[: max_length - 2], host.end_token_id]
        for text in texts
    ]


def cut_anywhere():
    """Return a tokenizer with tokens of up to 32 characters, and texts to cut after 256 characters.

    The texts differ in what begins, ends or continues at the cut.
    """
    doubled = [(letter * size, letter * size) for letter in "a'" for size in (1, 2, 4, 8, 16)]
    blank, (first, second, third) = "Ġ", (BYTE_SYMBOLS[byte] for byte in "\u3000".encode())
    merges = [
        *doubled, ("r", "e"), ("'", "re"), ("v", "e"), ("'", "s"), (blank, "b"), (blank, blank),
        (blank, "'"), (first, second), (first + second, third),
    ]  # fmt: skip
    tails = ["  b", "'re", "x'reb", "'s", " 's", "\u3000\u3000b", "   ", "''''s", "é'vevé", "\n b"]
    texts = [
        ("a" * (shift + 200 - shift % 7) + "b" * (shift % 7 + 30) + 3 * tail + "end " * 80)
        for shift in range(0, 40, 3)
        for tail in tails
    ]
    texts += ["a" * shift + 200 * tail for shift in range(0, 40, 9) for tail in tails]
    # The beginning of this ends in an apostrophe, the 12th token, and an "r".
    texts.append("a" * 254 + "'re" + "b" * 300)
    return BartTokenizer(vocabulary_of(merges), merges), texts
