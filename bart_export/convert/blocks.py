"""Matrices in blocks: a quantized file goes in, and its 4-bit integers and scales get better ones.

AI Edge Quantizer lays the file out, with integers and scales of its own choice; the bytes that
`targets.rounding` chooses take their place, so that nothing else about the file changes.
"""

import re
from collections.abc import Container, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.checkpoints import names
from bart_export.convert import rounding
from bart_export.errors import ConfigurationError
from bart_export.recipes.table import Recipe

MATRIX = "/weights"  # ends the name of a matrix
BLOCK = re.compile(r"blockwise_(\d+)")


def round_blocks(quantized: bytearray, content: Any, layers: Iterable[str]) -> None:
    """Change, in place, the integers and scales of some layers of a file that are in blocks.

    Args:
        quantized: the file.
        content: the bytes of the float file that it was made of.
        layers: the layers' names.
    """
    original, model = (schema.Model.GetRootAs(data, 0) for data in (content, quantized))
    floats = dict(matrices(original))
    done = set()
    for layer, (graph, tensor) in matrices(model):
        if layer not in layers or tensor.Buffer() in done:
            continue
        done.add(tensor.Buffer())
        blockwise = schema.BlockwiseQuantization()
        details = tensor.Quantization().Details()
        blockwise.Init(details.Bytes, details.Pos)
        _, source = floats[layer]
        weights = view(original, content, source.Buffer(), np.float32)
        weights = weights.reshape(source.ShapeAsNumpy())
        is_table = layer == names.layer_name(names.TOKEN_EMBEDDING)
        moments = rounding.moments_of_rows(weights) if is_table else None
        codes, scales = rounding.rounded(weights, blockwise.BlockSize(), moments)
        view(model, quantized, tensor.Buffer(), np.uint8)[:] = packed(codes)
        kept = graph.Tensors(blockwise.Scales()).Buffer()
        view(model, quantized, kept, np.float16)[:] = scales.reshape(-1).astype(np.float16)


def check_blocks(content: Any, recipe: Recipe, layers: Container[str]) -> None:
    """Refuse a recipe whose blocks do not fill the rows of a matrix.

    Args:
        content: the bytes of the float file that would be quantized.
        recipe: how its matrices would be stored.
        layers: the layers' names.

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


def matrices(model: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield (layer, (graph, tensor)) of every matrix of every signature."""
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            name = tensor.Name().decode()
            if name.endswith(MATRIX):
                yield name.partition("/")[2].removesuffix(MATRIX), (graph, tensor)


def view(model: Any, content: Any, number: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a buffer of a file as an array that shares its memory.

    Bytes lie in the buffer, or at the end of a file that is written for files above 2 GB.
    """
    buffer = model.Buffers(number)
    if buffer.Offset() > 1:
        inside = np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset())
    else:
        inside = buffer.DataAsNumpy()
    return inside.view(dtype)


def packed(codes: rounding.Codes) -> npt.NDArray[np.uint8]:
    """Return 4-bit integers as a `.tflite` file holds them: two in a byte, the first one low."""
    nibbles = codes.reshape(-1).view(np.uint8) & np.uint8(15)
    return nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
