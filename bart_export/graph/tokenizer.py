"""The tokenizer inside a TensorFlow graph; its ids equal those of `text.tokenizer`.

It uses only core operators and constant tables, so that the graph runs wherever TensorFlow does.

So that a long text cannot block a server, only as much of a text is read as its first ids need: a
beginning, then four times as much for as long as the rest could change the ids that are kept. The
tokens of complete words are certain; an unfinished word also has tokens that stay the same however
it ends, see `certain_in_open_word`. The ids are always those of the full text. At most
`4 * (max_length + 2) * longest` bytes are read, where `longest` is the size of the longest token,
and the merge loop runs at most once per byte of the longest word read. More is read only if the
merges let a character change tokens that end more than `longest` bytes before it.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bart_export.errors import InputError
from bart_export.graph.pretokenizer import SEPARATOR, Pretokenizer, Words
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS

GROWTH = 4  # factor by which the beginning grows if it was not enough
FIRST_BYTES = 8  # bytes per token in the first beginning; English has 4 to 5
LONGEST_SPACE = 3  # bytes of a whitespace character; the last of a run may belong to the next word
ANCHOR = 3  # distance, in longest tokens, from the end to the token that must stay the same

# The merge table maps pairs, (left << 32) + right, to (rank << 32) + merged id, so that the
# smallest value merges first.
HALF = 2**32
NEVER = 2**63 - 1


class Tokens(NamedTuple):
    """The concatenated tokens of words."""

    ids: tf.Tensor  # int64 (tokens,)
    counts: tf.Tensor  # int32 (words,), number of tokens of each word

    def begins(self) -> tf.Tensor:
        """Return the index in `ids` of each word's first token, int32 (words,)."""
        return tf.cumsum(self.counts, exclusive=True)


class Rows(NamedTuple):
    """Tokenized texts."""

    words: Words
    tokens: Tokens  # of the distinct words
    index: tf.Tensor  # int32 (words,), each word's index among the distinct words
    counts: tf.Tensor  # int32 (words,), number of tokens of each word, 0 at an end marker
    begins: tf.Tensor  # int32 (batch,), number of tokens before each text
    lengths: tf.Tensor  # int32 (batch,), number of tokens of each text


class GraphTokenizer(tf.Module):
    """A `BartTokenizer` for TensorFlow graphs.

    BART's special tokens in a text are treated as ordinary characters.
    """

    def __init__(self, host: BartTokenizer) -> None:
        super().__init__()
        vocabulary, merges = host.vocabulary, host.merges
        added_tokens = [token for token in host.added_tokens if token.content not in SPECIAL_TOKENS]
        self.start_token_id = host.start_token_id
        self.pad_token_id = host.pad_token_id
        self.end_token_id = host.end_token_id
        self.pretokenizer = Pretokenizer(
            added_tokens, vocabulary, add_prefix_space=host.add_prefix_space
        )
        self.merges = Merges(vocabulary, merges)
        self.longest = max(self.merges.longest, LONGEST_SPACE + 1)
        shown = (
            b"" if id in host.special_token_ids else host.token_bytes(id)
            for id in range(host.vocabulary_size)
        )
        self.token_bytes = tf.constant(list(shown))

    def encode(self, text: tf.Tensor, max_length: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Tokenize texts as `<s> text </s>`, truncated before the `</s>`.

        Args:
            text: string (batch,). Invalid UTF-8 is read as U+FFFD.
            max_length: maximum number of ids per text, including `<s>` and `</s>`.

        Returns:
            Ids, int32 (batch, source), padded to the longest text, and their lengths, int32
            (batch,).

        Raises:
            InputError: if `max_length` is below 2.
        """
        if max_length < 2:
            raise InputError(
                "max_length must be at least 2, the start and the end token, "
                f"received {max_length}."
            )
        room = max_length - 2

        def body(bytes: tf.Tensor, enough: tf.Tensor, *result: tf.Tensor) -> list[tf.Tensor]:
            cut = sizes > bytes
            # "ignore" drops a character that is cut in two.
            beginnings = valid_utf8(tf.strings.substr(text, zero, bytes), "ignore")
            rows = self.tokenize(beginnings, cut)
            enough = tf.reduce_all(~cut | (self.certain_tokens(rows, cut, room) >= room))
            return [bytes * GROWTH, enough, *self.padded(rows, room)]

        with tf.device("CPU:0"):  # TensorFlow keeps strings there, and the id operators are small
            text = valid_utf8(text, "replace")
            sizes, zero = tf.cast(tf.strings.length(text), tf.int64), tf.constant(0, tf.int64)
            bytes = tf.constant(FIRST_BYTES * max(max_length, self.longest), tf.int64)
            nothing = tf.zeros([tf.size(text), 0], tf.int32), tf.zeros_like(sizes, tf.int32)
            shapes = [tf.TensorShape(shape) for shape in ([], [], [None, None], [None])]
            _, _, ids, lengths = tf.while_loop(
                lambda bytes, enough, *result: ~enough,
                body,
                [bytes, tf.constant(False), *nothing],
                shape_invariants=shapes,
            )
        return ids, lengths

    def decode(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Decode ids to texts, string (batch,), without special tokens.

        Invalid UTF-8 becomes U+FFFD. Ids outside the vocabulary raise InvalidArgumentError when the
        graph runs.

        Args:
            token_ids: int32 (batch, target).
            lengths: int32 (batch,); ids beyond a text's length are ignored.
        """
        with tf.device("CPU:0"):
            real = tf.sequence_mask(lengths, tf.shape(token_ids)[1])
            pieces = tf.gather(self.token_bytes, tf.where(real, token_ids, self.pad_token_id))
            return valid_utf8(tf.strings.reduce_join(pieces, -1), "replace")

    def tokenize(self, text: tf.Tensor, unfinished: tf.Tensor) -> Rows:
        """Tokenize texts, each distinct word once; arguments as in `Pretokenizer.split`."""
        words = self.pretokenizer.split(text, unfinished)
        different, index = tf.unique(words.texts)
        tokens = self.merges.tokenize(different)
        counts = tf.where(words.ends, 0, tf.gather(tokens.counts, index))
        counts = tf.where(words.added >= 0, 1, counts)
        row_ends = tf.boolean_mask(tf.cumsum(counts), words.ends)
        begins = tf.concat([tf.zeros_like(row_ends[:1]), row_ends[:-1]], 0)
        return Rows(words, tokens, index, counts, begins, row_ends - begins)

    def padded(self, rows: Rows, room: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return at most `room` tokens of each text between `<s>` and `</s>`, and the lengths."""
        lengths = tf.minimum(rows.lengths, room) + 2
        columns = tf.range(tf.reduce_max(tf.concat([[2], lengths], 0)))
        last = lengths[:, None] - 1
        frame = tf.where(tf.equal(columns, last), self.end_token_id, self.pad_token_id)
        frame = tf.where(columns < last, self.start_token_id, frame)
        places = tf.where((columns > 0) & (columns < last))
        # The token's number in the batch, then its word, then its number in that word.
        number = tf.gather(rows.begins, places[:, 0]) + tf.cast(places[:, 1], tf.int32) - 1
        word_ends = tf.cumsum(rows.counts)
        word = tf.searchsorted(word_ends, number, side="right")
        number -= tf.gather(word_ends - rows.counts, word)
        number += tf.gather(rows.tokens.begins(), tf.gather(rows.index, word))
        ids = tf.cast(tf.gather(rows.tokens.ids, number), tf.int32)
        added = tf.gather(rows.words.added, word)
        ids = tf.where(added >= 0, added, ids)
        return tf.tensor_scatter_nd_update(frame, places, ids), lengths

    def certain_tokens(self, rows: Rows, cut: tf.Tensor, room: int) -> tf.Tensor:
        """Return how many leading tokens of each text stay the same however it continues.

        Further text may extend the last word, or turn an apostrophe before it, which is one token,
        into a contraction. If fewer than `room` tokens are certain, a long last word is examined
        too. `cut` is bool (batch,), true for texts that continue; the result is int32 (batch,).
        """
        last = tf.where(rows.words.ends)[:, 0] - 1
        before_last = rows.lengths - tf.gather(rows.counts, tf.maximum(last, 0))
        certain = tf.maximum(before_last - 1, 0)
        sizes = tf.strings.length(tf.gather(rows.words.texts, tf.maximum(last, 0)))
        open = tf.where(cut & (certain < room) & (sizes >= ANCHOR * self.longest))

        def with_last_words() -> tf.Tensor:
            inside = self.certain_in_open_word(rows, tf.gather_nd(last, open))
            inside += tf.gather_nd(before_last, open)
            return tf.tensor_scatter_nd_max(certain, open, inside)

        return tf.cond(tf.size(open) > 0, with_last_words, lambda: certain)

    def certain_in_open_word(self, rows: Rows, words: tf.Tensor) -> tf.Tensor:
        """Return how many leading tokens of unfinished words are certain, int32 (open,), or 0.

        A sequence of tokens is the tokenization of its text if every two adjacent tokens are the
        tokenization of their text, as the first merge across a border would be between those two.
        So the tokens of a text up to a border are the tokenization of the text up to that border,
        and one of the `longest` positions up to any point is a border. If the word, cut off at each
        of these positions, has the same token at the same place, then that token and all before it
        are certain. `words` are the indices, int64 (open,), of words of at least ANCHOR * `longest`
        bytes.
        """
        tokens, longest = rows.tokens, self.longest
        texts, index = tf.gather(rows.words.texts, words), tf.gather(rows.index, words)
        sizes = tf.strings.length(texts)
        first = tf.gather(tokens.begins(), index)
        places = tf.cumsum(tf.gather(self.merges.byte_lengths, tokens.ids), exclusive=True)
        base = tf.gather(places, first)
        anchor = tf.searchsorted(places, base + sizes - ANCHOR * longest, side="right") - 1
        tails = tf.strings.substr(texts, tf.gather(places, anchor) - base, sizes)
        ends = tf.strings.length(tails)[:, None] - tf.range(longest)
        repeated = tf.tile(tails[:, None], [1, longest])
        ended = tf.strings.substr(repeated, tf.zeros_like(ends), ends)
        others = self.merges.tokenize(tf.reshape(ended, [-1]))
        others_first = tf.reshape(tf.gather(others.ids, others.begins()), [-1, longest])
        same = tf.equal(others_first, tf.gather(tokens.ids, anchor)[:, None])
        return tf.where(tf.reduce_all(same, 1), anchor - first + 1, 0)


class Merges(tf.Module):
    """BPE merges as a table of the graph.

    All words are merged in parallel: each iteration merges the adjacent pair with the lowest rank
    in every word, as the `tokenizers` library does word by word.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
        super().__init__()
        self.separator = len(vocabulary)  # an id without merges
        # Size in bytes of the longest merged token.
        self.longest = max((len(left + right) for left, right in merges), default=1)
        self.in_order = is_in_order(merges)
        symbols = [vocabulary[symbol] for symbol in BYTE_SYMBOLS]
        symbols[SEPARATOR[0]] = self.separator
        self.byte_ids = tf.constant(symbols, tf.int64)
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        # Size in bytes of each merged token, int32 (vocabulary,).
        self.byte_lengths = tf.constant([len(token) for token in tokens], tf.int32)
        rows = {(-1, -1): (0, 0)}  # a table must not be empty; no symbol is -1
        for rank, (left, right) in enumerate(merges):
            rows[vocabulary[left], vocabulary[right]] = rank, vocabulary[left + right]
        keys, values = (
            np.array(list(pairs), np.int64).reshape(-1, 2) @ [HALF, 1]
            for pairs in (rows.keys(), rows.values())
        )
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, values, tf.int64, tf.int64), NEVER
        )

    def tokenize(self, words: tf.Tensor) -> Tokens:
        """Return the tokens of words, string (words,), which must not contain the byte 0xFF."""
        data = tf.io.decode_raw(tf.strings.reduce_join(words + SEPARATOR), tf.uint8)
        ids = tf.gather(self.byte_ids, tf.cast(data, tf.int32))
        is_end = tf.cast(tf.equal(data, SEPARATOR[0]), tf.int32)
        word_of = tf.cumsum(is_end, exclusive=True)
        values = self.table.lookup(ids * HALF + tf.roll(ids, -1, 0))  # the last is a separator

        def body(
            lowest: tf.Tensor, ids: tf.Tensor, word_of: tf.Tensor, values: tf.Tensor
        ) -> list[tf.Tensor]:
            targets = tf.where(lowest < NEVER, lowest, -1)
            found = tf.where(tf.equal(values, tf.gather(targets, word_of)))
            merged = self.pairs_to_merge(found[:, 0], word_of)[:, None]
            ids = tf.tensor_scatter_nd_update(ids, merged, tf.gather_nd(values, merged) % HALF)
            is_left = tf.tensor_scatter_nd_update(
                tf.ones_like(ids, tf.bool), merged + 1, tf.zeros_like(merged[:, 0], tf.bool)
            )
            left = tf.where(is_left)[:, 0]
            ids, word_of, values = (tf.gather(each, left) for each in (ids, word_of, values))
            # Each merged symbol has moved by the number of merges before it. The pairs that it
            # begins and ends are new.
            moved = merged - tf.range(tf.size(merged, tf.int64))[:, None]
            changed = tf.concat([moved, tf.maximum(moved - 1, 0)], 0)
            pairs = tf.gather_nd(ids, changed) * HALF + tf.gather_nd(ids, changed + 1)
            values = tf.tensor_scatter_nd_update(values, changed, self.table.lookup(pairs))
            return [tf.math.segment_min(values, word_of), ids, word_of, values]

        _, ids, word_of, _ = tf.while_loop(
            lambda lowest, *symbols: tf.reduce_any(lowest < NEVER),
            body,
            [tf.math.segment_min(values, word_of), ids, word_of, values],
            shape_invariants=[tf.TensorShape([None])] * 4,
        )
        kept = tf.where(tf.not_equal(ids, self.separator))[:, 0]
        word_of = tf.gather(word_of, kept)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(word_of), word_of, tf.size(words))
        return Tokens(tf.gather(ids, kept), counts)

    def pairs_to_merge(self, found: tf.Tensor, word_of: tf.Tensor) -> tf.Tensor:
        """Return the pairs to merge among those that rank first in their words.

        Pairs are merged from left to right: of the three pairs in "aaaa", the first and the last.
        `found`, int64 (found,), are the positions of their left symbols; `word_of`, int32
        (symbols,), is the word of each symbol.
        """
        if not self.in_order:
            return tf.boolean_mask(found, differs(tf.gather(word_of, found)))
        number = tf.range(tf.size(found))
        is_first = differs(found - tf.cast(number, tf.int64))  # of a run without a gap
        first = tf.gather(
            tf.boolean_mask(number, is_first), tf.cumsum(tf.cast(is_first, tf.int32)) - 1
        )
        return tf.boolean_mask(found, tf.equal((number - first) % 2, 0))


def differs(values: tf.Tensor) -> tf.Tensor:
    """Return where a vector's value differs from the one before, bool (values,)."""
    return tf.concat([[True], tf.not_equal(values[1:], values[:-1])], 0)


def is_in_order(merges: list[tuple[str, str]]) -> bool:
    """Return whether every merge that produces a token ranks before the merges that use it.

    Then a merge never creates a pair that ranks before it, and all occurrences of a pair can be
    merged in one iteration. This may not hold if two merges produce the same token.
    """
    used: set[str] = set()
    for left, right in merges:
        used.update((left, right))
        if left + right in used:
            return False
    return True


def valid_utf8(text: tf.Tensor, errors: str) -> tf.Tensor:
    """Replace invalid UTF-8 with U+FFFD or, if errors="ignore", drop it, as `bytes.decode` does."""
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors=errors)
