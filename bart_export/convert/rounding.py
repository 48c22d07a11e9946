"""Rounding: a matrix goes in, 4-bit integers and the scales of their blocks come out.

Each block of neighbours in a row gets the scale that costs least. Where it is known how the inputs
of a matrix correlate, an error made in one column is made good in those to its right: GPTQ (Frantar
et al., 2022, https://arxiv.org/abs/2210.17323), with scales chosen when a block is reached. AI Edge
Quantizer's GPTQ takes no lookups and wants a calibration; its OCTAV leaves the lowest integer
unused. No file is known here.
"""

import ml_dtypes
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

LOWEST, HIGHEST = -8, 7  # of 4-bit integers
# Scales tried for a block, in units of the one that makes its largest weight the highest integer.
FRACTIONS = np.linspace(0.55, 1.0, 16)
DAMPING = 0.01  # of the mean second moment, added to each: GPTQ's own value
SMALLEST = 2.0**-24  # of the numbers above zero that float16 has


def rounded(
    weights: FloatArray, block_size: int, moments: FloatArray | None = None
) -> tuple[Codes, FloatArray]:
    """Return integers (outputs, inputs) and scales (outputs, blocks) that stand for a matrix.

    Args:
        weights: float32 (outputs, inputs).
        block_size: neighbours in a row that share a scale; it divides the number of inputs.
        moments: mean products of the inputs with each other, (inputs, inputs); None where they are
            not known, so that all inputs count alike and for themselves.
    """
    outputs, inputs = weights.shape
    left = weights.copy()
    codes = np.empty((outputs, inputs), np.int8)
    scales = np.empty((outputs, inputs // block_size), np.float32)
    importance = np.ones(inputs, np.float32) if moments is None else np.diag(moments)
    spreading = None if moments is None else spread_of_errors(moments)
    for block in range(inputs // block_size):
        here = slice(block * block_size, (block + 1) * block_size)
        scales[:, block] = best_scales(left[:, here], importance[here])
        if spreading is None:
            codes[:, here] = nearest(left[:, here], scales[:, block, None])
        else:
            codes[:, here] = compensated(left, here, scales[:, block], spreading)
    return codes, scales


def compensated(left: FloatArray, here: slice, scales: FloatArray, spreading: FloatArray) -> Codes:
    """Return a block's integers, and change what is left of the matrix to make good the errors.

    Args:
        left: the matrix, (outputs, inputs), whose columns before the block are done.
        here: the block's columns.
        scales: the block's scales, (outputs,).
        spreading: as `spread_of_errors` gives it.
    """
    codes = np.empty((len(left), here.stop - here.start), np.int8)
    errors = np.empty(codes.shape, np.float32)
    for place, column in enumerate(range(here.start, here.stop)):
        codes[:, place] = nearest(left[:, column], scales)
        error = left[:, column] - codes[:, place] * scales
        errors[:, place] = error / spreading[column, column]
        rest = slice(column + 1, here.stop)
        left[:, rest] -= np.outer(errors[:, place], spreading[column, rest])
    left[:, here.stop :] -= errors @ spreading[here, here.stop :]
    return codes


def spread_of_errors(moments: FloatArray) -> FloatArray:
    """Return how an error in one column is spread over those to its right, (inputs, inputs).

    It is the upper triangular factor of the inverse of the damped moments.
    """
    damped = moments.astype(np.float64)
    damped[np.diag_indices(len(damped))] += DAMPING * np.diag(damped).mean()
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    return np.ascontiguousarray(factor, dtype=np.float32)


def best_scales(weights: FloatArray, importance: FloatArray) -> FloatArray:
    """Return for each row of a block, (rows, block size), the scale with the least error."""
    largest = np.abs(weights).max(axis=1)
    widest = np.where(largest > 0, largest, 1) / HIGHEST
    best = np.empty(len(weights), np.float32)
    least = np.full(len(weights), np.inf, np.float32)
    for fraction in FRACTIONS:
        scales = storable(widest * fraction)
        errors = nearest(weights, scales[:, None]) * scales[:, None] - weights
        cost = np.square(errors) @ importance
        best = np.where(cost < least, scales, best)
        least = np.minimum(cost, least)
    return best


def nearest(weights: FloatArray, scales: FloatArray) -> FloatArray:
    """Return the integers, as float32, that are nearest to weights in units of their scales."""
    integers: FloatArray = np.clip(np.rint(weights / scales), LOWEST, HIGHEST)
    return integers


def storable(scales: npt.NDArray[np.floating]) -> FloatArray:
    """Return scales as a file holds them: float16, of which XNNPACK keeps what bfloat16 has."""
    narrow = scales.astype(ml_dtypes.bfloat16).astype(np.float16)
    return np.maximum(narrow.astype(np.float32), np.float32(SMALLEST))


def moments_of_rows(table: FloatArray) -> FloatArray:
    """Return moments, (hidden, hidden), for a table (rows, hidden) that also makes the logits.

    The states that are multiplied by the rows lie where the rows do; a row that is looked up is
    read as it is, so that its columns count alike. Both uses get the same weight.
    """
    products = table.T @ table
    uses: FloatArray = products / np.diag(products).mean() + np.eye(len(products), dtype=np.float32)
    return uses
