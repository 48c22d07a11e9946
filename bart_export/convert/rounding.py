"""Rounding to 4 bits: better integers and scales than those that AI Edge Quantizer chooses.

Each block of neighbours in a row gets the scale that costs least. Where it is known how the inputs
of a matrix correlate, an error made in one column is made good in those to its right: GPTQ (Frantar
et al., 2022, https://arxiv.org/abs/2210.17323), with scales chosen when a block is reached. AI Edge
Quantizer's GPTQ takes no lookups and wants a calibration; its OCTAV leaves the lowest integer
unused. Its layout of the file stays: only the bytes of integers and scales are replaced.
"""

import re
from collections.abc import Container, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.checkpoints.names import TOKEN_EMBEDDING, layer_name
from bart_export.errors import ConfigurationError
from bart_export.recipes.table import Recipe

FloatArray = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Content = bytes | bytearray | npt.NDArray[np.uint8]  # of a `.tflite` file

MATRIX = "/weights"  # ends the name of a matrix
BLOCK = re.compile(r"blockwise_(\d+)")
LOWEST, HIGHEST = -8, 7  # of 4-bit integers
# Scales tried for a block, in units of the one that makes its largest weight the highest integer.
FRACTIONS = np.linspace(0.55, 1.0, 16)
DAMPING = 0.01  # of the mean second moment, added to each: GPTQ's own value
SMALLEST = 2.0**-24  # of the numbers above zero that float16 has


def round_blocks(quantized: bytearray, content: Content, layers: Container[str]) -> None:
    """Change, in place, the integers and scales of some layers of a file that are in blocks.

    `content` is the float file that it was made of.
    """
    original, model = (schema.Model.GetRootAs(data, 0) for data in (content, quantized))
    sources = dict(matrices(original))
    # Signatures share buffers.
    chosen = {
        tensor.Buffer(): (layer, graph, tensor)
        for layer, (graph, tensor) in matrices(model)
        if layer in layers
    }
    for buffer, (layer, graph, tensor) in chosen.items():
        blockwise = schema.BlockwiseQuantization()
        details = tensor.Quantization().Details()
        blockwise.Init(details.Bytes, details.Pos)
        weights = floats(original, content, sources[layer][1])
        is_table = layer == layer_name(TOKEN_EMBEDDING)
        moments = moments_of_rows(weights) if is_table else None
        codes, scales = round_matrix(weights, blockwise.BlockSize(), moments)
        # Two integers in a byte, the first one low.
        nibbles = codes.reshape(-1).view(np.uint8) & np.uint8(15)
        packed = nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
        view(model, quantized, buffer, np.uint8)[:] = packed
        kept = graph.Tensors(blockwise.Scales()).Buffer()
        view(model, quantized, kept, np.float16)[:] = scales.reshape(-1).astype(np.float16)


def require_full_blocks(content: Content, recipe: Recipe, layers: Container[str]) -> None:
    """Refuse a recipe whose blocks do not fill the rows of a float file's matrix.

    Raises:
        ConfigurationError: with the layer, the block and the row.
    """
    for layer, (_, tensor) in matrices(schema.Model.GetRootAs(content, 0)):
        block = BLOCK.fullmatch(str(recipe.storage(layer).granularity))
        if layer in layers and block and tensor.Shape(1) % int(block[1]):
            raise ConfigurationError(
                f"The recipe {recipe.name} stores {layer} in blocks of {block[1]}, but a row has "
                f"{tensor.Shape(1)} weights, no multiple of that. A recipe file can store it in "
                "other blocks, or as int8."
            )


def matrices(model: schema.Model) -> Iterator[tuple[str, tuple[schema.SubGraph, schema.Tensor]]]:
    """Yield (layer, (graph, tensor)) of every matrix of every signature."""
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            name = tensor.Name().decode()
            if name.endswith(MATRIX):
                yield name.partition("/")[2].removesuffix(MATRIX), (graph, tensor)


def view(
    model: schema.Model, content: Content, number: int, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return a buffer of a file as an array that shares its memory.

    Bytes lie in the buffer, or at the end of a file that is written for files above 2 GB.
    """
    buffer = model.Buffers(number)
    if buffer.Offset() > 1:
        data = np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset())
    else:
        data = buffer.DataAsNumpy()
    return data.view(dtype)


def floats(model: schema.Model, content: Content, tensor: schema.Tensor) -> FloatArray:
    """Return the values of a constant float tensor, as they lie in the file."""
    return view(model, content, tensor.Buffer(), np.float32).reshape(tensor.ShapeAsNumpy())


def round_matrix(
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
        columns = slice(block * block_size, (block + 1) * block_size)
        scales[:, block] = best_scales(left[:, columns], importance[columns])
        if spreading is None:
            codes[:, columns] = nearest(left[:, columns], scales[:, block, None])
        else:
            codes[:, columns] = compensate(left, columns, scales[:, block], spreading)
    return codes, scales


def compensate(
    left: FloatArray, columns: slice, scales: FloatArray, spreading: FloatArray
) -> Codes:
    """Return a block's integers, and spread their errors over what is left of the matrix.

    `left` is the matrix, (outputs, inputs), whose columns before the block are done; `scales` are
    the block's, (outputs,).
    """
    codes = np.empty((len(left), columns.stop - columns.start), np.int8)
    errors = np.empty(codes.shape, np.float32)
    for place, column in enumerate(range(columns.start, columns.stop)):
        codes[:, place] = nearest(left[:, column], scales)
        error = left[:, column] - codes[:, place] * scales
        errors[:, place] = error / spreading[column, column]
        rest = slice(column + 1, columns.stop)
        left[:, rest] -= np.outer(errors[:, place], spreading[column, rest])
    left[:, columns.stop :] -= errors @ spreading[columns, columns.stop :]
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
