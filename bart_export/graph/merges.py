"""Words to tokens inside a TensorFlow graph: the merging of byte-level BPE.

Words go in as bytes, tokens come out as ids. All words are merged side by side: each turn of the
loop merges, in every word, the pair of neighbours that comes first in the list of merges, which
is what the `tokenizers` library does to one word after another. The module knows neither texts
nor special tokens.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bart_export.graph.pretokenizer import SEPARATOR
from bart_export.text.vocabulary import BYTE_SYMBOLS

# A pair of ids is one key, (left << 32) + right, and what is known of it one value,
# (rank << 32) + id of the merged token, so that the least value is the first to merge.
HALF = 2**32
NEVER = 2**63 - 1


class Tokens(NamedTuple):
    """The tokens of words, one word after the other.

    Attributes:
        ids: int64 (tokens,).
        counts: int32 (words,), how many tokens each word has.
    """

    ids: tf.Tensor
    counts: tf.Tensor

    def begins(self) -> tf.Tensor:
        """Return where the tokens of each word begin in `ids`, int32 (words,)."""
        return tf.cumsum(self.counts, exclusive=True)


class Merges(tf.Module):
    """The merges of one vocabulary, as a table of the graph.

    Attributes:
        longest: bytes of the longest token that merging can make.
        byte_lengths: int32 (vocabulary,), bytes of each token that merging can make.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
        """Make the table of what `read_vocabulary` and `read_merges` return."""
        super().__init__()
        self.separator = len(vocabulary)  # merges with nothing
        self.longest = max((len(left + right) for left, right in merges), default=1)
        self.in_order = is_in_order(merges)
        symbols = [vocabulary[symbol] for symbol in BYTE_SYMBOLS]
        symbols[SEPARATOR[0]] = self.separator
        self.byte_ids = tf.constant(symbols, tf.int64)
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
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

        def more(least: tf.Tensor, *symbols: tf.Tensor) -> tf.Tensor:
            return tf.reduce_any(least < NEVER)

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
            more,
            turn,
            [tf.math.segment_min(values, word_of), ids, word_of, values],
            shape_invariants=[tf.TensorShape([None])] * 4,
        )
        whole = tf.where(tf.not_equal(ids, self.separator))[:, 0]
        word_of = tf.gather(word_of, whole)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(word_of), word_of, tf.size(words))
        return Tokens(tf.gather(ids, whole), counts)

    def to_merge(self, found: tf.Tensor, word_of: tf.Tensor) -> tf.Tensor:
        """Return which of the places of pairs that come first in their words are merged.

        They are merged from left to right: of the three in "aaaa", the first and the last.

        Args:
            found: int64 (found,), places of symbols that make a pair with the one after them.
            word_of: int32 (symbols,), the word of each symbol.
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
