import itertools
import random

import pytest
import tensorflow as tf
from support.tokenizer_samples import vocabulary_of

from bart_export.graph.tokenizer import Merges, is_in_order
from bart_export.text.tokenizer import BartTokenizer


def random_merges(random_of, count):
    """Return merges of tokens of three letters, in an order that training would not give them."""
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


def test_random_merges_give_the_ids_of_tokenizers():
    random_of = random.Random(11)
    words = ["".join(random_of.choices("abc", k=random_of.randrange(1, 24))) for _ in range(300)]
    orders = set()
    for _ in range(40):
        merges = random_merges(random_of, random_of.randrange(1, 20))
        host = BartTokenizer(vocabulary_of(merges), merges)
        assert ids_of(merges, words) == [host.tokenize(word) for word in words], merges
        orders.add(is_in_order(merges))
    assert orders == {True, False}


def test_equal_neighbours_merge_from_left_to_right():
    merges = [("a", "a"), ("aa", "aa"), ("aa", "a")]
    vocabulary = vocabulary_of(merges)
    names = {id: token for token, id in vocabulary.items()}
    rows = ids_of(merges, ["a" * length for length in range(1, 8)])
    assert [[len(names[id]) for id in row] for row in rows] == [
        [1], [2], [3], [4], [4, 1], [4, 2], [4, 3],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("merges", "in_order"),
    [
        ([("a", "b"), ("ab", "c"), ("ab", "ab")], True),
        ([("ab", "c"), ("a", "b")], False),
        ([("a", "b"), ("ab", "c"), ("abc", "d"), ("b", "c"), ("a", "bc")], False),
    ],
    ids=["trained", "used before it is made", "made a second time after it is used"],
)
def test_what_is_in_order(merges, in_order):
    assert is_in_order(merges) is in_order


def test_the_longest_token_is_that_of_a_merge():
    merges = [("a", "b"), ("ab", "ab"), ("abab", "ab")]
    assert Merges(vocabulary_of(merges), merges).longest == 6


def test_without_merges_every_byte_is_a_token():
    assert ids_of([], ["ab", "€"]) == [[ord("a"), ord("b")], [*"€".encode()]]
    assert Merges(vocabulary_of([]), []).longest == 1


def test_no_words_have_no_tokens():
    assert ids_of([("a", "b")], tf.zeros([0], tf.string)) == []
