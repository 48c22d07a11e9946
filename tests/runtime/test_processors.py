import numpy as np
import pytest

from bart_export.config import GenerationConfig
from bart_export.runtime.logits import (
    forced_token,
    min_length,
    no_repeat_ngram,
    processors,
    repetition_penalty,
)

VOCABULARY = 5


def processed(processor, sequences, logits=None, zeros=None):
    sequences = np.array(sequences, np.int32)
    if logits is None:
        logits = np.zeros((len(sequences), VOCABULARY))
    logits = np.array(logits, np.float32)
    processor(sequences, logits, np.array(zeros or [0.0] * len(sequences), np.float32))
    return logits


def banned(processor, sequences):
    return [set(np.flatnonzero(row == -np.inf)) for row in processed(processor, sequences)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 30])
def test_a_token_is_banned_exactly_when_its_n_gram_was_seen(size):
    stream = np.random.default_rng(size)
    for length in (1, 2, 3, 7, 25):
        sequences = stream.integers(0, 3, size=(4, length)).tolist()
        expected = []
        for tokens in sequences:
            seen = {tuple(tokens[i : i + size]) for i in range(length - size + 1)}
            last = tokens[length - size + 1 :]
            expected.append({t for t in range(VOCABULARY) if (*last, t) in seen})
        assert banned(no_repeat_ngram(size), sequences) == expected


def test_the_end_is_banned_until_there_are_min_length_tokens_with_the_start():
    assert banned(min_length(3, (4,)), [[2, 0]]) == [{4}]
    assert banned(min_length(3, (4,)), [[2, 0, 0]]) == [set()]
    assert banned(min_length(3, (4, 1)), [[2, 0]]) == [{1, 4}]


def test_the_repetition_penalty_makes_seen_tokens_less_likely_once():
    logits = processed(repetition_penalty(2.0), [[1, 3, 3]], [[1.0, 1.0, -1.0, -1.0, 0.0]])
    np.testing.assert_array_equal(logits, [[1.0, 0.5, -1.0, -2.0, 0.0]])


def test_the_repetition_penalty_multiplies_log_probabilities():
    logits = processed(repetition_penalty(2.0), [[0], [0]], [[5.0] * 5, [1.0] * 5], [7.0, 2.0])
    np.testing.assert_array_equal(logits[:, 0], [7.0 - 2 * 2.0, 2.0 - 2 * 1.0])
    np.testing.assert_array_equal(logits[:, 1], [5.0, 1.0])


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e38, 1e300])
def test_no_repetition_penalty_makes_logits_infinite(penalty):
    logits = processed(repetition_penalty(penalty), [[0, 1, 2]], [[1e4, -1e4, 0.0, 1.0, 2.0]])
    assert np.isfinite(logits).all()
    assert logits[0, 1] < logits[0, 2] == 0 < logits[0, 0]
    assert (logits[0, 0] > 1e4) == (penalty < 1) == (logits[0, 1] > -1e4)


def test_only_what_the_settings_switch_on_is_applied_and_in_order():
    assert processors(GenerationConfig()) == ()
    everything = processors(
        GenerationConfig(repetition_penalty=1.2, no_repeat_ngram_size=2, min_length=5)
    )
    names = [processor.__qualname__.split(".")[0] for processor in everything]
    assert names == ["repetition_penalty", "no_repeat_ngram", "min_length"]


def test_tokens_are_forced_at_the_beginning_and_at_the_end():
    generation = GenerationConfig(max_length=5, forced_bos_token_id=7, forced_eos_token_id=9)
    assert [forced_token(generation, length) for length in (1, 2, 3, 4)] == [7, None, None, 9]
    assert forced_token(GenerationConfig(max_length=5), 1) is None
    short = GenerationConfig(max_length=2, forced_bos_token_id=7, forced_eos_token_id=9)
    assert forced_token(short, 1) == 9
