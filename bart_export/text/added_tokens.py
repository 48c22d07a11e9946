"""Added tokens, such as a checkpoint's `<hl>`: strings that each become one id before BPE runs.

The rules are those of the `tokenizers` library, so that graphs and Kotlin can apply them, too:
https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/tokenizer/added_vocabulary.rs
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping

import tokenizers
from tokenizers import Tokenizer
from tokenizers.models import BPE

from bart_export.errors import TokenizerError
from bart_export.text.vocabulary import MASK, SPECIAL_TOKENS

# Unicode's White_Space. Python's str.isspace accepts four more characters.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
BLOCK, SURROGATES = 0x100, range(0xD800, 0xE000)  # code points
MOST, LONGEST = 10_000, 500  # tokens, and characters per token: a file with more is damaged


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text itself; the fields are those of `tokenizers`.

    Attributes:
        content: the characters to find.
        single_word: match only where no letter, digit or underscore is adjacent.
        lstrip: include the whitespace before the token.
        rstrip: include the whitespace after the token.
        normalized: match after all tokens that are not normalized, in the text between them.
        special: omit the token from generated text.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False

    def __post_init__(self) -> None:
        """Raise TokenizerError unless the content can be matched."""
        edges = {self.content[:1], self.content[-1:]}
        if (
            not 0 < len(self.content) <= LONGEST
            or any("\ud800" <= character <= "\udfff" for character in self.content)
            or ((self.lstrip or self.rstrip) and not edges.isdisjoint(SPACES))
        ):
            raise TokenizerError(
                f"An added token must have 1 to {LONGEST} characters, and no whitespace at its "
                f"ends if it strips whitespace, received {self.content[:60]!r}."
            )


# <mask> replaces a word and the space before it, as in BART's pre-training.
BART_TOKENS = tuple(
    AddedToken(token, lstrip=token == MASK, special=True) for token in SPECIAL_TOKENS
)


class Cutter:
    """Splits texts at added tokens.

    Args:
        added_tokens: if two have the same content, the last one wins.
        ids: the id of each token's content.
    """

    def __init__(self, added_tokens: Iterable[AddedToken], ids: Mapping[str, int]) -> None:
        by_content = {token.content: token for token in added_tokens}
        self._passes = [
            Pass(token for token in by_content.values() if token.normalized is kind)
            for kind in (False, True)
        ]
        self._ids = {content: ids[content] for content in by_content}

    def cut(self, text: str) -> Iterator[str | int]:
        """Yield the ids of added tokens and the text between them, in order."""
        first, second = self._passes
        for piece in first.cut(text):
            parts = [piece] if isinstance(piece, AddedToken) else second.cut(piece)
            for part in parts:
                yield self._ids[part.content] if isinstance(part, AddedToken) else part


@dataclasses.dataclass
class Node:
    """A trie node: its children by character, and the token that ends here, if any."""

    following: "dict[str, Node]" = dataclasses.field(default_factory=dict)
    token: AddedToken | None = None


class Pass:
    """A trie of the added tokens that are matched in the same pass."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._root = Node()
        for token in tokens:
            node = self._root
            for character in token.content:
                node = node.following.setdefault(character, Node())
            node.token = token
        self._first = re.compile("|".join(map(re.escape, self._root.following)))

    def cut(self, text: str) -> Iterator[str | AddedToken]:
        """Yield the tokens in a text and the text between them."""
        begin = 0
        for start, token in self.find(text):
            end = start + len(token.content)
            if token.single_word and (
                is_word(text[start - 1 : start]) or is_word(text[end : end + 1])
            ):
                continue
            if token.lstrip:
                while start > begin and text[start - 1] in SPACES:
                    start -= 1
            if token.rstrip:
                while text[end : end + 1] and text[end] in SPACES:
                    end += 1
            if begin < start:
                yield text[begin:start]
            yield token
            begin = end
        if begin < len(text):
            yield text[begin:]

    def find(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        """Yield the start and token of each match; the leftmost wins, then the longest."""
        if not self._root.following:
            return
        end = 0
        for first in self._first.finditer(text):
            if first.start() < end:
                continue
            node, place, found = self._root, first.start(), None
            while following := node.following.get(text[place : place + 1]):
                node = following
                place += 1
                if node.token:
                    found, end = node.token, place
            if found:
                yield first.start(), found


def is_word(character: str) -> bool:
    """Return whether `single_word` forbids an adjacent character; "" is allowed."""
    return bool(character) and character in word_characters(ord(character) // BLOCK)


@functools.cache
def word_characters(block: int) -> frozenset[str]:
    """Return the word characters of a block of BLOCK code points, as `tokenizers` sees them."""
    probe = Tokenizer(BPE())
    probe.add_tokens([tokenizers.AddedToken("!?", single_word=True, normalized=False)])
    codes = range(block * BLOCK, (block + 1) * BLOCK)
    characters = [chr(code) for code in codes if code not in SURROGATES]
    found = probe.encode("".join(f"{character}!? " for character in characters))
    others = {characters[begin // 4] for begin, _ in found.offsets}
    return frozenset(characters) - others


def read_added_tokens(place: str, stored: object) -> tuple[AddedToken, ...]:
    """Return the added tokens of a JSON list; `place` names the list in a TokenizerError."""
    if not isinstance(stored, list) or len(stored) > MOST:
        raise TokenizerError(f"{place} must be a list of at most {MOST} added tokens.")
    known = {field.name: field.default for field in dataclasses.fields(AddedToken)}
    for fields in stored:
        if (
            not isinstance(fields, dict)
            or not isinstance(fields.get("content"), str)
            or not fields.keys() <= known.keys()
            or any(type(value) is not bool for name, value in fields.items() if name != "content")
        ):
            raise TokenizerError(
                f"{place} must contain objects with the fields {', '.join(known)}, the first a "
                f"string and the others booleans, received {str(fields)[:200]}."
            )
    return tuple(AddedToken(**fields) for fields in stored)
