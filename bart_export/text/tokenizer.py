"""BART's tokenizer: byte-level BPE, from text to token ids and back, also one id at a time.

The `tokenizers` library splits and merges, with GPT-2's pattern. Every string of valid Unicode has
ids, and the ids give the same string back. Callers bound the length and compare the size of the
vocabulary with the model's.
"""

import codecs
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from bart_export.artifact.artifact import Artifact
from bart_export.errors import InputError, TokenizerError
from bart_export.text.added_tokens import BART_TOKENS, AddedToken, Cutter, read_added_tokens
from bart_export.text.vocabulary import (
    BYTE_SYMBOLS,
    END,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    START,
    UNKNOWN,
    check_merges,
    read_merges,
    read_vocabulary,
)

BYTE_OF = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}

MAX_LENGTH = 1024  # tokens of a text where nobody says, the positions of BART's own checkpoints

FIRST_CHARACTERS = 8  # a token of the beginning that is tried first; English has between 4 and 5
GROWTH = 4  # times as much text when a beginning was not enough
LONGEST_SPACE = 3  # bytes; the last of several may turn out to be no part of their word
ANCHOR = 3  # longest tokens between the token that must stay the same and the end of the text


class BartTokenizer:
    """BART's byte-level BPE; thread-safe.

    A checkpoint's added tokens are always recognized in a text. BART's five special tokens are
    plain characters unless the caller asks for them, so that untrusted text cannot end or pad a
    sequence.

    Attributes:
        added_tokens: BART's five and the checkpoint's own.
        add_prefix_space: whether a text that does not begin with a space gets one.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: list[tuple[str, str]],
        added_tokens: Iterable[AddedToken] = (),
        *,
        add_prefix_space: bool = False,
    ) -> None:
        """Make a tokenizer from tables as `read_vocabulary` and `read_merges` return them.

        Raises:
            TokenizerError: if the vocabulary lacks an added token, or a token of a merge.
        """
        check_merges("The merges", vocabulary, merges)
        self._ids = vocabulary
        self._tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        self._longest = max((len(left + right) for left, right in merges), default=1)
        self._model = BPE(vocabulary, merges)
        self._bpe = Tokenizer(self._model)
        self._bpe.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
        self.add_prefix_space = add_prefix_space
        by_content = {token.content: token for token in (*BART_TOKENS, *added_tokens)}
        self.added_tokens = tuple(by_content.values())
        missing = [content for content in by_content if content not in vocabulary]
        if missing:
            raise TokenizerError(
                f"The vocabulary must have every added token, received {missing[0]!r} without id."
            )
        own = [token for token in self.added_tokens if token.content not in SPECIAL_TOKENS]
        # Without and with BART's special tokens.
        self._cutters = Cutter(own, vocabulary), Cutter(self.added_tokens, vocabulary)
        self._added = {vocabulary[content]: content.encode() for content in by_content}
        self.start_token_id = vocabulary[START]
        self.pad_token_id = vocabulary[PAD]
        self.end_token_id = vocabulary[END]
        self.unknown_token_id = vocabulary[UNKNOWN]
        self.mask_token_id = vocabulary[MASK]
        self.special_token_ids = frozenset(
            vocabulary[token.content]
            for token in self.added_tokens
            if token.special or token.content in SPECIAL_TOKENS
        )

    @classmethod
    def from_files(
        cls,
        vocabulary_file: str | os.PathLike[str],
        merges_file: str | os.PathLike[str],
        added_tokens: Iterable[AddedToken] = (),
        *,
        add_prefix_space: bool = False,
    ) -> "BartTokenizer":
        """Open a vocabulary (JSON, {token: id}) and its merges (text, one per line).

        Raises:
            TokenizerError: if a file is missing or damaged, or the two do not belong together.
        """
        vocabulary = read_vocabulary(Path(vocabulary_file))
        merges = read_merges(Path(merges_file))
        try:
            return cls(vocabulary, merges, added_tokens, add_prefix_space=add_prefix_space)
        except TokenizerError as error:
            raise TokenizerError(f"{vocabulary_file} with {merges_file}: {error}") from None

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "BartTokenizer":
        """Open the tokenizer of an artifact.

        Raises:
            ArtifactError: when a file is missing or was altered.
            TokenizerError: when the tokenizer is damaged.
        """
        stored = artifact.manifest.tokenizer
        place = f"tokenizer.added_tokens in the manifest of {artifact.directory}"
        return cls.from_files(
            artifact.path(stored.vocabulary),
            artifact.path(stored.merges),
            read_added_tokens(place, list(stored.added_tokens or ())),
            add_prefix_space=bool(stored.add_prefix_space),
        )

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
        return [(left, right) for left, right in json.loads(self._bpe.to_str())["model"]["merges"]]

    def token_to_id(self, token: str) -> int:
        """Return the id of a token, which is spelled as in the vocabulary ("Ġthe" for " the").

        Raises:
            InputError: if the vocabulary does not have it.
        """
        if token not in self._ids:
            raise InputError(
                f"token must be one of the {self.vocabulary_size} of the vocabulary, received "
                f"{token!r}. A space is spelled 'Ġ'."
            )
        return self._ids[token]

    def id_to_token(self, id: int) -> str:
        """Return the token of an id, spelled as in the vocabulary.

        Raises:
            InputError: if the id is negative or beyond the vocabulary.
        """
        if not 0 <= id < self.vocabulary_size:
            raise InputError(
                f"A token id must be in 0 to {self.vocabulary_size - 1}, received {id}."
            )
        return self._tokens[id]

    def tokenize(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the ids of a text, without start and end tokens.

        With `special_tokens`, "<s>", "<pad>", "</s>", "<unk>" and "<mask>" in the text become
        their ids; "<mask>" includes the white space to its left.

        Raises:
            InputError: if the text has a lone surrogate, which UTF-8 cannot encode.
        """
        byte_length(text)
        ids: list[int] = []
        for piece in self._cutters[special_tokens].cut(text):
            ids.extend([piece] if isinstance(piece, int) else self._bpe.encode(piece).ids)
        return ids

    def encode(
        self,
        text: str,
        max_length: int = MAX_LENGTH,
        *,
        truncate: bool = False,
        special_tokens: bool = False,
    ) -> list[int]:
        """Return the ids of `<s> text </s>`, at most `max_length` including both ends.

        With `truncate`, a longer text is cut at its end; only as much of it is tokenized as the
        first ids need. Without, a text with too many bytes to fit is refused untokenized.

        Raises:
            InputError: if the text is longer and `truncate` is not set, if it has a lone surrogate,
                or if `max_length` has no room for both ends.
        """
        if truncate:
            return self.encode_beginning(text, max_length, special_tokens=special_tokens)[0]
        size, room = byte_length(text), room_within(max_length)
        if self._least(text, special_tokens) > room:
            raise too_long(max_length, f"{size} bytes, which no {room} tokens hold")
        ids = self.tokenize(text, special_tokens=special_tokens)
        if len(ids) > room:
            raise too_long(max_length, f"{len(ids) + 2}")
        return [self.start_token_id, *ids, self.end_token_id]

    def encode_beginning(
        self, text: str, max_length: int = MAX_LENGTH, *, special_tokens: bool = False
    ) -> tuple[list[int], bool]:
        """Return what `encode` with `truncate` does, and whether the text was cut."""
        room = room_within(max_length)
        byte_length(text)  # refuses a lone surrogate behind the cut, too
        ids = self._beginning(text, room + 1, special_tokens)
        return [self.start_token_id, *ids[:room], self.end_token_id], len(ids) > room

    def _least(self, text: str, special_tokens: bool) -> int:
        """Return how many tokens a text has if all are of the longest."""
        pieces = self._cutters[special_tokens].cut(text)
        return sum(
            1 if isinstance(piece, int) else -(-byte_length(piece) // self._longest)
            for piece in pieces
        )

    def _beginning(self, text: str, count: int, special_tokens: bool) -> list[int]:
        """Return the first `count` ids of a text, or all."""
        ids: list[int] = []
        for piece in self._cutters[special_tokens].cut(text):
            if len(ids) >= count:
                break
            ids.extend([piece] if isinstance(piece, int) else self._first(piece, count - len(ids)))
        return ids

    def _first(self, piece: str, count: int) -> list[int]:
        """Return the first `count` ids of what is between added tokens, or all."""
        size = FIRST_CHARACTERS * max(count, self._longest)
        while size < len(piece):
            encoding = self._bpe.encode(piece[:size])
            if self._certain(encoding, count) >= count:
                return encoding.ids[:count]
            size *= GROWTH
        return self._bpe.encode(piece).ids[:count]

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
        """Return the UTF-8 bytes that a token stands for, often a part of a character."""
        token = self.id_to_token(id)
        if id in self._added:
            return self._added[id]
        try:
            return bytes(BYTE_OF[symbol] for symbol in token)
        except KeyError:  # an entry that no merge makes and that is not spelled in byte symbols
            return token.encode("utf-8")

    def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids, with U+FFFD for bytes that are not valid UTF-8."""
        skipped = self.special_token_ids if skip_special_tokens else ()
        pieces = (self.token_bytes(id) for id in ids if id not in skipped)
        return b"".join(pieces).decode("utf-8", errors="replace")


def byte_length(text: str) -> int:
    """Return how many bytes a text has in UTF-8, or raise InputError where it has none."""
    try:
        return len(text.encode())
    except AttributeError:
        raise InputError(f"The text must be a str, received a {type(text).__name__}.") from None
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text must be valid Unicode, received the lone surrogate "
            f"U+{ord(text[error.start]):04X} at position {error.start}. Decode its bytes with "
            "errors='replace' first."
        ) from None


def room_within(max_length: int) -> int:
    """Return how many tokens of a text `max_length` has room for, or raise InputError."""
    if max_length < 2:
        raise InputError(
            f"max_length must be at least 2, the start and the end token, received {max_length}."
        )
    return max_length - 2


def too_long(max_length: int, received: str) -> InputError:
    """Return the error for a text that does not fit; `received` is how much it has."""
    return InputError(
        f"The text must have at most {max_length} tokens, start and end included, received "
        f"{received}. Shorten it, or truncate to keep its beginning."
    )


class IncrementalDetokenizer:
    """Detokenizes one sequence while it grows.

    A character whose bytes are spread over several tokens is held back until the last of them. All
    pieces that `push` returns and the one of `finish`, joined, equal
    `tokenizer.detokenize(ids, skip_special_tokens=skip_special_tokens)`, for any ids; without
    `keep_first_space` less the space that the text begins with, if any: it only says that a word
    begins.
    """

    def __init__(
        self,
        tokenizer: BartTokenizer,
        *,
        skip_special_tokens: bool = True,
        keep_first_space: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._keep_first_space = keep_first_space
        self._begun = keep_first_space
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """Return the text that this id completes, "" while a character is still open.

        Raises:
            InputError: when the id is not in the vocabulary; the sequence can go on without it.
        """
        if id in self._skipped:
            return ""
        return self._shown(self._decoder.decode(self._tokenizer.token_bytes(id)))

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for a character that was never completed.

        The detokenizer is then ready for another sequence.
        """
        rest = self._shown(self._decoder.decode(b"", final=True))
        self._begun = self._keep_first_space
        return rest

    def _shown(self, text: str) -> str:
        if self._begun or not text:
            return text
        self._begun = True
        return text.removeprefix(" ")


def generated_text(tokenizer: BartTokenizer, ids: Iterable[int]) -> str:
    """Return the text that a model wrote, without the space that begins its first word."""
    detokenizer = IncrementalDetokenizer(tokenizer, keep_first_space=False)
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])
