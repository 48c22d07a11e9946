"""Texts to words inside a TensorFlow graph: where byte-level BPE may not merge across.

Added tokens are cut out first, as `text.added_tokens` does it. The rest is cut by GPT-2's pattern,
which wants a look-ahead that TensorFlow's regular expressions (RE2) do not have, so it is found
from the class of each code point and of its neighbours. What a letter is, is asked of the
`tokenizers` library when the graph is built: both always agree.

Texts are code points in one vector, `marks` beside them: NOTHING at a character, TEXT_END after
each text, and an id where an added token was found.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from bart_export.text.added_tokens import BLOCK, SPACES, AddedToken, word_characters

OTHER, LETTER, NUMBER, SPACE, END = range(5)
CLASSES = {LETTER: r"\p{L}+", NUMBER: r"\p{N}+", SPACE: r"\s+"}
CODE_POINTS, SURROGATES = 0x110000, range(0xD800, 0xE000)
NOTHING, TEXT_END = -1, -2
NONE = np.int64(-1)  # no node
PAGE = 256  # code points

# What may follow an apostrophe to be a word of its own, as GPT-2's pattern lists it.
APOSTROPHE, BLANK, WHITESPACE = ord("'"), ord(" "), [ord(space) for space in SPACES]
SHORT_ENDINGS = [ord(letter) for letter in "stmd"]
LONG_ENDINGS = [ord(first) * CODE_POINTS + ord(second) for first, second in ("re", "ve", "ll")]

# A byte that valid UTF-8 never has stands after each text, and after each word, of a batch.
SEPARATOR = b"\xff"


class Words(NamedTuple):
    """The words of a batch of texts: those of a text in order, then one that marks its end."""

    texts: tf.Tensor  # string (words,), the bytes of each, anything at an end or an added token
    ends: tf.Tensor  # bool (words,), whether this is the end of a text
    added: tf.Tensor  # int32 (words,), the id of an added token; negative for all else


@functools.cache
def code_point_classes() -> npt.NDArray[np.uint8]:
    """Return the class of every code point, (CODE_POINTS,), as the `tokenizers` library has it."""
    classes = np.full(CODE_POINTS, OTHER, np.uint8)
    valid = np.array([code for code in range(CODE_POINTS) if code not in SURROGATES])
    every = "".join(map(chr, valid))
    # One slow pass finds the runs of any class, a quick one by class tells them apart.
    runs = matches("|".join(CLASSES.values()), every)
    firsts = "".join(every[begin] for begin, _ in runs)
    for kind, pattern in CLASSES.items():
        for first, last in matches(pattern, firsts):
            for begin, end in runs[first:last]:
                classes[valid[begin:end]] = kind
    return classes


def matches(pattern: str, text: str) -> list[tuple[int, int]]:
    """Return begin and end of all that a regular expression of `tokenizers` finds in a text."""
    found = Split(Regex(pattern), behavior="removed", invert=True).pre_tokenize_str(text)
    return [offsets for _, offsets in found]


class Pretokenizer(tf.Module):
    """Cuts texts into added tokens, and into words as GPT-2's pattern does."""

    def __init__(
        self,
        added_tokens: Sequence[AddedToken] = (),
        ids: Mapping[str, int] | None = None,
        *,
        add_prefix_space: bool = False,
    ) -> None:
        """Make the tables.

        `ids` are those of `added_tokens`. With `add_prefix_space` a blank is put before what begins
        with none.
        """
        super().__init__()
        self.passes = [
            AddedTokens(tokens, ids or {})
            for kind in (False, True)
            if (tokens := [token for token in added_tokens if token.normalized is kind])
        ]
        self.add_prefix_space = add_prefix_space
        rows = code_point_classes().reshape(-1, PAGE)
        pages, page_of = np.unique(rows, axis=0, return_inverse=True)
        self.pages = tf.constant(pages.reshape(-1))
        self.page_begins = tf.constant(page_of.reshape(-1) * PAGE, tf.int32)

    def split(self, text: tf.Tensor, goes_on: tf.Tensor | None = None) -> Words:
        """Cut texts into words.

        Args:
            text: string (batch,) of valid UTF-8.
            goes_on: bool (batch,), which of them are beginnings; None for none. Of those what is
                to come may change the last words, and with added tokens some are left out.
        """
        joined = tf.strings.reduce_join(text + SEPARATOR)
        decoded = tf.raw_ops.UnicodeDecodeWithOffsets(
            input=joined, input_encoding="UTF-8", errors="replace"
        )
        begins = decoded.char_to_byte_starts
        data = tf.io.decode_raw(joined, tf.uint8)
        ends = tf.equal(tf.gather(data, begins), SEPARATOR[0])
        texts = Marked(tf.where(ends, -1, decoded.char_values), tf.where(ends, TEXT_END, NOTHING))
        for tokens in self.passes:
            texts = tokens.cut(texts, tf.zeros_like(text, tf.bool) if goes_on is None else goes_on)
        points, marks = with_spaces(texts) if self.add_prefix_space else texts
        first = tf.where(word_begins(points, self.classes(points)))[:, 0]
        splits = tf.concat([first, tf.shape(points, tf.int64)], 0)
        words = tf.raw_ops.UnicodeEncode(
            input_values=points, input_splits=splits, output_encoding="UTF-8"
        )
        marks = tf.gather(marks, first)
        return Words(words, tf.equal(marks, TEXT_END), marks)

    def classes(self, points: tf.Tensor) -> tf.Tensor:
        """Return the class of each code point, uint8 (points,), END of a mark."""
        valid = tf.maximum(points, 0)
        begins = tf.gather(self.page_begins, valid // PAGE)
        kinds = tf.gather(self.pages, begins + valid % PAGE)
        return tf.where(points < 0, tf.constant(END, tf.uint8), kinds)


def word_begins(points: tf.Tensor, kinds: tf.Tensor) -> tf.Tensor:
    """Return where GPT-2's pattern begins a match, bool (points,).

    A word is a run of one class, whose look-ahead and alternatives come down to three exceptions:
    the last whitespace of a run that something follows is for itself; if it is a blank it belongs
    to what follows; and an apostrophe that begins a word takes the letters of a contraction, and
    no more.

    Args:
        points: int32 (points,), the code points of all texts, something at each end of a text.
        kinds: uint8 (points,), their classes.
    """
    before, after = shifted(kinds, 1, END), shifted(kinds, -1, END)
    spaces, end = tf.equal(kinds, SPACE), tf.equal(kinds, END)
    changes = tf.not_equal(kinds, before) | end
    blank_before = tf.equal(shifted(points, 1, 0), BLANK)
    taken = blank_before & ~end  # another space is no change either
    goes_on = tf.not_equal(after, SPACE) & tf.not_equal(after, END)
    last_space = spaces & tf.equal(before, SPACE) & goes_on
    begins = changes & ~taken | last_space

    wide = tf.cast(points, tf.int64)
    following = shifted(wide, -1, 0)
    endings = following * CODE_POINTS + shifted(wide, -2, 0)
    quotes = begins & tf.equal(points, APOSTROPHE)
    short = quotes & one_of(following, SHORT_ENDINGS)
    long = quotes & one_of(endings, LONG_ENDINGS)
    inside = shifted(short | long, 1, False)
    return begins & ~inside | shifted(short, 2, False) | shifted(long, 3, False)


def shifted(values: tf.Tensor, by: int, fill: int | bool) -> tf.Tensor:
    """Move the entries of a vector to the right, or to the left if `by` is negative."""
    edge = tf.fill([tf.minimum(tf.size(values), abs(by))], tf.constant(fill, values.dtype))
    if by > 0:
        return tf.concat([edge, values[:-by]], 0)
    return tf.concat([values[-by:], edge], 0)


def one_of(values: tf.Tensor, accepted: list[int]) -> tf.Tensor:
    """Return whether each of the values, (values,), is one of the accepted."""
    return tf.reduce_any(tf.equal(values[:, None], tf.constant(accepted, values.dtype)), -1)


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
        others = tf.where(~one_of(points, WHITESPACE))[:, 0]  # all that is no whitespace
        others = tf.cast(tf.concat([[-1], others, [tf.size(points)]], 0), tf.int32)

        # Marks that are there already and those of tokens, in the order of their places.
        earlier = tf.cast(tf.where(tf.not_equal(marks, NOTHING))[:, 0], tf.int32)
        places = tf.concat([earlier, starts], 0)
        order = tf.argsort(places, stable=True)
        kinds = tf.concat([tf.gather(marks, earlier), tf.gather(self.ids, tokens)], 0)
        left = tf.concat([tf.zeros_like(earlier, tf.bool), tf.gather(self.lstrip, tokens)], 0)
        right = tf.concat([tf.zeros_like(earlier, tf.bool), tf.gather(self.rstrip, tokens)], 0)
        begins = tf.where(left, tf.gather(others, tf.searchsorted(others, places) - 1) + 1, places)
        ends = tf.concat([earlier + 1, stops], 0)
        ends = tf.where(right, tf.gather(others, tf.searchsorted(others, ends)), ends)
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
            lambda places, *others: tf.size(places) > 0,
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

        def turn(chain: tf.Tensor, jumps: tf.Tensor) -> list[tf.Tensor]:
            return [tf.concat([chain, tf.gather(jumps, chain)], 0), tf.gather(jumps, jumps)]

        chain, _ = tf.while_loop(
            lambda chain, jumps: chain[-1] < none,
            turn,
            [tf.zeros([1], tf.int32), jumps],
            shape_invariants=[tf.TensorShape([None])] * 2,
        )
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
