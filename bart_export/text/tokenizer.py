"""BART's byte-level BPE, on the `tokenizers` library: text to token ids and back.

Every valid Unicode string survives the round trip.
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
from bart_export.config import check_flag, check_path, is_whole, require
from bart_export.errors import InputError, TokenizerError, shown
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

MAX_LENGTH = 1024  # default length in tokens: the positions of BART's own checkpoints

FIRST_CHARACTERS = 8  # per token, in the first prefix tried; English has between 4 and 5
GROWTH = 4  # factor by which a prefix that was too short is lengthened
LONGEST_SPACE = 3  # bytes of a space; the last space of a run may belong to the next word
ANCHOR = 3  # the last certain token's distance from the end, in longest tokens


class BartTokenizer:
    """BART's byte-level BPE; thread-safe.

    A checkpoint's added tokens are always recognized. BART's five special tokens are plain text
    unless the caller passes `special_tokens`, so that untrusted text cannot end or pad a sequence.

    Attributes:
        added_tokens: BART's five and the checkpoint's own.
        add_prefix_space: whether a space is put before a text that does not begin with one.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: list[tuple[str, str]],
        added_tokens: Iterable[AddedToken] = (),
        *,
        add_prefix_space: bool = False,
    ) -> None:
        """Create a tokenizer from the results of `read_vocabulary` and `read_merges`.

        Raises:
            TokenizerError: if the vocabulary lacks an added token, or a part or result of a merge.
            ConfigurationError: if `add_prefix_space` is not a bool, or an added token is not one.
        """
        check_flag("add_prefix_space", add_prefix_space)
        added_tokens = list(added_tokens) if isinstance(added_tokens, Iterable) else [added_tokens]
        for token in added_tokens:
            require(isinstance(token, AddedToken), "An added token", "an AddedToken", token)
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
                "The vocabulary must have every added token, "
                f"received {missing[0]!r} without an id."
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
        """Create a tokenizer from a vocabulary (JSON, {token: id}) and merges (one per line).

        Raises:
            TokenizerError: if a file is missing or damaged, or the two do not match.
            ConfigurationError: if an argument has another type.
        """
        vocabulary = read_vocabulary(Path(check_path("vocabulary_file", vocabulary_file)))
        merges = read_merges(Path(check_path("merges_file", merges_file)))
        try:
            return cls(vocabulary, merges, added_tokens, add_prefix_space=add_prefix_space)
        except TokenizerError as error:
            raise TokenizerError(f"{vocabulary_file} with {merges_file}: {error}") from None

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "BartTokenizer":
        """Create an artifact's tokenizer, or raise ArtifactError or TokenizerError."""
        require(isinstance(artifact, Artifact), "artifact", "from Artifact.open", artifact)
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
        """Number of tokens, including special tokens."""
        return len(self._tokens)

    @property
    def vocabulary(self) -> dict[str, int]:
        """A copy of {token: id}, including special tokens."""
        return dict(self._ids)

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges, highest rank first; read from the library at each access."""
        return [(left, right) for left, right in json.loads(self._bpe.to_str())["model"]["merges"]]

    def token_to_id(self, token: str) -> int:
        """Return the id of a token, spelled as in the vocabulary ("Ġthe"), or raise InputError."""
        if not isinstance(token, str) or token not in self._ids:
            raise InputError(
                f"token must be one of the vocabulary's {self.vocabulary_size} tokens, received "
                f"{shown(token)}. A space is spelled 'Ġ'."
            )
        return self._ids[token]

    def id_to_token(self, id: int) -> str:
        """Return the token with an id, spelled as in the vocabulary, or raise InputError."""
        if not (is_whole(id) and 0 <= id < self.vocabulary_size):
            raise InputError(
                f"A token id must be from 0 to {self.vocabulary_size - 1}, received {shown(id)}."
            )
        return self._tokens[id]

    def tokenize(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the ids of a text, without start and end tokens.

        With `special_tokens`, "<s>", "<pad>", "</s>", "<unk>" and "<mask>" in the text become
        their ids; "<mask>" includes the whitespace before it.

        Raises:
            InputError: if the text has a lone surrogate, which UTF-8 cannot encode.
            ConfigurationError: if `special_tokens` is not a bool.
        """
        check_flag("special_tokens", special_tokens)
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
        """Return the ids of `<s> text </s>`, at most `max_length` of them.

        With `truncate`, a longer text loses its end, most of which is never tokenized. Without it,
        a text that is certain to be too long is refused before it is tokenized.

        Raises:
            InputError: if the text is too long and `truncate` is not set, if it has a lone
                surrogate, or if `max_length` is below 2.
            ConfigurationError: if `truncate` or `special_tokens` is not a bool.
        """
        check_flag("truncate", truncate)
        check_flag("special_tokens", special_tokens)
        if truncate:
            return self.encode_beginning(text, max_length, special_tokens=special_tokens)[0]
        size, room = byte_length(text), room_within(max_length)
        fewest = sum(  # as if every token were the longest
            1 if isinstance(piece, int) else -(-byte_length(piece) // self._longest)
            for piece in self._cutters[special_tokens].cut(text)
        )
        if fewest > room:
            raise too_long(max_length, f"{size} bytes, too many for {room} tokens")
        ids = self.tokenize(text, special_tokens=special_tokens)
        if len(ids) > room:
            raise too_long(max_length, f"{len(ids) + 2}")
        return [self.start_token_id, *ids, self.end_token_id]

    def encode_beginning(
        self, text: str, max_length: int = MAX_LENGTH, *, special_tokens: bool = False
    ) -> tuple[list[int], bool]:
        """Return the ids of `encode` with `truncate`, and whether the text was truncated."""
        room = room_within(max_length)
        byte_length(text)  # refuses a lone surrogate even beyond the cut
        ids: list[int] = []
        for piece in self._cutters[special_tokens].cut(text):
            if len(ids) > room:
                break
            missing = room + 1 - len(ids)
            ids.extend([piece] if isinstance(piece, int) else self._first(piece, missing))
        return [self.start_token_id, *ids[:room], self.end_token_id], len(ids) > room

    def _first(self, piece: str, count: int) -> list[int]:
        """Return the first `count` ids of a text without added tokens, or all if fewer."""
        size = FIRST_CHARACTERS * max(count, self._longest)
        while size < len(piece):
            encoding = self._bpe.encode(piece[:size])
            if self._certain(encoding, count) >= count:
                return encoding.ids[:count]
            size *= GROWTH
        return self._bpe.encode(piece).ids[:count]

    def _certain(self, encoding: Encoding, count: int) -> int:
        """Return how many leading tokens of a prefix stay the same however the text continues.

        The last word may grow, and an apostrophe before it, which is one token, may become a
        contraction. If fewer than `count` are certain, a long last word is examined too, as in
        `graph.tokenizer.certain_in_open_word`, which explains why.
        """
        ids, tokens, words = encoding.ids, encoding.tokens, encoding.word_ids
        before_last = words.index(words[-1])
        if before_last > count:
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
        """Return the UTF-8 bytes of a token, which may be part of a character."""
        token = self.id_to_token(id)
        if id in self._added:
            return self._added[id]
        try:
            return bytes(BYTE_OF[symbol] for symbol in token)
        except KeyError:  # an entry that is not spelled in byte symbols
            return token.encode("utf-8")

    def detokenize(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text for ids, with U+FFFD for bytes that are not valid UTF-8.

        Raises:
            InputError: if an id is out of range, or `ids` is no iterable.
            ConfigurationError: if `skip_special_tokens` is not a bool.
        """
        check_flag("skip_special_tokens", skip_special_tokens)
        skipped = self.special_token_ids if skip_special_tokens else ()
        try:
            given = list(ids)
        except TypeError:
            raise InputError(f"ids must be a list of token ids, received {shown(ids)}.") from None
        pieces = [(id, self.token_bytes(id)) for id in given]
        text = b"".join(piece for id, piece in pieces if id not in skipped)
        return text.decode("utf-8", errors="replace")


def byte_length(text: str) -> int:
    """Return the length of a text in UTF-8 bytes, or raise InputError for invalid Unicode."""
    try:
        return len(text.encode())
    except AttributeError:
        raise InputError(f"The text must be a str, received a {type(text).__name__}.") from None
    except UnicodeEncodeError as error:
        raise InputError(
            "The text must be valid Unicode, received the lone surrogate "
            f"U+{ord(text[error.start]):04X} at position {error.start}. Decode its bytes with "
            "errors='replace' first."
        ) from None


def room_within(max_length: int) -> int:
    """Return `max_length` less the start and end tokens, or raise InputError if below 2."""
    if not is_whole(max_length) or max_length < 2:
        raise InputError(
            "max_length must be an integer of at least 2, for the start and end tokens, received "
            f"{shown(max_length)}."
        )
    return int(max_length) - 2


def too_long(max_length: int, received: str) -> InputError:
    """Return the error for a text that is too long."""
    return InputError(
        f"The text must have at most {max_length} tokens, including start and end, received "
        f"{received}. Shorten it, or use truncate to keep its beginning."
    )


class IncrementalDetokenizer:
    """Detokenizes a sequence one id at a time.

    A character that spans several tokens is returned with the last of them. The results of `push`
    and `finish` add up to `tokenizer.detokenize(ids, skip_special_tokens=skip_special_tokens)`,
    without its leading space unless `keep_first_space`.
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
        """Return the text that an id completes, or "" if it ends within a character.

        Raises:
            InputError: if the id is out of range; the sequence may continue without it.
        """
        piece = self._tokenizer.token_bytes(id)
        return "" if id in self._skipped else self._shown(self._decoder.decode(piece))

    def finish(self) -> str:
        """Return U+FFFD for an incomplete last character, or "", and reset for a new sequence."""
        rest = self._shown(self._decoder.decode(b"", final=True))
        self._begun = self._keep_first_space
        return rest

    def _shown(self, text: str) -> str:
        if self._begun or not text:
            return text
        self._begun = True
        return text.removeprefix(" ")


def generated_text(tokenizer: BartTokenizer, ids: Iterable[int]) -> str:
    """Return the text for generated ids, without a leading space."""
    detokenizer = IncrementalDetokenizer(tokenizer, keep_first_space=False)
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])
