"""Rounding to 4 bits: the scales of least error, and errors that are made good."""

import numpy as np
import pytest

from bart_export.convert import rounding

GENERATOR = np.random.default_rng(5)
WEIGHTS = GENERATOR.normal(size=(48, 128)).astype(np.float32)


def floats(codes, scales, block_size):
    blocks = codes.reshape(len(codes), -1, block_size) * scales[..., None]
    return blocks.reshape(codes.shape)


def test_what_4_bits_can_say_comes_back_exactly():
    scales = rounding.round_scales(GENERATOR.uniform(0.01, 0.1, (48, 4)).astype(np.float32))
    codes = GENERATOR.integers(-8, 8, (48, 128)).astype(np.int8)
    codes.reshape(48, 4, 32)[..., 0] = 7  # so that the scale can be told from the largest weight
    codes.reshape(48, 4, 32)[..., 1] = -7
    codes = np.maximum(codes, -7)
    received, chosen = rounding.round_matrix(floats(codes, scales, 32).astype(np.float32), 32)
    np.testing.assert_array_equal(received, codes)
    np.testing.assert_array_equal(chosen, scales)


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_no_scale_of_the_largest_weight_is_better(block_size):
    received = floats(*rounding.round_matrix(WEIGHTS, block_size), block_size)
    blocks = WEIGHTS.reshape(48, -1, block_size)
    widest = rounding.round_scales(np.abs(blocks).max(-1, keepdims=True) / 7)
    plain = (np.clip(np.rint(blocks / widest), -8, 7) * widest).reshape(WEIGHTS.shape)
    ours, theirs = (np.square(some - WEIGHTS).mean() for some in (received, plain))
    assert ours < 0.9 * theirs


def test_errors_are_made_good_where_inputs_correlate():
    mixing = GENERATOR.normal(size=(16, 128)) + 0.1
    inputs = (GENERATOR.normal(size=(4096, 16)) @ mixing).astype(np.float32)
    inputs += 0.3 * GENERATOR.normal(size=inputs.shape).astype(np.float32)
    moments = inputs.T @ inputs / len(inputs)
    fresh = (GENERATOR.normal(size=(512, 16)) @ mixing).astype(np.float32)
    errors = [
        np.square(
            fresh @ (floats(*rounding.round_matrix(WEIGHTS, 32, given), 32) - WEIGHTS).T
        ).mean()
        for given in (moments, None)
    ]
    assert errors[0] < 0.3 * errors[1]


def test_a_row_of_zeros_stays_zero_and_scales_stay_above_it():
    weights = WEIGHTS.copy()
    weights[3] = 0
    weights[4] *= 1e-12
    codes, scales = rounding.round_matrix(weights, 32, rounding.embedding_moments(weights))
    assert (scales.astype(np.float16) > 0).all()
    assert not codes[3].any()
    assert np.isfinite(floats(codes, scales, 32)).all()


def test_embedding_moments_weigh_lookups_and_logits_alike():
    moments = rounding.embedding_moments(WEIGHTS)
    lookups = np.eye(128, dtype=np.float32)
    assert np.diag(moments - lookups).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(
        (moments - lookups) / moments[0, 1], (WEIGHTS.T @ WEIGHTS) / (WEIGHTS.T @ WEIGHTS)[0, 1],
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
