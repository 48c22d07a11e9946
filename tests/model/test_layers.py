"""The layers compared with explicit formulas."""

import math

import numpy as np
import pytest

from bart_export.config import ACTIVATION_FUNCTIONS
from bart_export.model.layers import (
    ACTIVATIONS,
    MultiHeadAttention,
    initializer,
    masked_softmax,
    weights_left_at_zero,
)

# Hendrycks and Gimpel, arXiv:1606.08415: exact, and the approximation called "gelu_new".
FORMULAS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_activations_match_their_formulas(name):
    values = np.linspace(-4, 4, 33, dtype=np.float32)
    expected = [FORMULAS[name](float(value)) for value in values]
    np.testing.assert_allclose(ACTIVATIONS[name](values), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_masked_softmax_ignores_masked_keys(dtype):
    scores = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [9.0, 9.0, 9.0]], dtype)
    mask = np.array([[True, True, True], [False, True, True], [False, False, False]])
    small, large = 1 / (1 + math.e), math.e / (1 + math.e)
    expected = [np.exp(scores[0]) / np.exp(scores[0]).sum(), [0, small, large], [0, 0, 0]]
    np.testing.assert_allclose(masked_softmax(scores, mask), expected, atol=1e-3)
    single = masked_softmax(np.full((2, 1), 5.0, dtype), [[True], [False]])
    np.testing.assert_array_equal(single, [[1], [0]])


def test_attention_dropout_applies_only_in_training():
    attention = MultiHeadAttention(num_heads=2, dropout=0.5)
    hidden = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    mask = np.ones((2, 1, 1, 6), bool)
    answers = [np.asarray(attention(hidden, hidden, mask, training=True)) for _ in range(2)]
    assert np.abs(answers[0] - answers[1]).max() > 1e-6
    answers = [np.asarray(attention(hidden, hidden, mask)) for _ in range(2)]
    np.testing.assert_array_equal(*answers)


def test_weights_are_random_unless_left_at_zero():
    with pytest.raises(RuntimeError), weights_left_at_zero():
        assert np.all(initializer()((4, 5)) == 0)
        raise RuntimeError
    drawn, other = (np.asarray(initializer()((40, 50))) for _ in range(2))
    assert drawn.std() == pytest.approx(0.02, rel=0.2)
    assert (drawn != other).mean() > 0.9
