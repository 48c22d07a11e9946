"""Words, added tokens and `add_prefix_space` inside a graph, compared with the host."""

import random

import numpy as np
import pytest
import tensorflow as tf
from support import tokenizer_samples
from support.growth import growth
from support.tokenizer_samples import (
    MERGES,
    PIECES,
    expected,
    random_tokenizer,
    tokenizer_of,
    vocabulary_of,
)
from tokenizers.pre_tokenizers import ByteLevel

from bart_export.graph.pretokenizer import (
    OTHER,
    SURROGATES,
    Pretokenizer,
    code_point_classes,
    code_points_of_words,
)
from bart_export.graph.tokenizer import FIRST_BYTES, GraphTokenizer
from bart_export.text.added_tokens import AddedToken, is_word

CONTENTS = (*tokenizer_samples.CONTENTS, "\ufffd")


def encoded(graph, texts, max_length):
    ids, lengths = graph.encode(tf.constant(texts, tf.string), max_length)
    return [row[:size].tolist() for row, size in zip(ids.numpy(), lengths.numpy(), strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_random_added_tokens_in_random_texts_equal_the_host(seed):
    random_of = random.Random(seed)
    host = random_tokenizer(random_of, CONTENTS)
    graph = GraphTokenizer(host)
    pieces = [*PIECES, *CONTENTS, *["<hl>", " ", "a", "aa"] * 8, "_", "\u0301", "\u200d"]
    texts = ["".join(random_of.choices(pieces, k=random_of.randrange(12))) for _ in range(400)]
    found = encoded(graph, texts, 1024)
    assert found == expected(host, texts, 1024), host.added_tokens
    own = {id for id in range(host.vocabulary_size) if id >= len(vocabulary_of(MERGES))}
    assert any(not own.isdisjoint(row) for row in found) or not own


def words(found):
    """Return the words of each text, ids for added tokens."""
    rows = [[]]
    for text, end, added in zip(*(each.numpy() for each in found), strict=True):
        if end:
            rows.append([])
        else:
            rows[-1].append(int(added) if added >= 0 else text.decode())
    return rows[:-1]


@pytest.mark.parametrize("seed", range(12, 26))
def test_words_before_any_cut_are_correct(seed):
    random_of = random.Random(seed)
    host = random_tokenizer(random_of, CONTENTS)
    split = GraphTokenizer(host).pretokenizer.split
    pieces = ["<hl>", " ", "a", "<", "ab", "é", "\n", "hl>", "'s", "x y", "   ", "<hl><hl>", "b"]
    text = "".join(random_of.choices(pieces, k=200))
    whole = words(split(tf.constant([text])))[0]
    beginnings = [text[:size] for size in range(len(text))]
    found = words(split(tf.constant(beginnings), tf.fill([len(text)], True)))
    longest = max(len(token.content) for token in host.added_tokens)
    for beginning, row in zip(beginnings, found, strict=True):
        # The last word may continue, and form a contraction with an apostrophe before it.
        certain = max(len(row) - 2, 0)
        assert row[:certain] == whole[:certain], (beginning, host.added_tokens)
    # Little is missing: at most the longest token at both ends, and spaces.
    assert sum(len(str(word)) for word in found[-1]) > len(text) // 2 - 4 * longest


@pytest.mark.parametrize("seed", [13])
def test_long_texts_with_added_tokens_equal_the_host(seed):
    random_of = random.Random(seed)
    host = random_tokenizer(random_of, CONTENTS)
    graph = GraphTokenizer(host)
    pieces = ["<hl>", " ", "a", "<", "ab", "é", "\n", "hl>", "'s", "x y", "   ", "<hl><hl>", "b"]
    texts = ["".join(random_of.choices(pieces, k=random_of.randrange(20, 90))) for _ in range(8)]
    encode = tf.function(
        lambda text: graph.encode(text, 5), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    assert max(map(len, texts)) > FIRST_BYTES * 5
    for text in texts:  # one by one, because all texts of a batch are read equally far
        ids = encode(tf.constant([text]))[0].numpy()[0].tolist()
        assert ids == expected(host, [text], 5)[0], (text, host.added_tokens)


def test_added_tokens_are_decoded_as_by_the_host():
    host = tokenizer_of([AddedToken("<hl>", special=True), AddedToken("<sep>"), AddedToken("é")])
    ids = host.encode("a <hl>a<sep>é", 64)
    shown = GraphTokenizer(host).decode(tf.constant([ids]), tf.constant([len(ids)]))
    assert shown.numpy()[0].decode() == host.detokenize(ids) == "a a<sep>é"


@pytest.mark.parametrize("added", [[], [AddedToken("<mask>", rstrip=True)], [AddedToken("</s>")]])
def test_special_tokens_in_a_text_are_characters(added):
    """A request's text cannot end a source, even if they are added tokens too."""
    host = tokenizer_of([AddedToken("<hl>"), *added])
    texts = ["a <mask> b", "<s>a</s>", "<pad><unk>", "a<hl><mask>"]
    found = encoded(GraphTokenizer(host), texts, 64)
    assert found == expected(host, texts, 64)
    special = host.special_token_ids
    assert all(special.isdisjoint(row[1:-1]) for row in found)
    as_tokens = [host.encode(text, special_tokens=True) for text in texts]
    assert all(not special.isdisjoint(row[1:-1]) for row in as_tokens)


@pytest.mark.parametrize("texts", [[], [""], ["", "<hl>", ""], ["<hl>"] * 3, ["a ", "<hl>", " a"]])
def test_texts_of_a_batch_are_separate(texts):
    host = tokenizer_of(
        [AddedToken("<hl>", lstrip=True, rstrip=True), AddedToken("a", single_word=True)],
        add_prefix_space=True,
    )
    assert encoded(GraphTokenizer(host), texts, 64) == expected(host, texts, 64)


def test_word_characters_equal_the_hosts():
    words = code_points_of_words()
    random_of = random.Random(2)
    for code in [*range(0x300), *random_of.sample(range(0xE000, 0x110000), 300)]:
        assert words[code] == is_word(chr(code))
    assert 100_000 < np.count_nonzero(words) < 200_000


@pytest.mark.parametrize("fill", ["<", "<hl", "<hl>", "<hl> ", "a", "<hl>a "])
def test_the_beginning_of_a_megabyte_is_split(fill):
    added = [AddedToken(f"<hl{'x' * number}>", lstrip=True, rstrip=True) for number in range(50)]
    host = tokenizer_of([*added, AddedToken("<", single_word=True), AddedToken(" ")])
    graph = GraphTokenizer(host)
    text = fill * (1_000_000 // len(fill))
    found = encoded(graph, [text], 1024)
    assert found == [host.encode(text, 1024, truncate=True)]

    def encode(size):
        encoded(graph, [text[:size]], 1024)

    assert growth(encode, len(text) // 4, len(text)) < 3  # 4 if all were split


@pytest.fixture(scope="module")
def split():
    return tf.function(
        Pretokenizer().split, input_signature=[tf.TensorSpec([None], tf.string, name="text")]
    )


def words_of(split, texts):
    """Return the words of each text."""
    return words(split(tf.constant(texts, tf.string)))


def words_of_tokenizers(texts):
    pattern = ByteLevel(add_prefix_space=False)
    return [
        [text[begin:end] for _, (begin, end) in pattern.pre_tokenize_str(text)] for text in texts
    ]


@pytest.mark.parametrize("plane", [0, 1, 2, 3, 14])  # the others have no assigned characters
def test_characters_have_the_classes_of_tokenizers(split, plane):
    # After a letter, after a number, and after a space, which joins any other class.
    texts = [
        "".join(f"a{chr(code)}1{chr(code)} {chr(code)}" for code in range(begin, begin + 0x800))
        for begin in range(plane * 0x10000, (plane + 1) * 0x10000, 0x800)
        if begin not in SURROGATES
    ]
    assert words_of(split, texts) == words_of_tokenizers(texts)


def test_unassigned_planes_have_no_classes():
    assert set(code_point_classes()[0x40000:0xE0000]) == {OTHER}
    assert set(code_point_classes()[0xF0000:]) == {OTHER}


def test_texts_are_split_as_by_tokenizers(split):
    random_of = random.Random(20)
    texts = ["".join(random_of.choices(PIECES, k=random_of.randrange(12))) for _ in range(20_000)]
    assert words_of(split, texts) == words_of_tokenizers(texts)
