import random

import pytest
import tensorflow as tf
from support.tokenizer_samples import PIECES
from tokenizers.pre_tokenizers import ByteLevel

from bart_export.graph.pretokenizer import OTHER, SURROGATES, Pretokenizer, code_point_classes


@pytest.fixture(scope="module")
def split():
    return tf.function(
        Pretokenizer().split, input_signature=[tf.TensorSpec([None], tf.string, name="text")]
    )


def words(split, texts):
    """Return the words of each text."""
    found = split(tf.constant(texts, tf.string))
    rows = [[]]
    for word, end in zip(found.texts.numpy(), found.ends.numpy(), strict=True):
        if end:
            rows.append([])
        else:
            rows[-1].append(word.decode())
    assert rows.pop() == []
    return rows


def words_of_tokenizers(texts):
    pattern = ByteLevel(add_prefix_space=False)
    return [
        [text[begin:end] for _, (begin, end) in pattern.pre_tokenize_str(text)] for text in texts
    ]


@pytest.mark.parametrize("plane", [0, 1, 2, 3, 14])  # the others have no assigned characters
def test_every_character_is_in_the_class_that_tokenizers_has_it_in(split, plane):
    # After a letter, after a number, and after a blank, which only another character joins.
    texts = [
        "".join(f"a{chr(code)}1{chr(code)} {chr(code)}" for code in range(begin, begin + 0x800))
        for begin in range(plane * 0x10000, (plane + 1) * 0x10000, 0x800)
        if begin not in SURROGATES
    ]
    assert words(split, texts) == words_of_tokenizers(texts)


def test_no_code_point_of_the_other_planes_has_a_class_of_its_own():
    assert set(code_point_classes()[0x40000:0xE0000]) == {OTHER}
    assert set(code_point_classes()[0xF0000:]) == {OTHER}


def test_texts_are_cut_as_tokenizers_cuts_them(split):
    random_of = random.Random(20)
    texts = ["".join(random_of.choices(PIECES, k=random_of.randrange(12))) for _ in range(20_000)]
    assert words(split, texts) == words_of_tokenizers(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it's 's ''s", ["it", "'s", " '", "s", " ''", "s"]),
        ("x's's 'store", ["x", "'s", "'s", " '", "store"]),
        ("'store", ["'s", "tore"]),
        ("a  b \n", ["a", " ", " b", " \n"]),
        ("a\t\tb", ["a", "\t", "\t", "b"]),
        ("we'll we'l", ["we", "'ll", " we", "'", "l"]),
    ],
)
def test_the_rules_of_the_pattern(split, text, expected):
    assert words_of_tokenizers([text]) == [expected]
    assert words(split, [text]) == [expected]


def test_texts_of_a_batch_do_not_touch(split):
    texts = ["a ", " b", "", "'", "s", "  ", "\n", "", ""]
    assert words(split, texts) == words_of_tokenizers(texts)


def test_no_texts_have_no_words(split):
    assert words(split, []) == []
