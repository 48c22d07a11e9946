"""Text to token ids and back: BART's byte-level BPE.

Two files and strings come in, lists of ids go out, and the other way round. Cutting and merging is
done by the `tokenizers` library with GPT-2's pattern. Every string of valid Unicode has ids, and
the ids give the same string back. The module does not know the model: how many tokens it embeds
and how long a text it takes are the caller's to say.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from bart_export.errors import InputError, TokenizerError
from bart_export.text.vocabulary import (
    BYTE_SYMBOLS,
    END,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    START,
    UNKNOWN,
    read_merges,
    read_vocabulary,
)

BYTE_OF = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}

FIRST_CHARACTERS = 8  # a token of the beginning that is tried first; English has between 4 and 5
GROWTH = 4  # times as much text when a beginning was not enough
LONGEST_SPACE = 3  # bytes; the last of several may turn out to be no part of their word
ANCHOR = 3  # longest tokens between the token that must stay the same and the end of the text


class BartTokenizer:
    """Byte-level BPE of one vocabulary; safe to use from several threads.

    Special tokens typed in a text are ordinary characters unless the caller asks for the tokens,
    so that a text from outside cannot end a sequence or pad it.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
        """Make a tokenizer of tables as `read_vocabulary` and `read_merges` return them."""
        self._ids = vocabulary
        self._tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        self._longest = max((len(left + right) for left, right in merges), default=1)
        self._model = model = BPE(vocabulary, merges)
        self._plain = Tokenizer(model)
        self._plain.pre_tokenizer = ByteLevel(add_prefix_space=False)
        self._special = Tokenizer(model)
        self._special.pre_tokenizer = self._plain.pre_tokenizer
        # <mask> stands for a word and the space before it, as in BART's pre-training.
        self._special.add_special_tokens(
            [AddedToken(token, lstrip=token == MASK, normalized=False) for token in SPECIAL_TOKENS]
        )
        self.start_token_id = vocabulary[START]
        self.pad_token_id = vocabulary[PAD]
        self.end_token_id = vocabulary[END]
        self.unknown_token_id = vocabulary[UNKNOWN]
        self.mask_token_id = vocabulary[MASK]
        self.special_token_ids = frozenset(vocabulary[token] for token in SPECIAL_TOKENS)

    @classmethod
    def from_files(cls, vocabulary_file: Path, merges_file: Path) -> "BartTokenizer":
        """Open a vocabulary (JSON, {token: id}) and its merges (text, one a line).

        Raises:
            TokenizerError: when a file is missing or damaged, or the two do not belong together.
        """
        vocabulary = read_vocabulary(vocabulary_file)
        merges = read_merges(merges_file)
        try:
            return cls(vocabulary, merges)
        except Exception as error:  # `tokenizers` has no class of its own for this
            reason = str(error).rpartition(": ")[2]
            raise TokenizerError(
                f"{merges_file} must merge tokens of {vocabulary_file}, received: {reason}. "
                "Give the two files of one checkpoint."
            ) from None

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self._tokens)

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, special ones included, as `read_vocabulary` returned them."""
        return dict(self._ids)

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges, as `read_merges` returned them; read back from the library each time."""
        return [
            (left, right) for left, right in json.loads(self._plain.to_str())["model"]["merges"]
        ]

    def token_to_id(self, token: str) -> int:
        """Return the id of a token as the vocabulary spells it ("Ġthe" for " the").

        Raises:
            InputError: when the vocabulary does not have it.
        """
        if token not in self._ids:
            raise InputError(
                f"token must be one of the {self.vocabulary_size} of the vocabulary, received "
                f"{token!r}. A space is spelled 'Ġ'."
            )
        return self._ids[token]

    def id_to_token(self, id: int) -> str:
        """Return the token of an id as the vocabulary spells it.

        Raises:
            InputError: when the id is negative or past the vocabulary.
        """
        if not 0 <= id < self.vocabulary_size:
            raise InputError(
                f"A token id must be in 0 to {self.vocabulary_size - 1}, received {id}."
            )
        return self._tokens[id]

    def tokenize(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the ids of a text, without start and end tokens.

        With `special_tokens`, "<s>", "<pad>", "</s>", "<unk>" and "<mask>" in the text become
        their ids, "<mask>" together with the whitespace on its left.

        Raises:
            InputError: when the text has a lone surrogate, which no UTF-8 can hold.
        """
        tokenizer = self._special if special_tokens else self._plain
        try:
            return tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise not_a_text(text) from None

    def encode(
        self,
        text: str,
        max_length: int,
        *,
        truncate: bool = False,
        special_tokens: bool = False,
    ) -> list[int]:
        """Return `<s> text </s>` as at most `max_length` ids, both ends counted.

        With `truncate`, a longer text keeps its beginning and both ends. No more of a text is
        tokenized than its first ids need, and nothing of one that has too many bytes to fit.

        Raises:
            InputError: when the text is longer and `truncate` is not set, has a lone surrogate,
                or `max_length` has no room for both ends.
        """
        if max_length < 2:
            raise InputError(
                "max_length must be at least 2, the start and the end token, "
                f"received {max_length}."
            )
        room = max_length - 2
        if truncate:
            ids = self._beginning(text, room, special_tokens)
            return [self.start_token_id, *ids, self.end_token_id]
        size = byte_length(text)
        if size > room * self._longest and not special_tokens:
            raise too_long(max_length, f"{size} bytes, which no {room} tokens hold")
        ids = self.tokenize(text, special_tokens=special_tokens)
        if len(ids) > room:
            raise too_long(max_length, f"{len(ids) + 2}")
        return [self.start_token_id, *ids, self.end_token_id]

    def _beginning(self, text: str, count: int, special_tokens: bool) -> list[int]:
        """Return the first `count` ids of a text, or all; see `_certain` for why they are those."""
        if special_tokens:
            return self.tokenize(text, special_tokens=True)[:count]
        size, length = FIRST_CHARACTERS * max(count, self._longest), len(text)
        byte_length(text)  # what is not read must be a text, too
        while size < length:
            encoding = self._plain.encode(text[:size], add_special_tokens=False)
            if self._certain(encoding, count) >= count:
                return encoding.ids[:count]
            size *= GROWTH
        return self.tokenize(text)[:count]

    def _certain(self, encoding: Encoding, wanted: int) -> int:
        """Return how many tokens of a beginning are the text's own however it goes on.

        What follows may change where the last word ends. An apostrophe before it, which is one
        token, may become a contraction with it. If more are wanted, a long last word is looked
        into, as `graph.tokenizer.certain_in_open_word` does and explains.
        """
        ids, tokens, words = encoding.ids, encoding.tokens, encoding.word_ids
        before_last = words.index(words[-1])
        if before_last > wanted:
            return before_last - 1
        longest = max(self._longest, LONGEST_SPACE + 1)
        word = "".join(tokens[before_last:])
        anchor, place = len(ids), len(word)
        while anchor > before_last and len(word) - place < ANCHOR * longest:
            anchor -= 1
            place -= len(tokens[anchor])
        if len(word) - place < ANCHOR * longest:
            return max(before_last - 1, 0)
        tails = (word[place : len(word) - cut] for cut in range(longest))
        same = all(self._model.tokenize(tail)[0].id == ids[anchor] for tail in tails)
        return anchor + 1 if same else max(before_last - 1, 0)

    def token_bytes(self, id: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for, often a part of a character.

        Raises:
            InputError: when the id is not in the vocabulary.
        """
        token = self.id_to_token(id)
        try:
            return bytes(BYTE_OF[symbol] for symbol in token)
        except KeyError:  # an entry that no merge makes and that is not spelled in byte symbols
            return token.encode("utf-8")

    def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: when an id is not in the vocabulary.
        """
        skipped = self.special_token_ids if skip_special_tokens else ()
        pieces = (self.token_bytes(id) for id in ids if id not in skipped)
        return b"".join(pieces).decode("utf-8", errors="replace")


def byte_length(text: str) -> int:
    """Return how many bytes a text has in UTF-8.

    Raises:
        InputError: for what is no text, or has a lone surrogate.
    """
    try:
        return len(text.encode())
    except (AttributeError, UnicodeEncodeError):
        raise not_a_text(text) from None


def too_long(max_length: int, received: str) -> InputError:
    """Return the error for a text that does not fit; `received` is how much it has."""
    return InputError(
        f"The text must have at most {max_length} tokens, start and end included, received "
        f"{received}. Shorten it, or truncate to keep its beginning."
    )


def not_a_text(value: object) -> InputError:
    """Return the error for what `tokenizers` does not take for a string."""
    if not isinstance(value, str):
        return InputError(f"The text must be a str, received a {type(value).__name__}.")
    position = next(i for i, character in enumerate(value) if "\ud800" <= character <= "\udfff")
    return InputError(
        f"The text must be valid Unicode, received the lone surrogate U+{ord(value[position]):04X} "
        f"at position {position}. Decode its bytes with errors='replace' first."
    )
