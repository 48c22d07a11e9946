"""Stored matrices: what a `.tflite` file holds for each weight, row by row, against the checkpoint.

A file, its recipe and the float parameters go in; for every layer the worst error of a row comes
out. Logits of a few texts hardly see a row that no text uses or the scale of one row; this does.

An error is measured in steps of ideal rounding, so that one bound fits every width. Where n bits
share a scale, the step is the largest magnitude among those that share it over 2^(n-1) - 1
(symmetric quantization as in arXiv:1712.05877, which AI Edge Quantizer follows); for a float type
it is the distance of neighbouring numbers at the largest magnitude of the row. The error is the
root mean square over those that share a scale, or over the row where a whole matrix shares one.
Rounding to nearest cannot exceed half a step, and is about 1 / sqrt(12) on the average.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export.checkpoints.names import layer_names
from bart_export.config import BartConfig
from bart_export.errors import VerificationFailed
from bart_export.recipes.table import Recipe, Storage
from bart_export.verify.stored import Stored, shape_of

FloatArray = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]
Read = Callable[[str], FloatArray]  # layer name -> its float matrix (rows, columns)

# Rounding that makes good its errors in neighbours (GPTQ) moves some weights by more than half a
# step, but no row by a whole one on the average; a scale three times too large by two and more.
BOUND = 1.0
CHUNK = 1 << 22  # values compared at a time
# bits of a float type -> bits of its mantissa after the first, smallest number above zero
FLOAT_TYPES = {32: (23, 2.0**-149), 16: (10, 2.0**-24)}
# What AI Edge Quantizer takes for the largest magnitude where all are smaller, and the smallest
# scale above zero that a block can have.
SMALLEST_RANGE, SMALLEST_BLOCK_SCALE = 1e-9, 2.0**-24


@dataclasses.dataclass(frozen=True)
class RowError:
    """The worst row of a layer's matrix and its error, in steps of ideal rounding."""

    row: int
    error: float


def parameters_of(config: BartConfig, parameters: Mapping[str, FloatArray]) -> Read:
    """Return a reader of a checkpoint's matrices by layer name."""
    names = layer_names(config)
    return lambda layer: parameters[names[layer]]


def matrices_of(path: pathlib.Path) -> Read:
    """Return a reader of the matrices that a float file holds, by layer name."""
    stored = Stored(path)
    found = stored.matrices()

    def read(layer: str) -> FloatArray:
        graph, tensor = found[layer][0]
        return stored.rows(graph, tensor, 0, shape_of(tensor)[0])

    return read


def compare(
    path: pathlib.Path, config: BartConfig, recipe: Recipe, read: Read
) -> dict[str, RowError]:
    """Return the worst row of every layer of a file.

    Args:
        path: the `.tflite` file.
        config: the architecture, which says what layers there are.
        recipe: how they are meant to be stored.
        read: what they should hold.

    Raises:
        VerificationFailed: if a layer is missing, or has another shape.
    """
    stored = Stored(path)
    held = stored.matrices()
    errors = {}
    for layer in layer_names(config):
        expected = read(layer)
        rows = [
            worst_row(
                expected,
                functools.partial(stored.rows, graph, tensor),
                recipe.storage(layer),
            )
            for graph, tensor in held.get(layer, ())
            if shape_of(tensor) == expected.shape
        ]
        if not rows or len(rows) != len(held[layer]):
            rows_and_columns = " x ".join(map(str, expected.shape))
            raise VerificationFailed(
                f"{path} must hold a matrix of {rows_and_columns} for the layer {layer}, and does "
                "not."
            )
        errors[layer] = max(rows, key=lambda row: np.nan_to_num(row.error, nan=np.inf))
    return errors


def worst_row(
    expected: FloatArray, received: Callable[[int, int], FloatArray], storage: Storage
) -> RowError:
    """Return the worst row of a matrix; `received` gives the stored rows from one to another."""
    whole = (
        float(np.abs(expected).max(initial=0.0)) if storage.granularity == "tensorwise" else None
    )
    at_a_time = max(1, CHUNK // expected.shape[1])
    worst = RowError(0, 0.0)
    for first in range(0, len(expected), at_a_time):
        rows = expected[first : first + at_a_time]
        errors = row_errors(rows, received(first, first + len(rows)), storage, whole)
        row = int(errors.argmax())  # a NaN counts as the largest
        if not errors[row] <= worst.error:
            worst = RowError(first + row, float(errors[row]))
    return worst


def row_errors(
    expected: FloatArray, received: FloatArray, storage: Storage, whole: float | None
) -> Floats:
    """Return the error of each row in steps, the worst block's where blocks share a scale.

    `whole` is the largest magnitude of the matrix where all of it shares one.
    """
    rows, columns = expected.shape
    granularity = storage.granularity or ""
    size = int(granularity.partition("_")[2]) if granularity.startswith("blockwise") else columns
    if columns % size:  # no row can be cut into such blocks
        size = columns
    groups = expected.reshape(rows, columns // size, size)
    error = received.reshape(groups.shape).astype(np.float64) - groups
    largest = np.abs(groups).max(-1) if whole is None else np.full(groups.shape[:2], whole)
    steps = step(largest.astype(np.float64), storage)
    errors: Floats = (np.sqrt(np.square(error).mean(-1)) / steps).max(-1)
    return errors


def step(largest: Floats, storage: Storage) -> Floats:
    """Return the step of ideal rounding where the largest magnitude is this."""
    if storage.bits in FLOAT_TYPES:
        mantissa, smallest = FLOAT_TYPES[storage.bits]
        # The exponent of frexp is that of a fraction below 1.
        steps = np.ldexp(1.0, np.frexp(largest)[1] - 1 - mantissa)
    else:
        blocks = (storage.granularity or "").startswith("blockwise")
        smallest = SMALLEST_BLOCK_SCALE if blocks else 0.0
        steps = np.maximum(largest, SMALLEST_RANGE) / (2 ** (storage.bits - 1) - 1)
    result: Floats = np.maximum(steps, smallest)
    return result
