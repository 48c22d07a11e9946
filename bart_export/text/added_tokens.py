"""Added tokens: what is cut out of a text before it is split into words, each one id.

A checkpoint's own tokens, like `<hl>` before a word to ask about, are no words that byte pairs
could be merged to. The cut is that of the `tokenizers` library
(https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/tokenizer/added_vocabulary.rs),
done here so that a text can be cut before it is tokenized, and the same way in a graph and in
Kotlin. A text is walked over once, whatever it holds.
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

# Unicode's White_Space. Python's str.isspace has four separators more.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
BLOCK, SURROGATES = 0x100, range(0xD800, 0xE000)  # code points
MOST, LONGEST = 10_000, 500  # tokens, and characters of one: more is a damaged file


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the text itself; the fields are those of `tokenizers`.

    Attributes:
        content: the characters to find.
        single_word: find it only where no letter, digit or underscore is beside it.
        lstrip: take the whitespace before it, too.
        rstrip: take the whitespace after it, too.
        normalized: look for it after those that are not, in what they leave.
        special: leave it out of generated text.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False

    def __post_init__(self) -> None:
        """Raise TokenizerError unless a text can be cut at the token."""
        edges = {self.content[:1], self.content[-1:]}
        if (
            not 0 < len(self.content) <= LONGEST
            or any("\ud800" <= character <= "\udfff" for character in self.content)
            or ((self.lstrip or self.rstrip) and not edges.isdisjoint(SPACES))
        ):
            raise TokenizerError(
                f"An added token must have 1 to {LONGEST} characters, and none of whitespace at "
                f"its ends if it takes what is beside it, received {self.content[:60]!r}."
            )


# <mask> stands for a word and the space before it, as in BART's pre-training.
BART_TOKENS = tuple(
    AddedToken(token, lstrip=token == MASK, special=True) for token in SPECIAL_TOKENS
)


class Cutter:
    """Cuts texts at added tokens.

    Args:
        added_tokens: those to cut at; of two with the same content the last counts.
        ids: the id of each.
    """

    def __init__(self, added_tokens: Iterable[AddedToken], ids: Mapping[str, int]) -> None:
        by_content = {token.content: token for token in added_tokens}
        self._passes = [
            Pass(token for token in by_content.values() if token.normalized is kind)
            for kind in (False, True)
        ]
        self._ids = {content: ids[content] for content in by_content}

    def cut(self, text: str) -> Iterator[str | int]:
        """Yield the pieces of a text in order: ids of added tokens, and what is between them."""
        first, second = self._passes
        for piece in first.cut(text):
            if isinstance(piece, AddedToken):
                yield self._ids[piece.content]
                continue
            for part in second.cut(piece):
                yield self._ids[part.content] if isinstance(part, AddedToken) else part


@dataclasses.dataclass
class Node:
    """What may follow the characters before it, and the token that they are, if any."""

    following: "dict[str, Node]" = dataclasses.field(default_factory=dict)
    token: AddedToken | None = None


class Pass:
    """The added tokens that are looked for at the same time, as a tree of their characters."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._root = Node()
        for token in tokens:
            node = self._root
            for character in token.content:
                node = node.following.setdefault(character, Node())
            node.token = token
        self._first = re.compile("|".join(map(re.escape, self._root.following)))

    def cut(self, text: str) -> Iterator[str | AddedToken]:
        """Yield what is found in a text, and what is left between."""
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
        """Yield where which token is: from the left, the longest where there are several."""
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
    """Return whether a character, or "" for none, is one that `single_word` keeps off."""
    return bool(character) and character in word_characters(ord(character) // BLOCK)


@functools.cache
def word_characters(block: int) -> frozenset[str]:
    """Return which of BLOCK characters in a row are word characters, as `tokenizers` has it."""
    probe = Tokenizer(BPE())
    probe.add_tokens([tokenizers.AddedToken("!?", single_word=True, normalized=False)])
    codes = range(block * BLOCK, (block + 1) * BLOCK)
    characters = [chr(code) for code in codes if code not in SURROGATES]
    found = probe.encode("".join(f"{character}!? " for character in characters))
    others = {characters[begin // 4] for begin, _ in found.offsets}
    return frozenset(characters) - others


def read_added_tokens(place: str, stored: object) -> tuple[AddedToken, ...]:
    """Return the added tokens that a JSON file lists, objects with the fields of `AddedToken`.

    `place` is what a TokenizerError says of where.
    """
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
                f"{place} must hold objects of {', '.join(known)}, a string and booleans, "
                f"received {str(fields)[:200]}."
            )
    return tuple(AddedToken(**fields) for fields in stored)
