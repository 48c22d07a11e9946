"""Text to token ids and back: BART's byte-level BPE.

Two files and strings come in, lists of ids go out, and the other way round. Cutting and merging is
done by the `tokenizers` library with GPT-2's pattern. Every string of valid Unicode has ids, and
the ids give the same string back. The module does not know the model: how many tokens it embeds
and how long a text it takes are the caller's to say.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
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


class BartTokenizer:
    """Byte-level BPE of one vocabulary; safe to use from several threads.

    Special tokens typed in a text are ordinary characters unless the caller asks for the tokens,
    so that a text from outside cannot end a sequence or pad it.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
        """Make a tokenizer of tables as `read_vocabulary` and `read_merges` return them."""
        self._ids = vocabulary
        self._tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        model = BPE(vocabulary, merges)
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

        With `truncate`, a longer text keeps its beginning and both ends.

        Raises:
            InputError: when the text is longer and `truncate` is not set, has a lone surrogate,
                or `max_length` has no room for both ends.
        """
        if max_length < 2:
            raise InputError(
                "max_length must be at least 2, the start and the end token, "
                f"received {max_length}."
            )
        ids = self.tokenize(text, special_tokens=special_tokens)
        if len(ids) + 2 > max_length and not truncate:
            raise InputError(
                f"The text must have at most {max_length} tokens, start and end included, "
                f"received {len(ids) + 2}. Shorten it, or truncate to keep its beginning."
            )
        return [self.start_token_id, *ids[: max_length - 2], self.end_token_id]

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


def not_a_text(value: object) -> InputError:
    """Return the error for what `tokenizers` does not take for a string."""
    if not isinstance(value, str):
        return InputError(f"The text must be a str, received a {type(value).__name__}.")
    position = next(i for i, character in enumerate(value) if "\ud800" <= character <= "\udfff")
    return InputError(
        f"The text must be valid Unicode, received the lone surrogate U+{ord(value[position]):04X} "
        f"at position {position}. Decode its bytes with errors='replace' first."
    )
