"""Write the character classes of the Kotlin scanner, as the `tokenizers` library classifies them.

    python tools/android_characters.py

Each character except the surrogates is passed to the library next to one of a known class, and the
ranges of letters, numbers and spaces are written to `CharacterClasses.kt`. Run it when
`tests/android/test_text.py` finds that a newer library knows more characters.
"""

import textwrap
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from bart_export.text.added_tokens import BLOCK, word_characters

FILE = (
    Path(__file__).parents[1]
    / "android/core/src/main/kotlin/org/bartexport/text/CharacterClasses.kt"
)
NAMES = ("LETTERS", "NUMBERS", "SPACES", "WORDS")
HEADER = """\
/*
 * Unicode's letters (L*), numbers (N*) and spaces (White_Space) as hexadecimal ranges, and what an
 * added token's `single_word` keeps off. Written by tools/android_characters.py, not by hand.
 *
 * They are the answers of the `tokenizers` library, character by character, so that a text has the
 * same ids on every phone, on a desktop and in Python, whatever Unicode version each of them has.
 */
package org.bartexport.text
"""

pre_tokenizer = ByteLevel(add_prefix_space=False)


def classified(codes: range) -> Iterator[tuple[int, str | None]]:
    """Yield every code point with the name of its class, or None for one without a class.

    A run of one class is one piece, so a character that is not split from its neighbour has the
    neighbour's class.
    """
    text = "".join(map(chr, codes))
    for neighbour, name in (("!", None), ("a", "LETTERS"), ("1", "NUMBERS")):
        if len(pre_tokenizer.pre_tokenize_str(neighbour + text)) == 1:
            yield from ((code, name) for code in codes)
            return
    if len(codes) == 1:
        yield codes[0], "SPACES"
        return
    yield from classified(codes[: len(codes) // 2])
    yield from classified(codes[len(codes) // 2 :])


def kotlin() -> str:
    """Return the Kotlin file."""
    starts = [*range(0, 0xD800, BLOCK), *range(0xE000, 0x110000, BLOCK)]
    classes = chain.from_iterable(classified(range(start, start + BLOCK)) for start in starts)
    words = sorted(ord(one) for start in starts for one in word_characters(start // BLOCK))
    ranges: dict[str, list[str]] = {name: [] for name in NAMES}
    # Consecutive code points of one class differ from their index by the same number.
    named = chain(
        ((code, name) for code, name in classes if name), ((code, "WORDS") for code in words)
    )
    numbered = enumerate(named)
    for (name, _), run in groupby(numbered, lambda item: (item[1][1], item[1][0] - item[0])):
        codes = [code for _, (code, _) in run]
        last = f"-{codes[-1]:x}" if len(codes) > 1 else ""
        ranges[str(name)].append(f"{codes[0]:x}{last}")
    return HEADER + "".join(
        f'\ninternal const val {name}: String = """\n'
        + textwrap.fill(" ".join(ranges[name]), 100, break_on_hyphens=False)
        + '\n"""\n'
        for name in NAMES
    )


if __name__ == "__main__":
    FILE.write_text(kotlin(), encoding="utf-8")
