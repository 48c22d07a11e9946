"""Texts to words inside a TensorFlow graph: where byte-level BPE may not merge across.

A batch of valid UTF-8 goes in; the words of all its texts come out in one vector, each as bytes.
The cut is GPT-2's pattern, which wants a look-ahead that TensorFlow's regular expressions (RE2) do
not have, so it is found from the class of each code point and of its neighbours. What a letter is,
is asked of the `tokenizers` library when the graph is built: both always agree. The module knows
neither tokens nor ids.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from bart_export.graph.added_tokens import NOTHING, TEXT_END, AddedTokens, Marked, with_spaces
from bart_export.text.added_tokens import AddedToken

OTHER, LETTER, NUMBER, SPACE, END = range(5)
CLASSES = {LETTER: r"\p{L}+", NUMBER: r"\p{N}+", SPACE: r"\s+"}
CODE_POINTS, SURROGATES = 0x110000, range(0xD800, 0xE000)
PAGE = 256  # code points

# What may follow an apostrophe to be a word of its own, as GPT-2's pattern lists it.
APOSTROPHE, BLANK = ord("'"), ord(" ")
SHORT_ENDINGS = [ord(letter) for letter in "stmd"]
LONG_ENDINGS = [ord(first) * CODE_POINTS + ord(second) for first, second in ("re", "ve", "ll")]

# A byte that valid UTF-8 never has stands after each text, and after each word, of a batch.
SEPARATOR = b"\xff"


class Words(NamedTuple):
    """The words of a batch of texts: those of a text in order, then one that marks its end.

    Attributes:
        texts: string (words,), the bytes of each word, anything at an end or an added token.
        ends: bool (words,), whether this is the end of a text.
        added: int32 (words,), the id of an added token; negative for all else.
    """

    texts: tf.Tensor
    ends: tf.Tensor
    added: tf.Tensor


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
    """Cuts texts into added tokens, and into words as GPT-2's pattern does.

    Holds the classes of code points.
    """

    def __init__(
        self,
        added_tokens: Sequence[AddedToken] = (),
        ids: Mapping[str, int] | None = None,
        *,
        add_prefix_space: bool = False,
    ) -> None:
        """Make the tables.

        Args:
            added_tokens: those to cut at.
            ids: the id of each.
            add_prefix_space: put a blank before what begins with none.
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
        points, marks = self.cut(
            Marked(tf.where(ends, -1, decoded.char_values), tf.where(ends, TEXT_END, NOTHING)),
            tf.zeros_like(text, tf.bool) if goes_on is None else goes_on,
        )
        first = tf.where(word_begins(points, self.classes(points)))[:, 0]
        splits = tf.concat([first, tf.shape(points, tf.int64)], 0)
        texts = tf.raw_ops.UnicodeEncode(
            input_values=points, input_splits=splits, output_encoding="UTF-8"
        )
        marks = tf.gather(marks, first)
        return Words(texts, tf.equal(marks, TEXT_END), marks)

    def cut(self, texts: Marked, goes_on: tf.Tensor) -> Marked:
        """Return texts with marks for the added tokens and the blanks that they are to have."""
        for tokens in self.passes:
            texts = tokens.cut(texts, goes_on)
        return with_spaces(texts) if self.add_prefix_space else texts

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
    edge = tf.fill([min_size(values, abs(by))], tf.constant(fill, values.dtype))
    if by > 0:
        return tf.concat([edge, values[:-by]], 0)
    return tf.concat([values[-by:], edge], 0)


def min_size(values: tf.Tensor, size: int) -> tf.Tensor:
    """Return the size of a vector, or `size` if that is less."""
    return tf.minimum(tf.size(values), size)


def one_of(values: tf.Tensor, accepted: list[int]) -> tf.Tensor:
    """Return whether each of the values, (values,), is one of the accepted."""
    return tf.reduce_any(tf.equal(values[:, None], tf.constant(accepted, values.dtype)), -1)
