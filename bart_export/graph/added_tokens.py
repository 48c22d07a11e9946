"""Cutting added tokens out of texts inside a TensorFlow graph, as `text.added_tokens` does it.

Texts are code points in one vector, `marks` beside them: NOTHING at a character, TEXT_END after
each text, and an id where an added token was found. All places are looked at side by side; which
of the tokens found overlap others is settled by pointer doubling. What a text that goes on may
change is left out, so that the tokens of a beginning are those of the whole text.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bart_export.text.added_tokens import BLOCK, SPACES, AddedToken, word_characters

NOTHING, TEXT_END = -1, -2
CODE_POINTS, BLANK = 0x110000, ord(" ")
NONE = np.int64(-1)  # no node


class Marked(NamedTuple):
    """Texts as code points, -1 at a mark, and their marks; both int32 (points,)."""

    points: tf.Tensor
    marks: tf.Tensor


class AddedTokens(tf.Module):
    """The added tokens that are looked for at the same time, as tables of the graph.

    A tree of their characters is one table, (node, character) to node.
    """

    def __init__(self, tokens: Iterable[AddedToken], ids: Mapping[str, int]) -> None:
        super().__init__()
        tokens = list(tokens)
        nodes: dict[tuple[int, int], int] = {}
        ends = {0: -1}
        for number, token in enumerate(tokens):
            node = 0
            for character in token.content:
                node = nodes.setdefault((node, ord(character)), len(nodes) + 1)
                ends.setdefault(node, -1)
            ends[node] = number
        keys = [node * CODE_POINTS + point for node, point in nodes]
        self.nodes = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, list(nodes.values()), tf.int64, tf.int64), -1
        )
        self.token_of = tf.constant([ends[node] for node in range(len(ends))], tf.int32)
        self.ids = tf.constant([ids[token.content] for token in tokens], tf.int32)
        self.lengths = tf.constant([len(token.content) for token in tokens], tf.int32)
        self.longest = max(len(token.content) for token in tokens)
        self.lstrip = tf.constant([token.lstrip for token in tokens])
        self.rstrip = tf.constant([token.rstrip for token in tokens])
        self.single = tf.constant([token.single_word for token in tokens])
        self.words = None
        if any(token.single_word for token in tokens):
            self.words = tf.constant(code_points_of_words())

    def cut(self, texts: Marked, goes_on: tf.Tensor) -> Marked:
        """Put a mark in the place of each token; `goes_on` says of each text, bool (batch,)."""
        points, marks = texts
        starts, tokens = self.chosen(points, self.longest_at(points))
        stops = starts + tf.gather(self.lengths, tokens)
        if self.words is not None:
            beside = self.is_word(points, starts - 1) | self.is_word(points, stops)
            kept = ~(tf.gather(self.single, tokens) & beside)
            starts, stops, tokens = (
                tf.boolean_mask(each, kept) for each in (starts, stops, tokens)
            )
        others = tf.concat([[-1], tf.where(~is_space(points))[:, 0], [tf.size(points)]], 0)
        others = tf.cast(others, tf.int32)

        # Marks that are there already and those of tokens, in the order of their places.
        there = tf.cast(tf.where(tf.not_equal(marks, NOTHING))[:, 0], tf.int32)
        places = tf.concat([there, starts], 0)
        order = tf.argsort(places, stable=True)
        kinds = tf.concat([tf.gather(marks, there), tf.gather(self.ids, tokens)], 0)
        left = tf.concat([tf.zeros_like(there, tf.bool), tf.gather(self.lstrip, tokens)], 0)
        right = tf.concat([tf.zeros_like(there, tf.bool), tf.gather(self.rstrip, tokens)], 0)
        begins = tf.where(left, after_other(others, places), places)
        ends = tf.concat([there + 1, stops], 0)
        ends = tf.where(right, next_other(others, ends), ends)
        kinds, places, begins, ends = (
            tf.gather(each, order) for each in (kinds, places, begins, ends)
        )

        # Of a text that goes on nothing counts that another token might reach. Space before that is
        # the last word, which never counts.
        text_ends = tf.boolean_mask(places, tf.equal(kinds, TEXT_END))
        text_begins = tf.concat([tf.zeros_like(text_ends[:1]), text_ends[:-1] + 1], 0)
        certain = tf.where(goes_on, text_ends - self.longest, text_ends)
        certain = tf.maximum(certain, text_begins)
        text = tf.searchsorted(text_ends, places)
        last = tf.equal(kinds, TEXT_END)
        kept = last | (places < tf.gather(certain, text))
        begins = tf.where(last, tf.gather(certain, text), begins)
        kinds, begins, ends = (tf.boolean_mask(each, kept) for each in (kinds, begins, ends))

        # What is between two marks, and the second of them, is one row.
        before = tf.concat([tf.zeros_like(ends[:1]), ends[:-1]], 0)
        sizes = tf.maximum(begins - before, 0) + 1
        rows = tf.ragged.range(before, before + sizes).values
        new = tf.gather(points, tf.minimum(rows, tf.size(points) - 1))
        new_places = (tf.cumsum(sizes) - 1)[:, None]
        new_marks = tf.fill(tf.shape(new), NOTHING)
        return Marked(
            tf.tensor_scatter_nd_update(new, new_places, tf.fill(tf.shape(kinds), -1)),
            tf.tensor_scatter_nd_update(new_marks, new_places, kinds),
        )

    def longest_at(self, points: tf.Tensor) -> tf.Tensor:
        """Return which token begins at each place, the longest, int32 (points,); -1 for none."""
        wide = tf.cast(points, tf.int64)
        padded = tf.concat([wide, [-1]], 0)

        def more(places: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
            return tf.size(places) > 0

        def turn(
            places: tf.Tensor, nodes: tf.Tensor, depth: tf.Tensor, found: tf.Tensor
        ) -> list[tf.Tensor]:
            following = tf.gather(padded, tf.minimum(places + depth, tf.size(points)))
            keys = tf.where(following < 0, NONE, nodes * CODE_POINTS + following)
            nodes = self.nodes.lookup(keys)
            alive = tf.where(nodes >= 0)[:, 0]
            places, nodes = tf.gather(places, alive), tf.gather(nodes, alive)
            tokens = tf.gather(self.token_of, nodes)
            whole = tf.where(tokens >= 0)[:, 0]
            found = tf.tensor_scatter_nd_update(
                found, tf.gather(places, whole)[:, None], tf.gather(tokens, whole)
            )
            return [places, nodes, depth + 1, found]

        places = tf.range(tf.size(points))
        return tf.while_loop(
            more,
            turn,
            [places, tf.zeros_like(wide), 0, tf.fill(tf.shape(points), -1)],
            shape_invariants=[tf.TensorShape(shape) for shape in ([None], [None], [], [None])],
        )[3]

    def chosen(self, points: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return places and tokens that are left, from the left, when none may overlap another."""
        candidates = tf.where(found >= 0)[:, 0]
        starts = tf.cast(candidates, tf.int32)
        tokens = tf.gather(found, candidates)
        stops = starts + tf.gather(self.lengths, tokens)
        none = tf.size(starts)
        # From each to the next that does not overlap it, then from there, and so twice as far.
        jumps = tf.concat([tf.searchsorted(starts, stops), [none]], 0)

        def more(chain: tf.Tensor, jumps: tf.Tensor) -> tf.Tensor:
            return chain[-1] < none

        def turn(chain: tf.Tensor, jumps: tf.Tensor) -> list[tf.Tensor]:
            return [tf.concat([chain, tf.gather(jumps, chain)], 0), tf.gather(jumps, jumps)]

        chain, _ = tf.while_loop(
            more, turn, [tf.zeros([1], tf.int32), jumps],
            shape_invariants=[tf.TensorShape([None])] * 2,
        )  # fmt: skip
        chain = tf.boolean_mask(chain, chain < none)
        return tf.gather(starts, chain), tf.gather(tokens, chain)

    def is_word(self, points: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Return whether there is a word character at places, which may be beyond the points."""
        inside = (places >= 0) & (places < tf.size(points))
        at = tf.gather(points, tf.where(inside, places, 0))
        return inside & (at >= 0) & tf.gather(self.words, tf.maximum(at, 0))


def with_spaces(texts: Marked) -> Marked:
    """Return texts with a blank before each piece between marks that begins with none."""
    points, marks = texts
    before = tf.concat([[TEXT_END], marks[:-1]], 0)[: tf.size(marks)]
    bare = tf.not_equal(before, NOTHING) & tf.equal(marks, NOTHING) & tf.not_equal(points, BLANK)
    repeats = tf.where(bare, 2, 1)
    places = tf.boolean_mask(tf.cumsum(repeats) - 2, bare)[:, None]
    blanks = tf.fill([tf.size(places)], BLANK)
    return Marked(
        tf.tensor_scatter_nd_update(tf.repeat(points, repeats), places, blanks),
        tf.repeat(marks, repeats),
    )


@functools.cache
def code_points_of_words() -> npt.NDArray[np.bool_]:
    """Return which code points are word characters, (CODE_POINTS,)."""
    words = np.zeros(CODE_POINTS, bool)
    for block in range(CODE_POINTS // BLOCK):
        words[[ord(character) for character in word_characters(block)]] = True
    return words


def is_space(points: tf.Tensor) -> tf.Tensor:
    """Return which code points are whitespace, bool (points,)."""
    spaces = tf.constant([ord(space) for space in SPACES], points.dtype)
    return tf.reduce_any(tf.equal(points[:, None], spaces), -1)


def after_other(others: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Return where the whitespace before places begins, given the places of all else."""
    return tf.gather(others, tf.searchsorted(others, places) - 1) + 1


def next_other(others: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Return where the whitespace at places ends, given the places of all else."""
    return tf.gather(others, tf.searchsorted(others, places))
