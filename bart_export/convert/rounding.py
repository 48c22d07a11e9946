"""Rounds matrices to 4 bits with a smaller error than LiteRT Quantizer.

Each block of a row gets the scale with the least error. If the correlation of a matrix's inputs is
known, the error of a column is compensated in the columns to its right: GPTQ (Frantar et al., 2022,
https://arxiv.org/abs/2210.17323), with a block's scales chosen when that block is reached. LiteRT
Quantizer's GPTQ does not support lookups and needs calibration; its OCTAV never uses the lowest
integer. The file keeps LiteRT Quantizer's layout; only integers and scales are replaced.
"""

import re
from collections.abc import Container, Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.checkpoints.weight_names import TOKEN_EMBEDDING, layer_name
from bart_export.errors import ConfigurationError
from bart_export.recipes.table import Recipe

FloatArray = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Content = bytes | bytearray | npt.NDArray[np.uint8]  # of a `.tflite` file

MATRIX = "/weights"  # suffix of a matrix's name
BLOCK = re.compile(r"blockwise_(\d+)")
LOWEST, HIGHEST = -8, 7  # of 4-bit integers
# Candidate scales of a block, relative to the one that maps its largest weight to `HIGHEST`.
FRACTIONS = np.linspace(0.55, 1.0, 16)
DAMPING = 0.01  # GPTQ's value, relative to the mean second moment
SMALLEST = 2.0**-24  # the smallest positive float16


def read_model(content: Content) -> schema.ModelT:
    """Return the objects of a file, whose arrays share its memory.

    In the layout for files above 2 GB, the bytes are at the end of the file, not in the buffers.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    return model


def round_blocks(quantized: schema.ModelT, original: schema.ModelT, layers: Container[str]) -> None:
    """Replace the integers and scales of blockwise layers in a quantized file, in place.

    `original` is the float file that was quantized.
    """
    sources = dict(matrices(original))
    # Signatures share buffers.
    chosen = {
        tensor.buffer: (layer, graph, tensor.quantization.details)
        for layer, (graph, tensor) in matrices(quantized)
        if layer in layers
    }
    for buffer, (layer, graph, blocks) in chosen.items():
        weights = floats(original, sources[layer][1])
        is_table = layer == layer_name(TOKEN_EMBEDDING)
        moments = embedding_moments(weights) if is_table else None
        codes, scales = round_matrix(weights, blocks.blockSize, moments)
        # Two integers per byte, the first in the low bits.
        nibbles = codes.reshape(-1).view(np.uint8) & np.uint8(15)
        quantized.buffers[buffer].data[:] = nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
        kept = quantized.buffers[graph.tensors[blocks.scales].buffer].data
        kept.view(np.float16)[:] = scales.reshape(-1).astype(np.float16)


def require_full_blocks(model: schema.ModelT, recipe: Recipe, layers: Container[str]) -> None:
    """Raise ConfigurationError unless a recipe's blocks fill the rows of a file's matrices."""
    for layer, (_, tensor) in matrices(model):
        block, columns = BLOCK.fullmatch(str(recipe.storage(layer).granularity)), tensor.shape[1]
        if layer in layers and block and columns % int(block[1]):
            raise ConfigurationError(
                f"The recipe {recipe.name} stores {layer} in blocks of {block[1]}, but a row has "
                f"{columns} weights, which is not a multiple of {block[1]}. Use a recipe file that "
                "stores this layer in blocks of a different size, or as int8."
            )


def matrices(model: schema.ModelT) -> Iterator[tuple[str, tuple[schema.SubGraphT, schema.TensorT]]]:
    """Yield (layer, (graph, tensor)) for every matrix in every subgraph."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            name = tensor.name.decode()
            if name.endswith(MATRIX):
                yield name.partition("/")[2].removesuffix(MATRIX), (graph, tensor)


def floats(model: schema.ModelT, tensor: schema.TensorT) -> FloatArray:
    """Return the values of a constant float tensor."""
    values: FloatArray = model.buffers[tensor.buffer].data.view(np.float32).reshape(tensor.shape)
    return values


def round_matrix(
    weights: FloatArray, block_size: int, moments: FloatArray | None = None
) -> tuple[Codes, FloatArray]:
    """Quantize float32 weights to integers (outputs, inputs) and scales (outputs, blocks).

    `block_size` is the number of weights that share a scale; it divides the number of inputs.
    `moments` are second moments of the inputs, (inputs, inputs), or None if unknown, in which case
    all inputs are assumed to be equally important and uncorrelated.
    """
    outputs, inputs = weights.shape
    left = weights.copy()
    codes = np.empty((outputs, inputs), np.int8)
    scales = np.empty((outputs, inputs // block_size), np.float32)
    importance = np.ones(inputs, np.float32) if moments is None else np.diag(moments)
    factor = None if moments is None else gptq_factor(moments)
    for block in range(inputs // block_size):
        columns = slice(block * block_size, (block + 1) * block_size)
        scales[:, block] = best_scales(left[:, columns], importance[columns])
        if factor is None:
            codes[:, columns] = round_weights(left[:, columns], scales[:, block, None])
        else:
            codes[:, columns] = compensate(left, columns, scales[:, block], factor)
    return codes, scales


def compensate(left: FloatArray, columns: slice, scales: FloatArray, factor: FloatArray) -> Codes:
    """Return a block's integers, and compensate their errors in the columns after them, in place.

    `left` is the matrix, (outputs, inputs), whose columns before the block are rounded; `scales`
    are the block's, (outputs,).
    """
    codes = np.empty((len(left), columns.stop - columns.start), np.int8)
    errors = np.empty(codes.shape, np.float32)
    for index, column in enumerate(range(columns.start, columns.stop)):
        codes[:, index] = round_weights(left[:, column], scales)
        error = left[:, column] - codes[:, index] * scales
        errors[:, index] = error / factor[column, column]
        rest = slice(column + 1, columns.stop)
        left[:, rest] -= np.outer(errors[:, index], factor[column, rest])
    left[:, columns.stop :] -= errors @ factor[columns, columns.stop :]
    return codes


def gptq_factor(moments: FloatArray) -> FloatArray:
    """Return the upper Cholesky factor of the inverse of the damped moments, (inputs, inputs)."""
    damped = moments.astype(np.float64)
    damped[np.diag_indices(len(damped))] += DAMPING * np.diag(damped).mean()
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    return np.ascontiguousarray(factor, dtype=np.float32)


def best_scales(weights: FloatArray, importance: FloatArray) -> FloatArray:
    """Return the scale with the least error for each row of a block, (rows, block size)."""
    largest = np.abs(weights).max(axis=1)
    widest = np.where(largest > 0, largest, 1) / HIGHEST
    best = np.empty(len(weights), np.float32)
    costs = np.full(len(weights), np.inf, np.float32)
    for fraction in FRACTIONS:
        scales = round_scales(widest * fraction)
        errors = round_weights(weights, scales[:, None]) * scales[:, None] - weights
        cost = np.square(errors) @ importance
        best = np.where(cost < costs, scales, best)
        costs = np.minimum(cost, costs)
    return best


def round_weights(weights: FloatArray, scales: FloatArray) -> FloatArray:
    """Return weights / scales, rounded and clipped to 4-bit integers, as float32."""
    integers: FloatArray = np.clip(np.rint(weights / scales), LOWEST, HIGHEST)
    return integers


def round_scales(scales: npt.NDArray[np.floating]) -> FloatArray:
    """Round scales to float16, which the file stores, and to bfloat16, which XNNPACK uses."""
    narrow = scales.astype(ml_dtypes.bfloat16).astype(np.float16)
    return np.maximum(narrow.astype(np.float32), np.float32(SMALLEST))


def embedding_moments(table: FloatArray) -> FloatArray:
    """Return moments, (hidden, hidden), for a tied embedding table, (rows, hidden).

    The hidden states that multiply the rows are assumed to be distributed like the rows themselves.
    A row that is looked up is used unchanged, so all its columns count equally. Both uses get the
    same weight.
    """
    products = table.T @ table
    uses: FloatArray = products / np.diag(products).mean() + np.eye(len(products), dtype=np.float32)
    return uses
