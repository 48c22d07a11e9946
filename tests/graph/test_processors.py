"""Logits processors and stopping rules inside a graph, compared with the host search."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from bart_export.config import GenerationConfig
from bart_export.graph.loop import RowSettings, forced_tokens, process_logits
from bart_export.graph.search import length_divisors, may_improve
from bart_export.runtime import logits as host
from bart_export.runtime import search

ROWS, VOCABULARY = 6, 9


@pytest.mark.parametrize("length", [1, 2, 3, 12])
@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_logits_are_processed_as_by_the_host(size, length):
    random = np.random.default_rng(size * 100 + length)
    sequences = random.integers(0, VOCABULARY if length < 5 else 3, (ROWS, length), np.int32)
    logits = random.normal(size=(ROWS, VOCABULARY)).astype(np.float32)
    zeros = random.normal(size=ROWS).astype(np.float32)
    penalties = [1.0, 1.5, 0.5, 1.0, 3.0, 1.0]
    lengths = [0, 0, 3, 13, 2, 1]
    received = process_logits(
        GenerationConfig(no_repeat_ngram_size=size),
        tf.constant(penalties),
        tf.constant(lengths),
        tf.constant(sequences),
        tf.constant(logits),
        tf.constant(zeros),
    )
    for row, (penalty, min_length) in enumerate(zip(penalties, lengths, strict=True)):
        generation = GenerationConfig(
            max_length=20,
            no_repeat_ngram_size=size,
            repetition_penalty=penalty,
            min_length=min_length,
        )
        expected = logits[row : row + 1].copy()
        for processor in host.processors(generation):
            processor(sequences[row : row + 1], expected, zeros[row : row + 1])
        np.testing.assert_allclose(received[row], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("begin", [None, 4])
@pytest.mark.parametrize("end", [None, 2])
def test_tokens_are_forced_as_by_the_host(begin, end):
    max_lengths = [2, 3, 7]
    generation = GenerationConfig(forced_bos_token_id=begin, forced_eos_token_id=end)
    for length in range(1, 7):
        received = forced_tokens(generation, tf.constant(max_lengths), tf.constant(length))
        for row, max_length in enumerate(max_lengths):
            one = GenerationConfig(
                max_length=max_length, forced_bos_token_id=begin, forced_eos_token_id=end
            )
            expected = host.forced_token(one, length)
            assert received[row] == (-1 if expected is None else expected)


def test_beam_search_stops_as_on_the_host():
    table = list(
        itertools.product(
            (True, False, "never"), (-1.0, 0.0, 1.0, 2.0), (-9.0, -3.0, -1.0), (3, 11), (-4.0, -0.5)
        )
    )
    settings = [
        GenerationConfig(max_length=12, early_stopping=stopping, length_penalty=penalty)
        for stopping, penalty, *_ in table
    ]
    expected = [
        search.may_improve(total, length, worst, search.length_divisors(one), one)
        for one, (_, _, total, length, worst) in zip(settings, table, strict=True)
    ]
    rows = RowSettings(
        max_length=tf.fill([len(table)], 12),
        min_length=tf.zeros([len(table)], tf.int32),
        length_penalty=tf.constant([row[1] for row in table], tf.float64),
        repetition_penalty=tf.ones([len(table)]),
        stops_early=tf.constant([row[0] is True for row in table]),
        never_early=tf.constant([row[0] == "never" for row in table]),
    )
    totals, worst = (tf.constant([row[place] for row in table], tf.float64) for place in (2, 4))
    received = may_improve(rows, totals, tf.constant([row[3] for row in table]), worst)
    assert received.numpy().tolist() == expected
    assert any(expected) and not all(expected)


def test_length_divisors_stay_within_float64():
    powers = length_divisors(tf.constant([1e6, -1e6, 2.0], tf.float64), tf.constant(9))
    np.testing.assert_allclose(powers, [1e300, 1e-300, 81.0])
