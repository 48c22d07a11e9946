"""Tokenizing inside a graph, compared with the host and `tokenizers`, in bounded time."""

import functools
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support.growth import growth
from support.tokenizer_samples import PIECES, cut_anywhere, expected, vocabulary_of

from bart_export.errors import InputError
from bart_export.graph.tokenizer import FIRST_BYTES, GraphTokenizer, Merges, is_in_order
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
GOLDEN = json.loads((DATA / "golden/tokenization.json").read_text(encoding="utf-8"))
TEXT = tf.TensorSpec([None], tf.string, name="text")
IDS = tf.TensorSpec([None, None], tf.int32, name="token_ids")
LENGTHS = tf.TensorSpec([None], tf.int32, name="lengths")


@pytest.fixture(scope="module")
def host():
    folder = DATA / "vocabulary"
    return BartTokenizer.from_files(folder / "vocabulary.json", folder / "merges.txt")


@pytest.fixture(scope="module")
def graph(host):
    return GraphTokenizer(host)


@pytest.fixture(scope="module")
def encode(graph):
    """Return an encoder with at most 1024 tokens as a graph function."""
    return tf.function(lambda text: graph.encode(text, 1024), input_signature=[TEXT])


@pytest.fixture(scope="module")
def decode(graph):
    return tf.function(graph.decode, input_signature=[IDS, LENGTHS])


def rows(encoded):
    """Return the ids of each text without padding (1), which is checked."""
    ids, lengths = (np.asarray(each) for each in encoded)
    assert ids.dtype == lengths.dtype == np.int32
    assert ids.shape == (len(lengths), max([2, *lengths]))
    assert all((row[length:] == 1).all() for row, length in zip(ids, lengths, strict=True))
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


def in_batches(texts, size=64):
    return (tf.constant(texts[begin : begin + size]) for begin in range(0, len(texts), size))


def random_texts(count, seed):
    """Return texts of random characters and of pieces with different classes."""
    random_of = random.Random(seed)

    def character():
        plane = random_of.choice(
            [range(0x80), range(0x800), range(0xD800), range(0xE000, 0x110000)]
        )
        return chr(random_of.choice(plane))

    return [
        "".join(
            random_of.choice(PIECES) if random_of.random() < 0.5 else character()
            for _ in range(random_of.randrange(40))
        )
        for _ in range(count)
    ]


def padded(sequences):
    """Return ids, padded with an invalid id, and lengths."""
    lengths = [len(sequence) for sequence in sequences]
    ids = np.full((len(lengths), max([0, *lengths])), 70_000, np.int32)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tf.constant(ids), tf.constant(lengths, tf.int32)


def test_golden_texts_round_trip(encode, decode):
    encoded = rows(encode(tf.constant([row["text"] for row in GOLDEN])))
    assert len(encoded) == 600
    assert encoded == [[0, *row["ids"], 2] for row in GOLDEN]
    decoded = decode(*padded([row["ids"] for row in GOLDEN])).numpy()
    assert [text.decode() for text in decoded] == [row["text"] for row in GOLDEN]


def test_random_texts_equal_the_host_and_round_trip(encode, decode, host):
    typed = [f"one {token} two{token}" for token in SPECIAL_TOKENS]
    texts = [*random_texts(3000, seed=5), *typed]
    encoded = [row for batch in in_batches(texts) for row in rows(encode(batch))]
    assert encoded == expected(host, texts, 1024)
    assert [text.decode() for text in decode(*padded(encoded)).numpy()] == texts


@pytest.mark.parametrize("max_length", [2, 3, 4, 7, 20])
def test_long_texts_are_truncated_before_the_end_token(graph, host, max_length):
    texts = ["", "a", " one two", *random_texts(40, seed=max_length), "one two three " * 200]
    encoded = rows(graph.encode(tf.constant(texts), max_length))
    assert encoded == expected(host, texts, max_length)
    assert max(map(len, encoded)) == max_length


def test_max_length_below_two_is_rejected(graph):
    with pytest.raises(InputError, match="at least 2.*received 1"):
        graph.encode(tf.constant(["a"]), 1)


def test_empty_batches_and_empty_texts(encode, decode):
    assert rows(encode(tf.constant([], tf.string))) == []
    assert rows(encode(tf.constant(["", ""]))) == [[0, 2], [0, 2]]
    assert decode(*padded([])).shape == (0,)
    assert decode(*padded([[], [0, 2]])).numpy().tolist() == [b"", b""]


def test_invalid_utf8_is_replaced_as_in_python(encode, host):
    random_of = random.Random(8)
    data = bytes([0, 0x41, 0x7F, 0x80, 0xBF, 0xC0, 0xC2, 0xE0, 0xA0, 0xED, 0xEF, 0xF0, 0x90, 0xF4,
                  0xF5, 0xFE, 0xFF])  # fmt: skip
    texts = [bytes(random_of.choices(data, k=random_of.randrange(8))) for _ in range(3000)]
    encoded = [row for batch in in_batches(texts) for row in rows(encode(batch))]
    assert encoded == expected(host, [text.decode("utf-8", "replace") for text in texts], 1024)


def test_invalid_utf8_is_decoded_as_by_the_host(decode, host):
    random_of = random.Random(9)
    bytes_of = [host.token_to_id(symbol) for symbol in BYTE_SYMBOLS]
    sequences = [
        random_of.choices(bytes_of[0x80:], k=random_of.randrange(8))
        + random_of.choices(range(host.vocabulary_size), k=random_of.randrange(4))
        for _ in range(3000)
    ]
    decoded = [text.decode() for text in decode(*padded(sequences)).numpy()]
    assert decoded == [host.detokenize(sequence) for sequence in sequences]


def test_special_tokens_and_padding_are_not_decoded(decode):
    ids = tf.constant([[2, 0, 31414, 3, 232, 50264, 2, 1], [0, 31414, 232, -7, 70_000, 5, 5, 5]])
    assert decode(ids, tf.constant([8, 3])).numpy().tolist() == [b"Hello world"] * 2


@pytest.mark.parametrize("id", [-1, 50265])
def test_unknown_ids_are_errors(decode, id):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"= {id} is not in \[0, 50265\)"):
        decode(tf.constant([[0, id]]), tf.constant([2]))


LETTERS = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))
WORDS = (
    "a",
    "-",
    " ",
    "\x00",
    "\u3000",
    "ÃÂ",
    "👍🏽",
    "thequickbrownfoxjumpsoverthelazydog",
    "漢字仮名交",
)
LONG = [
    *([word * (200_000 // len(word))] for word in WORDS),
    [LETTERS, "and a short one", f"a {LETTERS[:30_000]} and more {LETTERS[:100]}"],
]


@pytest.mark.parametrize("texts", LONG, ids=[*WORDS, "letters"])
def test_endless_words_equal_the_host_and_hardly_take_longer(encode, host, texts):
    encoded = rows(encode(tf.constant(texts)))
    assert encoded == expected(host, texts, 1024)
    quarter = [text[: len(text) // 4] for text in texts]
    assert growth(encode, tf.constant(quarter), tf.constant(texts)) < 3  # 4 if all were tokenized


def test_distant_characters_that_change_first_tokens_are_read():
    # The last two letters of a chain merge first, then the two before them, and so on. Whether the
    # first letter is a token depends on the length.
    letters = [chr(code) for code in (*range(65, 91), *range(97, 123))]
    merges = list(zip(letters, letters[1:], strict=False))[::-1]
    host = BartTokenizer(vocabulary_of(merges), merges)
    graph = GraphTokenizer(host)
    texts = ["".join(letters[:length]) for length in range(30, 53)]
    room = 3
    assert FIRST_BYTES * (room + 2) == 40 < len(texts[-1])  # the first beginning
    encoded = expected(host, texts, room + 2)
    assert graph.encode(tf.constant(texts), room + 2)[0].numpy().tolist() == encoded
    assert len({tuple(ids) for ids in encoded}) == 2


def test_tokens_before_any_cut_are_correct():
    host, texts = cut_anywhere()
    graph = GraphTokenizer(host)
    for max_length in (8, 14, 17, 32):
        encode = tf.function(
            functools.partial(graph.encode, max_length=max_length), input_signature=[TEXT]
        )
        # One by one, because all texts of a batch are read equally far.
        found = [row for text in texts for row in rows(encode(tf.constant([text])))]
        assert found == expected(host, texts, max_length)


def random_merges(random_of, count):
    """Return random merges over three letters, in training's order or shuffled."""
    tokens, merges = list("abc"), {}
    for _ in range(count):
        left, right = random_of.choices(tokens, k=2)
        merges[left, right] = None
        tokens.append(left + right)
    shuffled = list(merges)
    random_of.shuffle(shuffled)
    return shuffled if random_of.random() < 0.5 else list(merges)


def ids_of(merges, words):
    tokens = Merges(vocabulary_of(merges), merges).tokenize(tf.constant(words))
    flat = iter(tokens.ids.numpy().tolist())
    return [list(itertools.islice(flat, count)) for count in tokens.counts.numpy()]


def test_random_merges_equal_tokenizers():
    random_of = random.Random(11)
    words = ["".join(random_of.choices("abc", k=random_of.randrange(1, 24))) for _ in range(300)]
    orders = set()
    for _ in range(40):
        merges = random_merges(random_of, random_of.randrange(1, 20))
        host = BartTokenizer(vocabulary_of(merges), merges)
        assert ids_of(merges, words) == [host.tokenize(word) for word in words], merges
        orders.add(is_in_order(merges))
    assert orders == {True, False}


def test_equal_pairs_merge_from_left_to_right():
    merges = [("a", "a"), ("aa", "aa"), ("aa", "a")]
    vocabulary = vocabulary_of(merges)
    names = {id: token for token, id in vocabulary.items()}
    rows = ids_of(merges, ["a" * length for length in range(1, 8)])
    assert [[len(names[id]) for id in row] for row in rows] == [
        [1], [2], [3], [4], [4, 1], [4, 2], [4, 3],
    ]  # fmt: skip


def test_no_words_and_no_merges():
    assert ids_of([("a", "b")], tf.zeros([0], tf.string)) == []
    assert ids_of([], ["ab", "€"]) == [[ord("a"), ord("b")], [*"€".encode()]]
