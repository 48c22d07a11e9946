"""Write the committed fixtures of android/core for damaged bytes and unusual texts.

    python tools/android_text.py

CPython decodes the damaged bytes. The package tokenizes texts of all character classes, including
letters of every Unicode version, and texts with added tokens.
"""

import codecs
import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bart_export.text.added_tokens import AddedToken
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS

ROOT = Path(__file__).parents[1]
RESOURCES = ROOT / "android/core/src/test/resources/org/bartexport/text"
TEXTS, TOKENIZERS = 300, 20
CONTENTS = ("<hl>", "<h", "hl>", "a", "ab", " a", "\n", "<hl><hl>", "é", "'s", "<s>x", "aa",
            "x y", "\u3000", "🚀", "a<")  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# At least one byte of every class in UTF-8, both as a first and as a later byte.
OCTETS = bytes.fromhex("41 80 8f 90 9f a0 bf c1 c2 df e0 e1 ec ed ee f0 f1 f4 f5 ff")
LONGEST = 4

# Characters by pretokenization class, including some of newer Unicode versions.
KINDS: tuple[Sequence[str], ...] = (
    "abcXYZ",
    ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'x", "'", "’s"),
    " \t\n\v\f\r\x85\xa0\u1680\u2000\u2003\u200a\u2028\u2029\u202f\u205f\u3000",
    # Control and format characters that some definitions call spaces, but White_Space does not.
    "\x00\x1c\x1f\x7f\u180e\u200b\u200d\u2060\ufeff\xad",
    "0179²½Ⅷ٣๓①\U0001d7d8\U0001e5f1\U0001ccf0",
    '.,!?-_"#$%&()*+/:;<=>@[]^`{|}~€…—',
    "éßΩжאبहกあ漢글ªʰǅ\u1c89\ua7cb\ua7da\u10d0\U00010570\U0001e4d0\U0002ebf0\U00031350",
    "\u0301\u0308\u093f\u20e3\ufe0f\U000e0100",
    "🚀👩🏽🇩🇪🫨\U0001fae9",
    # Unassigned, private use, and the last code points.
    "\u0378\ue000\U000323b0\U0010fffd\U0010ffff",
)


def decoded(octets: Sequence[int]) -> list[str]:
    """Return the output of CPython's incremental decoder for each byte and at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [*(decoder.decode(bytes([octet])) for octet in octets), decoder.decode(b"", final=True)]


def digest(first: int) -> str:
    """Return the SHA-256 of all decoded sequences of LONGEST bytes with this first byte.

    Pieces end with a line feed, and sequences with another; the hash is over UTF-8.
    """
    rest = itertools.product(OCTETS, repeat=LONGEST - 1)
    pieces = (piece for octets in rest for piece in (*decoded((first, *octets)), ""))
    return hashlib.sha256("".join(f"{piece}\n" for piece in pieces).encode()).hexdigest()


def odd_texts() -> list[str]:
    """Return random texts of characters of all classes."""
    chance = random.Random(0)
    return [
        "".join(
            chance.choice(chance.choice(KINDS)) * chance.choice((1, 1, 1, 2))
            for _ in range(chance.randrange(1, 20))
        )
        for _ in range(TEXTS)
    ]


def tokenizer() -> BartTokenizer:
    """Return a tokenizer with the vocabulary that the tests in both languages use."""
    folder = ROOT / "tests/data/vocabulary"
    return BartTokenizer.from_files(folder / "vocabulary.json", folder / "merges.txt")


def tokenized() -> list[dict[str, Any]]:
    """Return the odd texts with their ids."""
    tokenize = tokenizer().tokenize
    return [{"text": text, "ids": tokenize(text)} for text in odd_texts()]


def random_token(chance: random.Random, content: str) -> AddedToken:
    """Return an added token with random valid flags."""
    flags = {flag: chance.random() < 0.4 for flag in FLAGS}
    if content[0].isspace():
        flags |= {"lstrip": False, "rstrip": False}
    return AddedToken(content, **flags)


def added() -> list[dict[str, Any]]:
    """Return small tokenizers with added tokens, and texts with their ids.

    The vocabulary is the special tokens, the bytes, "Ġa" and `CONTENTS`.
    """
    chance = random.Random(1)
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *BYTE_SYMBOLS, "Ġa", *CONTENTS))
    vocabulary = {token: id for id, token in enumerate(tokens)}
    pieces = ["".join(kind) for kinds in KINDS for kind in kinds] + [*CONTENTS, "<mask>", " "] * 8
    rows = []
    for _ in range(TOKENIZERS):
        own = [random_token(chance, content) for content in chance.sample(CONTENTS, k=5)]
        spaced = chance.random() < 0.5
        tokenizer = BartTokenizer(vocabulary, [("Ġ", "a")], own, add_prefix_space=spaced)
        texts = ["".join(chance.choices(pieces, k=chance.randrange(30))) for _ in range(20)]
        rows.append(
            {
                "added_tokens": [dataclasses.asdict(token) for token in own],
                "add_prefix_space": spaced,
                "texts": [
                    {
                        "text": text,
                        "ids": tokenizer.tokenize(text),
                        "with_special": tokenizer.tokenize(text, special_tokens=True),
                        "shown": tokenizer.detokenize(tokenizer.tokenize(text)),
                    }
                    for text in texts
                ],
            }
        )
    return rows


def utf8() -> dict[str, Any]:
    """Return the bytes, and the digests of their sequences by first byte."""
    return {
        "octets": list(OCTETS),
        "longest": LONGEST,
        "digests": [digest(octet) for octet in OCTETS],
    }


def main() -> None:
    """Write the files."""
    RESOURCES.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("utf8.json", utf8()),
        ("odd_texts.json", tokenized()),
        ("added_tokens.json", added()),
    ):
        (RESOURCES / name).write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
