"""Pretokenization inside a TensorFlow graph: splits texts into the words within which BPE merges.

Added tokens are split off first, as in `text.added_tokens`. The rest is split by GPT-2's pattern,
whose look-ahead TensorFlow's regular expressions (RE2) do not support, so word boundaries are
computed from the classes of neighbouring code points. The classes come from the `tokenizers`
library when the graph is built, so both always agree.

A batch of texts is one vector of code points and one of marks: NOTHING for a character, TEXT_END
after each text, and the token id where an added token was found.
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

# The endings that form a separate word with an apostrophe in GPT-2's pattern.
APOSTROPHE, BLANK, WHITESPACE = ord("'"), ord(" "), [ord(space) for space in SPACES]
SHORT_ENDINGS = [ord(letter) for letter in "stmd"]
LONG_ENDINGS = [ord(first) * CODE_POINTS + ord(second) for first, second in ("re", "ve", "ll")]

# Ends each text and each word of a batch; valid UTF-8 never contains this byte.
SEPARATOR = b"\xff"


class Words(NamedTuple):
    """The words of a batch of texts in order; each text is followed by an end marker."""

    texts: tf.Tensor  # string (words,), each word's bytes; unspecified for ends and added tokens
    ends: tf.Tensor  # bool (words,), whether this is an end marker
    added: tf.Tensor  # int32 (words,), the id of an added token, otherwise negative


@functools.cache
def code_point_classes() -> npt.NDArray[np.uint8]:
    """Return the class of every code point in the `tokenizers` library, (CODE_POINTS,)."""
    classes = np.full(CODE_POINTS, OTHER, np.uint8)
    valid = np.array([code for code in range(CODE_POINTS) if code not in SURROGATES])
    every = "".join(map(chr, valid))
    # One slow pass finds the runs of all classes; a fast pass per class tells them apart.
    runs = matches("|".join(CLASSES.values()), every)
    firsts = "".join(every[begin] for begin, _ in runs)
    for kind, pattern in CLASSES.items():
        for first, last in matches(pattern, firsts):
            for begin, end in runs[first:last]:
                classes[valid[begin:end]] = kind
    return classes


def matches(pattern: str, text: str) -> list[tuple[int, int]]:
    """Return the start and end of each match of a `tokenizers` regular expression."""
    found = Split(Regex(pattern), behavior="removed", invert=True).pre_tokenize_str(text)
    return [offsets for _, offsets in found]


class Pretokenizer(tf.Module):
    """Splits texts into added tokens and, by GPT-2's pattern, words."""

    def __init__(
        self,
        added_tokens: Sequence[AddedToken] = (),
        ids: Mapping[str, int] | None = None,
        *,
        add_prefix_space: bool = False,
    ) -> None:
        """Build the tables; `ids` maps the content of `added_tokens` to ids.

        `add_prefix_space` inserts a space before each piece of text that does not start with one.
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

    def split(self, text: tf.Tensor, unfinished: tf.Tensor | None = None) -> Words:
        """Split texts into words.

        Args:
            text: string (batch,), valid UTF-8.
            unfinished: bool (batch,), true for texts that continue beyond their end; None if none
                do. Their last words may still change, and are partly left out if there are added
                tokens.
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
            texts = tokens.mark_tokens(
                texts, tf.zeros_like(text, tf.bool) if unfinished is None else unfinished
            )
        points, marks = with_spaces(texts) if self.add_prefix_space else texts
        first = tf.where(word_begins(points, self.classes(points)))[:, 0]
        splits = tf.concat([first, tf.shape(points, tf.int64)], 0)
        words = tf.raw_ops.UnicodeEncode(
            input_values=points, input_splits=splits, output_encoding="UTF-8"
        )
        marks = tf.gather(marks, first)
        return Words(words, tf.equal(marks, TEXT_END), marks)

    def classes(self, points: tf.Tensor) -> tf.Tensor:
        """Return the class of each code point, uint8 (points,); marks are END."""
        valid = tf.maximum(points, 0)
        begins = tf.gather(self.page_begins, valid // PAGE)
        kinds = tf.gather(self.pages, begins + valid % PAGE)
        return tf.where(points < 0, tf.constant(END, tf.uint8), kinds)


def word_begins(points: tf.Tensor, kinds: tf.Tensor) -> tf.Tensor:
    """Return where a match of GPT-2's pattern begins, bool (points,).

    A word is a run of one class, with three exceptions from the pattern's look-ahead and
    alternatives. The last whitespace of a run before other text is a separate word; if it is a
    space, it belongs to the following word. An apostrophe that begins a word takes only the
    letters of a contraction.

    Args:
        points: int32 (points,), the code points of all texts, with any value at a mark.
        kinds: uint8 (points,), their classes.
    """
    before, after = shifted(kinds, 1, END), shifted(kinds, -1, END)
    spaces, end = tf.equal(kinds, SPACE), tf.equal(kinds, END)
    changes = tf.not_equal(kinds, before) | end
    blank_before = tf.equal(shifted(points, 1, 0), BLANK)
    taken = blank_before & ~end  # a second space is not a change either
    text_follows = tf.not_equal(after, SPACE) & tf.not_equal(after, END)
    last_space = spaces & tf.equal(before, SPACE) & text_follows
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
    """Shift a vector to the right by `by` places, or to the left if it is negative."""
    edge = tf.fill([tf.minimum(tf.size(values), abs(by))], tf.constant(fill, values.dtype))
    if by > 0:
        return tf.concat([edge, values[:-by]], 0)
    return tf.concat([values[-by:], edge], 0)


def one_of(values: tf.Tensor, accepted: list[int]) -> tf.Tensor:
    """Return whether each of the values (values,) is in `accepted`."""
    return tf.reduce_any(tf.equal(values[:, None], tf.constant(accepted, values.dtype)), -1)


class Marked(NamedTuple):
    """Texts as code points, -1 at a mark, and their marks; both int32 (points,)."""

    points: tf.Tensor
    marks: tf.Tensor


class AddedTokens(tf.Module):
    """The added tokens of one pass, as tables of the graph.

    They are stored as a trie of characters, a table from (node, character) to node.
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

    def mark_tokens(self, texts: Marked, unfinished: tf.Tensor) -> Marked:
        """Replace each token by its mark; `unfinished` as in `Pretokenizer.split`."""
        points, marks = texts
        starts, tokens = self.resolve_overlaps(self.longest_at(points))
        stops = starts + tf.gather(self.lengths, tokens)
        if self.words is not None:
            adjacent = self.is_word(points, starts - 1) | self.is_word(points, stops)
            kept = ~(tf.gather(self.single, tokens) & adjacent)
            starts, stops, tokens = (
                tf.boolean_mask(each, kept) for each in (starts, stops, tokens)
            )
        others = tf.where(~one_of(points, WHITESPACE))[:, 0]  # everything but whitespace
        others = tf.cast(tf.concat([[-1], others, [tf.size(points)]], 0), tf.int32)

        # The earlier marks and the new ones, ordered by place.
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

        # Drop the end of an unfinished text, where another token may still begin. Whitespace before
        # that end is the last word, which is never certain.
        text_ends = tf.boolean_mask(places, tf.equal(kinds, TEXT_END))
        text_begins = tf.concat([tf.zeros_like(text_ends[:1]), text_ends[:-1] + 1], 0)
        certain = tf.where(unfinished, text_ends - self.longest, text_ends)
        certain = tf.maximum(certain, text_begins)
        text = tf.searchsorted(text_ends, places)
        last = tf.equal(kinds, TEXT_END)
        kept = last | (places < tf.gather(certain, text))
        begins = tf.where(last, tf.gather(certain, text), begins)
        kinds, begins, ends = (tf.boolean_mask(each, kept) for each in (kinds, begins, ends))

        # Each row is the text between two marks, followed by the second mark.
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
        """Return the longest token that begins at each place, int32 (points,), or -1."""
        wide = tf.cast(points, tf.int64)
        padded = tf.concat([wide, [-1]], 0)

        def body(
            places: tf.Tensor, nodes: tf.Tensor, depth: tf.Tensor, found: tf.Tensor
        ) -> list[tf.Tensor]:
            following = tf.gather(padded, tf.minimum(places + depth, tf.size(points)))
            keys = tf.where(following < 0, NONE, nodes * CODE_POINTS + following)
            nodes = self.nodes.lookup(keys)
            alive = tf.where(nodes >= 0)[:, 0]
            places, nodes = tf.gather(places, alive), tf.gather(nodes, alive)
            tokens = tf.gather(self.token_of, nodes)
            ends = tf.where(tokens >= 0)[:, 0]
            found = tf.tensor_scatter_nd_update(
                found, tf.gather(places, ends)[:, None], tf.gather(tokens, ends)
            )
            return [places, nodes, depth + 1, found]

        places = tf.range(tf.size(points))
        return tf.while_loop(
            lambda places, *others: tf.size(places) > 0,
            body,
            [places, tf.zeros_like(wide), 0, tf.fill(tf.shape(points), -1)],
            shape_invariants=[tf.TensorShape(shape) for shape in ([None], [None], [], [None])],
        )[3]

    def resolve_overlaps(self, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the places and the tokens that remain when overlaps are resolved from the left."""
        candidates = tf.where(found >= 0)[:, 0]
        starts = tf.cast(candidates, tf.int32)
        tokens = tf.gather(found, candidates)
        stops = starts + tf.gather(self.lengths, tokens)
        none = tf.size(starts)
        # `jumps` maps each candidate to the next one that does not overlap it; each iteration
        # doubles the number of candidates jumped.
        jumps = tf.concat([tf.searchsorted(starts, stops), [none]], 0)

        def body(chain: tf.Tensor, jumps: tf.Tensor) -> list[tf.Tensor]:
            return [tf.concat([chain, tf.gather(jumps, chain)], 0), tf.gather(jumps, jumps)]

        chain, _ = tf.while_loop(
            lambda chain, jumps: chain[-1] < none,
            body,
            [tf.zeros([1], tf.int32), jumps],
            shape_invariants=[tf.TensorShape([None])] * 2,
        )
        chain = tf.boolean_mask(chain, chain < none)
        return tf.gather(starts, chain), tf.gather(tokens, chain)

    def is_word(self, points: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Return whether there is a word character at each place, false outside the text."""
        inside = (places >= 0) & (places < tf.size(points))
        at = tf.gather(points, tf.where(inside, places, 0))
        return inside & (at >= 0) & tf.gather(self.words, tf.maximum(at, 0))


def with_spaces(texts: Marked) -> Marked:
    """Insert a space before each piece between marks that does not begin with one."""
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
    """Return whether each code point is a word character, (CODE_POINTS,)."""
    words = np.zeros(CODE_POINTS, bool)
    for block in range(CODE_POINTS // BLOCK):
        words[[ord(character) for character in word_characters(block)]] = True
    return words
