"""The stored matrices of a `.tflite` file, and the error of each row against the checkpoint.

The logits of a few texts hardly depend on embeddings of other tokens or on the scale of one row, so
every row is compared. Errors are in steps of ideal rounding, so that one bound fits every width.
The step of n-bit integers is the largest magnitude with their scale, divided by 2^(n-1) - 1
(symmetric quantization as in arXiv:1712.05877, which LiteRT Quantizer follows); the step of floats
is their spacing at the largest magnitude of the row. The error is the root mean square over the
values of a row, or over those that share a scale if these are fewer. Rounding to nearest has an
error of at most half a step, and about 1 / sqrt(12) on average.
"""

import dataclasses
import functools
import mmap
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.checkpoints.weight_names import layer_names
from bart_export.config import BartConfig
from bart_export.errors import EngineError, VerificationFailed
from bart_export.recipes.table import Recipe, Storage
from bart_export.runtime.sizing import FloatArray
from bart_export.verify.data import Floats

Array = npt.NDArray[Any]
Matrices = Callable[[str], FloatArray]  # layer name -> its float matrix (rows, columns)
# Objects of the untyped generated schema.
Graph: TypeAlias = Any
Tensor: TypeAlias = Any
Operator: TypeAlias = Any

WEIGHTS = "/weights"  # suffix of a matrix's name, SIGNATURE/LAYER/weights
IDENTIFIER = b"TFL3"  # bytes 4 to 7 of a .tflite file
OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items()}
TYPES = schema.TensorType
NUMPY_TYPES = {
    getattr(TYPES, name): np.dtype(name.lower())
    for name in ("FLOAT32", "FLOAT16", "INT64", "INT32", "INT16", "INT8", "UINT8", "BOOL")
}


class StoredFile:
    """The graphs and constants of a memory-mapped `.tflite` file.

    Raises:
        EngineError: if the file cannot be read or is not a `.tflite` file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        try:
            with path.open("rb") as file:
                self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: empty file
            raise EngineError(f"Cannot read {path}: {error}.") from error
        if self.content[4:8] != IDENTIFIER:
            raise EngineError(f"{path} is not a .tflite file: bytes 4 to 7 must be TFL3.")
        try:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(self.content, 0))
        except (struct.error, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"{path} is damaged: {error}.") from error

    def operator_name(self, operator: Operator) -> str:
        """Return the name of an operator, or its number as text."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        # Older files have only the deprecated field, for codes up to 127.
        number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        return str(OPERATORS.get(number, number))

    def data(self, tensor: Tensor) -> npt.NDArray[np.uint8] | None:
        """Return the bytes of a constant, or None for a computed tensor."""
        buffer = self.model.buffers[tensor.buffer]
        if buffer.size:  # stored after the flatbuffer
            return np.frombuffer(self.content, np.uint8, buffer.size, buffer.offset)
        data: npt.NDArray[np.uint8] | None = buffer.data
        return data

    def numbers(self, tensor: Tensor) -> Array:
        """Return the stored values of a constant in its shape, without dequantizing them."""
        data, shape = self.data(tensor), shape_of(tensor)
        if data is None:
            raise EngineError(f"The tensor {tensor.name.decode()} is not a constant.")
        if tensor.type == TYPES.INT4:
            return unpack_int4(data)[: int(np.prod(shape))].reshape(shape)
        return data.view(NUMPY_TYPES[tensor.type]).reshape(shape)

    def rows(self, graph: Graph, tensor: Tensor, first: int, last: int) -> FloatArray:
        """Return rows of a stored matrix, dequantized to float32, (last - first, columns)."""
        data, columns = self.data(tensor), shape_of(tensor)[1]
        if tensor.type == TYPES.INT4 and data is not None and columns % 2 == 0:
            half = columns // 2
            numbers: Array = unpack_int4(data[first * half : last * half]).reshape(-1, columns)
        else:
            numbers = self.numbers(tensor)[first:last]
        if tensor.quantization is None:
            return numbers.astype(np.float32)
        if tensor.quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization:
            blocks = tensor.quantization.details
            scales = self.numbers(graph.tensors[blocks.scales])[first:last].astype(np.float32)
            return numbers * np.repeat(scales, blocks.blockSize, axis=1)
        scale, zero = quantization(tensor)
        if scale.size > 1:
            scale, zero = scale[first:last], zero[first:last]
        rows: FloatArray = (numbers.astype(np.float32) - zero) * scale
        return rows

    def matrices(self) -> dict[str, list[tuple[Graph, Tensor]]]:
        """Return each layer's matrices as (graph, tensor); shared ones are listed once."""
        found: dict[str, dict[object, tuple[Graph, Tensor]]] = {}
        for graph in self.model.subgraphs:
            for tensor in graph.tensors:
                layer = layer_of(tensor)
                if layer is None or self.data(tensor) is None:
                    continue
                details = tensor.quantization and tensor.quantization.details
                blocks = details and graph.tensors[details.scales].buffer
                shared = tensor.buffer, blocks, quantization(tensor)[0].tobytes()
                found.setdefault(layer, {}).setdefault(shared, (graph, tensor))
        return {layer: list(pairs.values()) for layer, pairs in found.items()}


def layer_of(tensor: Tensor) -> str | None:
    """Return the layer that a matrix belongs to, or None for other tensors."""
    name: str = tensor.name.decode()
    return name.removesuffix(WEIGHTS).partition("/")[2] if name.endswith(WEIGHTS) else None


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return a tensor's shape."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def quantization(tensor: Tensor) -> tuple[FloatArray, FloatArray]:
    """Return a constant's scale and zero point, which broadcast over its values."""
    stored = tensor.quantization
    if stored is None or stored.scale is None:
        return np.ones((), np.float32), np.zeros((), np.float32)
    shape = [1] * len(shape_of(tensor))
    if len(stored.scale) > 1:
        shape[stored.quantizedDimension] = -1
    scale, zero = np.asarray(stored.scale, np.float32), np.asarray(stored.zeroPoint, np.float32)
    return scale.reshape(shape), zero.reshape(shape)


def unpack_int4(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Unpack signed 4-bit values, low nibble first."""
    both = np.stack([data << 4, data & 0xF0], axis=-1).reshape(-1)
    return both.view(np.int8) >> 4


def checkpoint_matrices(config: BartConfig, parameters: Mapping[str, FloatArray]) -> Matrices:
    """Return a function from layer name to the checkpoint's matrix."""
    names = layer_names(config)
    return lambda layer: parameters[names[layer]]


def stored_matrices(path: pathlib.Path) -> Matrices:
    """Return a function from layer name to a file's matrix, dequantized to float32."""
    stored = StoredFile(path)
    matrices = stored.matrices()

    def read(layer: str) -> FloatArray:
        graph, tensor = matrices[layer][0]
        return stored.rows(graph, tensor, 0, shape_of(tensor)[0])

    return read


# GPTQ moves some weights by more than half a step, but no row by a whole step on average. A scale
# that is three times too large moves rows by two steps or more.
BOUND = 1.0
CHUNK = 1 << 22  # values compared at a time
SMALLEST_RANGE = 1e-9  # LiteRT Quantizer's lower limit for the largest magnitude
SMALLEST_BLOCK_SCALE = 2.0**-24  # the smallest positive float16


@dataclasses.dataclass(frozen=True)
class RowError:
    """The worst row of a layer's matrix, and its error in steps of ideal rounding."""

    layer: str
    row: int
    error: float


def worst_row(
    path: pathlib.Path, config: BartConfig, recipe: Recipe, matrices: Matrices
) -> RowError:
    """Return the worst row of all matrices in a recipe's `.tflite` file.

    Raises:
        VerificationFailed: if a layer is missing or its matrix has the wrong shape.
    """
    stored = StoredFile(path)
    stored_layers = stored.matrices()
    worst = []
    for layer in layer_names(config):
        expected = matrices(layer)
        pairs = stored_layers.get(layer, [])
        if not pairs or any(shape_of(tensor) != expected.shape for _, tensor in pairs):
            shape = " x ".join(map(str, expected.shape))
            raise VerificationFailed(
                f"{path} must have a {shape} matrix for the layer {layer}, but does not."
            )
        for graph, tensor in pairs:
            rows = functools.partial(stored.rows, graph, tensor)
            errors = row_errors(expected, rows, recipe.storage(layer))
            row = int(errors.argmax())  # NaN is the largest
            worst.append(RowError(layer, row, float(errors[row])))
    return max(worst, key=lambda row: np.nan_to_num(row.error, nan=np.inf))


def row_errors(
    expected: FloatArray, received: Callable[[int, int], FloatArray], storage: Storage
) -> Floats:
    """Return the error of each row, or of its worst block, in steps of ideal rounding.

    `received(first, last)` returns a range of stored rows.
    """
    size = columns = expected.shape[1]
    kind, _, block = (storage.granularity or "").partition("_")
    if kind == "blockwise" and columns % int(block) == 0:  # otherwise stored without blocks
        size = int(block)
    shared = np.abs(expected).max() if kind == "tensorwise" else None
    chunk = max(1, CHUNK // columns)
    errors = []
    for first in range(0, len(expected), chunk):
        rows = expected[first : first + chunk]
        groups = rows.reshape(len(rows), -1, size)
        stored = received(first, first + len(rows)).reshape(groups.shape)
        largest = np.abs(groups).max(-1) if shared is None else shared
        error = np.sqrt(np.square(stored.astype(np.float64) - groups).mean(-1))
        errors.append((error / rounding_step(largest, storage)).max(-1))
    result: Floats = np.concatenate(errors)
    return result


def rounding_step(largest: FloatArray, storage: Storage) -> Floats:
    """Return the step of ideal rounding for the largest magnitude."""
    if storage.bits >= 16:
        dtype = np.dtype(f"float{storage.bits}")
        steps: Floats = np.spacing(np.minimum(largest, np.finfo(dtype).max).astype(dtype))
        return steps
    steps = np.maximum(largest.astype(np.float64), SMALLEST_RANGE) / (2 ** (storage.bits - 1) - 1)
    blocks = (storage.granularity or "").startswith("blockwise")
    return np.maximum(steps, SMALLEST_BLOCK_SCALE if blocks else 0.0)
