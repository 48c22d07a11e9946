"""Write the character classes of the Kotlin scanner as the `tokenizers` library has them.

    python tools/android_characters.py

Every character there is is put to the library, next to one whose class is known, and the ranges of
letters, numbers and spaces go to `CharacterClasses.kt`. To be run when a newer library knows
characters that the file does not; `tests/android/test_characters.py` says when.
"""

import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

FILE = (
    Path(__file__).parents[1]
    / "android/core/src/main/kotlin/org/bartexport/text/CharacterClasses.kt"
)
NAMES = ("LETTERS", "NUMBERS", "SPACES")
HEADER = """\
/*
 * Unicode's letters (L*), numbers (N*) and spaces (White_Space) as hexadecimal ranges. Written by
 * tools/android_characters.py, not by hand.
 *
 * They are the answers of the `tokenizers` library, character by character, so that a text has the
 * same ids on every phone, on a desktop and in Python, whatever Unicode version each of them has.
 */
package org.bartexport.text
"""

pre_tokenizer = ByteLevel(add_prefix_space=False)


def character_class(character: str) -> str | None:
    """Return the name of a character's class, None for one of no class.

    A run of one class is one piece, so a character belongs to that of a neighbour it stays with.
    """

    def stays_with(neighbour: str) -> bool:
        return len(pre_tokenizer.pre_tokenize_str(neighbour + character)) == 1

    if stays_with("a"):
        return "LETTERS"
    if stays_with("1"):
        return "NUMBERS"
    return None if stays_with("!") else "SPACES"


def characters() -> Iterator[int]:
    """Yield every code point but the surrogates."""
    return chain(range(0xD800), range(0xE000, 0x110000))


def kotlin(classes: Iterable[tuple[int, str | None]]) -> str:
    """Return the Kotlin file for (code point, class) in order."""
    ranges: dict[str, list[str]] = {name: [] for name in NAMES}
    # Neighbours of one class differ from their place in the order by the same number.
    numbered = enumerate((code, name) for code, name in classes if name)
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
    FILE.write_text(kotlin((code, character_class(chr(code))) for code in characters()))
