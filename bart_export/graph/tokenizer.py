"""Texts to token ids and back inside a TensorFlow graph, id for id as `text.tokenizer` does it.

Core operators and constant tables only, so that the graph runs wherever TensorFlow does.

A server must not be stopped by a long text, so no more of a text is read than its first ids need:
a beginning of it, and four times as much while what follows could still change the ids that are
kept. The tokens of whole words are certain; of a word that goes on beyond the beginning those are
that it has however it may end, see `certain_in_open_word`. Nothing is guessed: the ids are always
those of the whole text. At most `4 * (max_length + 2) * longest` bytes are read, `longest` being
the bytes of the longest token, and the merging loop turns at most as often as the longest word
among them has bytes. More is read only where the merges let a character change tokens that end
more than `longest` bytes before it.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bart_export.errors import InputError
from bart_export.graph.pretokenizer import SEPARATOR, Pretokenizer, Words
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS

GROWTH = 4  # times as much text when a beginning was not enough
FIRST_BYTES = 8  # a token of the beginning that is tried first; English has between 4 and 5
LONGEST_SPACE = 3  # bytes; the last of several may turn out to be no part of their word
ANCHOR = 3  # longest tokens between the token that must stay the same and the end of the text

# A pair of ids is one key, (left << 32) + right, and what is known of it one value,
# (rank << 32) + id of the merged token, so that the least value is the first to merge.
HALF = 2**32
NEVER = 2**63 - 1


class Tokens(NamedTuple):
    """The tokens of words, one word after the other."""

    ids: tf.Tensor  # int64 (tokens,)
    counts: tf.Tensor  # int32 (words,), how many tokens each word has

    def begins(self) -> tf.Tensor:
        """Return where the tokens of each word begin in `ids`, int32 (words,)."""
        return tf.cumsum(self.counts, exclusive=True)


class Rows(NamedTuple):
    """Tokenized texts."""

    words: Words  # of all texts, each text followed by its end
    tokens: Tokens  # of the different words
    index: tf.Tensor  # int32 (words,), which of the different words each word is
    counts: tf.Tensor  # int32 (words,), tokens of each word, 0 at an end
    begins: tf.Tensor  # int32 (batch,), tokens of all texts before each text
    lengths: tf.Tensor  # int32 (batch,), tokens of each text


class GraphTokenizer(tf.Module):
    """A tokenizer of texts in Python as a part of TensorFlow graphs.

    BART's special tokens typed in a text are ordinary characters.
    """

    def __init__(self, host: BartTokenizer) -> None:
        super().__init__()
        vocabulary, merges = host.vocabulary, host.merges
        own = [token for token in host.added_tokens if token.content not in SPECIAL_TOKENS]
        self.start_token_id = host.start_token_id
        self.pad_token_id = host.pad_token_id
        self.end_token_id = host.end_token_id
        self.pretokenizer = Pretokenizer(own, vocabulary, add_prefix_space=host.add_prefix_space)
        self.merges = Merges(vocabulary, merges)
        self.longest = max(self.merges.longest, LONGEST_SPACE + 1)
        shown = (
            b"" if id in host.special_token_ids else host.token_bytes(id)
            for id in range(host.vocabulary_size)
        )
        self.token_bytes = tf.constant(list(shown))

    def encode(self, text: tf.Tensor, max_length: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return `<s> text </s>` of each text; a longer text keeps its beginning and both ends.

        Args:
            text: string (batch,). Bytes that are not UTF-8 are read as U+FFFD.
            max_length: most ids of a text, both ends counted.

        Returns:
            Ids, int32 (batch, source), padded to the longest text, and how many of them are real,
            int32 (batch,).

        Raises:
            InputError: when `max_length` has no room for both ends.
        """
        if max_length < 2:
            raise InputError(
                "max_length must be at least 2, the start and the end token, "
                f"received {max_length}."
            )
        room = max_length - 2

        def turn(bytes: tf.Tensor, enough: tf.Tensor, *result: tf.Tensor) -> list[tf.Tensor]:
            cut = sizes > bytes
            # A character that the cut goes through is left out.
            beginnings = valid_utf8(tf.strings.substr(text, zero, bytes), "ignore")
            rows = self.tokenize(beginnings, cut)
            enough = tf.reduce_all(~cut | (self.certain_tokens(rows, cut, room) >= room))
            return [bytes * GROWTH, enough, *self.padded(rows, room)]

        with tf.device("CPU:0"):  # strings are there, and the operators on ids are small
            text = valid_utf8(text, "replace")
            sizes, zero = tf.cast(tf.strings.length(text), tf.int64), tf.constant(0, tf.int64)
            bytes = tf.constant(FIRST_BYTES * max(max_length, self.longest), tf.int64)
            nothing = tf.zeros([tf.size(text), 0], tf.int32), tf.zeros_like(sizes, tf.int32)
            shapes = [tf.TensorShape(shape) for shape in ([], [], [None, None], [None])]
            _, _, ids, lengths = tf.while_loop(
                lambda bytes, enough, *result: ~enough,
                turn,
                [bytes, tf.constant(False), *nothing],
                shape_invariants=shapes,
            )
        return ids, lengths

    def decode(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Return the text of ids, string (batch,), valid UTF-8.

        Special tokens are left out; bytes that are not UTF-8 become U+FFFD. An id that is not in
        the vocabulary is an InvalidArgumentError when the graph runs.

        Args:
            token_ids: int32 (batch, target).
            lengths: int32 (batch,); ids from there on are not looked at.
        """
        with tf.device("CPU:0"):
            real = tf.sequence_mask(lengths, tf.shape(token_ids)[1])
            pieces = tf.gather(self.token_bytes, tf.where(real, token_ids, self.pad_token_id))
            return valid_utf8(tf.strings.reduce_join(pieces, -1), "replace")

    def tokenize(self, text: tf.Tensor, goes_on: tf.Tensor) -> Rows:
        """Tokenize texts as `Pretokenizer.split` takes them; words that are equal only once."""
        words = self.pretokenizer.split(text, goes_on)
        different, index = tf.unique(words.texts)
        tokens = self.merges.tokenize(different)
        counts = tf.where(words.ends, 0, tf.gather(tokens.counts, index))
        counts = tf.where(words.added >= 0, 1, counts)
        row_ends = tf.boolean_mask(tf.cumsum(counts), words.ends)
        begins = tf.concat([tf.zeros_like(row_ends[:1]), row_ends[:-1]], 0)
        return Rows(words, tokens, index, counts, begins, row_ends - begins)

    def padded(self, rows: Rows, room: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the first tokens of each text, `room` at most, between both ends, and lengths."""
        lengths = tf.minimum(rows.lengths, room) + 2
        columns = tf.range(tf.reduce_max(tf.concat([[2], lengths], 0)))
        last = lengths[:, None] - 1
        frame = tf.where(tf.equal(columns, last), self.end_token_id, self.pad_token_id)
        frame = tf.where(columns < last, self.start_token_id, frame)
        places = tf.where((columns > 0) & (columns < last))
        # Where in all tokens of all texts, then in which word, then where in that word.
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
        """Return how many tokens of each text are its own however it goes on, int32 (batch,).

        What follows may change where the last word ends. An apostrophe before it, which is one
        token, may become a contraction with it. If `room` are wanted and these are fewer, a last
        word that is long is looked into.

        Args:
            rows: beginnings of texts.
            cut: bool (batch,), which of them go on.
            room: how many tokens are wanted.
        """
        last = tf.where(rows.words.ends)[:, 0] - 1
        before_last = rows.lengths - tf.gather(rows.counts, tf.maximum(last, 0))
        certain = tf.maximum(before_last - 1, 0)
        sizes = tf.strings.length(tf.gather(rows.words.texts, tf.maximum(last, 0)))
        open = tf.where(cut & (certain < room) & (sizes >= ANCHOR * self.longest))

        def looked_into() -> tf.Tensor:
            inside = self.certain_in_open_word(rows, tf.gather_nd(last, open))
            inside += tf.gather_nd(before_last, open)
            return tf.tensor_scatter_nd_max(certain, open, inside)

        return tf.cond(tf.size(open) > 0, looked_into, lambda: certain)

    def certain_in_open_word(self, rows: Rows, words: tf.Tensor) -> tf.Tensor:
        """Return how many tokens of words that go on are certain, int32 (open,); 0 if it is open.

        Tokens are those of a text if every two neighbours are those of their own text, as a first
        merge across a border would be one between two of them. So the tokens of a text up to the
        last border before any point are the tokens of the text up to that border; it is one of
        the `longest` places up to that point. If the word, ended at each of those, has the
        same token at the same place, then that token and all before it are certain.

        Args:
            rows: tokenized beginnings of texts.
            words: int64 (open,), words of them of at least ANCHOR times `longest` bytes.
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
    """The merges of one vocabulary, as a table of the graph.

    All words are merged side by side: each turn of the loop merges, in every word, the pair of
    neighbours that comes first in the list of merges, which is what the `tokenizers` library does
    to one word after another.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
        super().__init__()
        self.separator = len(vocabulary)  # merges with nothing
        # Bytes of the longest token that merging can make.
        self.longest = max((len(left + right) for left, right in merges), default=1)
        self.in_order = is_in_order(merges)
        symbols = [vocabulary[symbol] for symbol in BYTE_SYMBOLS]
        symbols[SEPARATOR[0]] = self.separator
        self.byte_ids = tf.constant(symbols, tf.int64)
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        # Bytes of each token that merging can make, int32 (vocabulary,).
        self.byte_lengths = tf.constant([len(token) for token in tokens], tf.int32)
        rows = {(-1, -1): (0, 0)}  # no symbol is -1, but a table must not be empty
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
        """Return the tokens of words, string (words,), in which the byte 0xFF cannot be."""
        data = tf.io.decode_raw(tf.strings.reduce_join(words + SEPARATOR), tf.uint8)
        ids = tf.gather(self.byte_ids, tf.cast(data, tf.int32))
        is_end = tf.cast(tf.equal(data, SEPARATOR[0]), tf.int32)
        word_of = tf.cumsum(is_end, exclusive=True)
        values = self.table.lookup(ids * HALF + tf.roll(ids, -1, 0))  # the last is a separator

        def turn(
            least: tf.Tensor, ids: tf.Tensor, word_of: tf.Tensor, values: tf.Tensor
        ) -> list[tf.Tensor]:
            wanted = tf.where(least < NEVER, least, -1)
            found = tf.where(tf.equal(values, tf.gather(wanted, word_of)))
            merged = self.to_merge(found[:, 0], word_of)[:, None]
            ids = tf.tensor_scatter_nd_update(ids, merged, tf.gather_nd(values, merged) % HALF)
            is_left = tf.tensor_scatter_nd_update(
                tf.ones_like(ids, tf.bool), merged + 1, tf.zeros_like(merged[:, 0], tf.bool)
            )
            left = tf.where(is_left)[:, 0]
            ids, word_of, values = (tf.gather(each, left) for each in (ids, word_of, values))
            # A merged symbol has moved by as many as were merged before it. The pair that it
            # begins and the one that it ends are new.
            moved = merged - tf.range(tf.size(merged, tf.int64))[:, None]
            changed = tf.concat([moved, tf.maximum(moved - 1, 0)], 0)
            pairs = tf.gather_nd(ids, changed) * HALF + tf.gather_nd(ids, changed + 1)
            values = tf.tensor_scatter_nd_update(values, changed, self.table.lookup(pairs))
            return [tf.math.segment_min(values, word_of), ids, word_of, values]

        _, ids, word_of, _ = tf.while_loop(
            lambda least, *symbols: tf.reduce_any(least < NEVER),
            turn,
            [tf.math.segment_min(values, word_of), ids, word_of, values],
            shape_invariants=[tf.TensorShape([None])] * 4,
        )
        whole = tf.where(tf.not_equal(ids, self.separator))[:, 0]
        word_of = tf.gather(word_of, whole)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(word_of), word_of, tf.size(words))
        return Tokens(tf.gather(ids, whole), counts)

    def to_merge(self, found: tf.Tensor, word_of: tf.Tensor) -> tf.Tensor:
        """Return which pairs are merged of those that come first in their words.

        `found` int64 (found,) are the places of their left symbols, `word_of` int32 (symbols,) the
        word of each symbol. They are merged from left to right: of the three in "aaaa", the first
        and the last.
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
    """Return where a vector has another value than before, bool (values,)."""
    return tf.concat([[True], tf.not_equal(values[1:], values[:-1])], 0)


def is_in_order(merges: list[tuple[str, str]]) -> bool:
    """Return whether all merges that make a token come before those that use it.

    Then merging a pair makes no pair that comes before it, and all its occurrences can be merged
    at once. A vocabulary in which one token is made by two merges may be otherwise.
    """
    used: set[str] = set()
    for left, right in merges:
        used.update((left, right))
        if left + right in used:
            return False
    return True


def valid_utf8(text: tf.Tensor, errors: str) -> tf.Tensor:
    """Return texts of which bytes that are not UTF-8 are replaced by U+FFFD or ignored.

    As many characters take their place as with Python's `bytes.decode`.
    """
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors=errors)
