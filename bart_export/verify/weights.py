"""What a `.tflite` file stores, and how far each row of its matrices is from the checkpoint.

Logits of a few texts hardly depend on a row of the token embedding that no text uses, or on the
scale of a single row. Here every row of every matrix is compared.

An error is measured in steps of ideal rounding, so that one bound fits every width. Where n bits
share a scale, the step is the largest magnitude among those that share it over 2^(n-1) - 1
(symmetric quantization as in arXiv:1712.05877, which AI Edge Quantizer follows); for a float type
it is the distance of neighbouring numbers at the largest magnitude of the row. The error is the
root mean square over those that share a scale, or over the row where a whole matrix shares one.
Rounding to nearest cannot exceed half a step, and is about 1 / sqrt(12) on the average.
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

from bart_export.checkpoints.names import layer_names
from bart_export.config import BartConfig
from bart_export.errors import EngineError, VerificationFailed
from bart_export.recipes.table import Recipe, Storage
from bart_export.runtime.engine import FloatArray
from bart_export.verify.data import Floats

Array = npt.NDArray[Any]
Matrices = Callable[[str], FloatArray]  # layer name -> its float matrix (rows, columns)
# Objects of the generated schema, which is not typed.
Graph: TypeAlias = Any
Tensor: TypeAlias = Any
Operator: TypeAlias = Any

WEIGHTS = "/weights"  # ends the name of a matrix, after its signature and layer
IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every .tflite file
OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
TYPES = schema.TensorType
NUMPY_TYPES = {
    TYPES.FLOAT32: np.float32,
    TYPES.FLOAT16: np.float16,
    TYPES.INT64: np.int64,
    TYPES.INT32: np.int32,
    TYPES.INT16: np.int16,
    TYPES.INT8: np.int8,
    TYPES.UINT8: np.uint8,
    TYPES.BOOL: np.bool_,
}


class StoredFile:
    """The graphs and constants of a `.tflite` file, which is mapped, not loaded.

    Raises:
        EngineError: for a file that cannot be read or is no `.tflite` file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        try:
            with path.open("rb") as file:
                self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: nothing to map
            raise EngineError(f"Cannot read {path}: {error}.") from error
        if self.content[4:8] != IDENTIFIER:
            raise EngineError(f"{path} must be a .tflite file, whose bytes 4 to 8 are TFL3.")
        try:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(self.content, 0))
        except (struct.error, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"{path} is damaged: {error}.") from error

    def graphs(self) -> dict[str, Graph]:
        """Return the subgraph, a `SubGraphT`, of every signature by its name."""
        return {
            signature.signatureKey.decode(): self.model.subgraphs[signature.subgraphIndex]
            for signature in self.model.signatureDefs or ()
        }

    def operator_name(self, operator: Operator) -> str:
        """Return the name of an operator."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        # Codes up to 127 have a field of their own, the only one of older files.
        number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        return str(OPERATORS.get(number, number))

    def data(self, tensor: Tensor) -> npt.NDArray[np.uint8] | None:
        """Return the bytes of a constant; None for a tensor that is computed."""
        buffer = self.model.buffers[tensor.buffer]
        if buffer.size:  # beyond the flatbuffer, at the end of the file
            return np.frombuffer(self.content, np.uint8, buffer.size, buffer.offset)
        data: npt.NDArray[np.uint8] | None = buffer.data
        return data

    def numbers(self, tensor: Tensor) -> Array:
        """Return the numbers of a constant in its shape, as they are stored."""
        data, shape = self.data(tensor), shape_of(tensor)
        if data is None:
            raise EngineError(f"The tensor {tensor.name.decode()} is no constant.")
        if tensor.type == TYPES.INT4:
            return unpack_int4(data)[: int(np.prod(shape))].reshape(shape)
        return data.view(NUMPY_TYPES[tensor.type]).reshape(shape)

    def rows(self, graph: Graph, tensor: Tensor, first: int, last: int) -> FloatArray:
        """Return some rows of a stored matrix as float32, (last - first, columns)."""
        data, columns = self.data(tensor), shape_of(tensor)[1]
        if tensor.type == TYPES.INT4 and data is not None and columns % 2 == 0:
            half = columns // 2
            numbers: Array = unpack_int4(data[first * half : last * half]).reshape(-1, columns)
        else:
            numbers = self.numbers(tensor)[first:last]
        numbers = numbers.astype(np.float32)
        quantization = tensor.quantization
        if quantization is None:
            return numbers
        if quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization:
            details = quantization.details
            scales = self.numbers(graph.tensors[details.scales])[first:last].astype(np.float32)
            return numbers * np.repeat(scales, details.blockSize, axis=1)
        if quantization.scale is None:
            return numbers
        scales, zeros = np.asarray(quantization.scale), np.asarray(quantization.zeroPoint)
        if len(scales) > 1:
            scales, zeros = scales[first:last, None], zeros[first:last, None]
        dequantized: FloatArray = (numbers - zeros.astype(np.float32)) * scales
        return dequantized

    def matrices(self) -> dict[str, list[tuple[Graph, Tensor]]]:
        """Return the (graph, tensor) pairs of every layer that hold its matrix.

        They are the constants called SIGNATURE/LAYER/weights. What several signatures share is
        listed once.
        """
        found: dict[str, dict[object, tuple[Graph, Tensor]]] = {}
        for graph in self.model.subgraphs:
            for tensor in graph.tensors:
                layer = layer_of(tensor)
                if layer is not None and self.data(tensor) is not None:
                    shared = numbers_key(graph, tensor)
                    found.setdefault(layer, {}).setdefault(shared, (graph, tensor))
        return {layer: list(pairs.values()) for layer, pairs in found.items()}


def layer_of(tensor: Tensor) -> str | None:
    """Return the layer whose matrix a tensor is, None for another tensor."""
    name = tensor.name.decode()
    if not name.endswith(WEIGHTS):
        return None
    _, _, layer = name.removesuffix(WEIGHTS).partition("/")
    return str(layer)


def numbers_key(graph: Graph, tensor: Tensor) -> object:
    """Return a key that is equal for tensors that stand for the same numbers."""
    quantization = tensor.quantization
    if quantization is None:
        return tensor.buffer
    details, scale = quantization.details, quantization.scale
    blocks = None if details is None else graph.tensors[details.scales].buffer
    return tensor.buffer, blocks, None if scale is None else np.asarray(scale).tobytes()


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return a tensor's shape; a scalar has none."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def unpack_int4(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return the signed 4-bit numbers of some bytes, the lower half of a byte first."""
    both = np.stack([data << 4, data & 0xF0], axis=-1).reshape(-1)
    return both.view(np.int8) >> 4


def checkpoint_matrices(config: BartConfig, parameters: Mapping[str, FloatArray]) -> Matrices:
    """Return a reader of a checkpoint's matrices by layer name."""
    names = layer_names(config)
    return lambda layer: parameters[names[layer]]


def stored_matrices(path: pathlib.Path) -> Matrices:
    """Return a reader of the matrices that a file holds, as float32, by layer name."""
    stored = StoredFile(path)
    matrices = stored.matrices()

    def read(layer: str) -> FloatArray:
        graph, tensor = matrices[layer][0]
        return stored.rows(graph, tensor, 0, shape_of(tensor)[0])

    return read


# Rounding that compensates its errors in neighbours (GPTQ) moves some weights by more than half a
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

    layer: str
    row: int
    error: float


def worst_row(
    path: pathlib.Path, config: BartConfig, recipe: Recipe, matrices: Matrices
) -> RowError:
    """Return the worst row of all matrices of a `.tflite` file.

    Args:
        path: the file.
        config: the architecture, which says what layers there are.
        recipe: how they are meant to be stored.
        matrices: what they should hold.

    Raises:
        VerificationFailed: if a layer is missing, or has another shape.
    """
    stored = StoredFile(path)
    held = stored.matrices()
    worst = []
    for layer in layer_names(config):
        expected = matrices(layer)
        pairs = held.get(layer, [])
        if not pairs or any(shape_of(tensor) != expected.shape for _, tensor in pairs):
            shape = " x ".join(map(str, expected.shape))
            raise VerificationFailed(
                f"{path} must hold a matrix of {shape} for the layer {layer}, and does not."
            )
        for graph, tensor in pairs:
            rows = functools.partial(stored.rows, graph, tensor)
            worst.append(RowError(layer, *worst_of_matrix(expected, rows, recipe.storage(layer))))
    return max(worst, key=lambda row: np.nan_to_num(row.error, nan=np.inf))


def worst_of_matrix(
    expected: FloatArray, received: Callable[[int, int], FloatArray], storage: Storage
) -> tuple[int, float]:
    """Return the worst row of a matrix and its error; `received` gives a range of stored rows."""
    largest = (
        float(np.abs(expected).max(initial=0.0)) if storage.granularity == "tensorwise" else None
    )
    at_a_time = max(1, CHUNK // expected.shape[1])
    worst = (0, 0.0)
    for first in range(0, len(expected), at_a_time):
        rows = expected[first : first + at_a_time]
        errors = row_errors(rows, received(first, first + len(rows)), storage, largest)
        row = int(errors.argmax())  # a NaN counts as the largest
        if not errors[row] <= worst[1]:
            worst = (first + row, float(errors[row]))
    return worst


def row_errors(
    expected: FloatArray, received: FloatArray, storage: Storage, largest: float | None
) -> Floats:
    """Return the error of each row in steps, the worst block's where blocks share a scale.

    `largest` is the largest magnitude of the matrix where all of it shares a scale.
    """
    rows, columns = expected.shape
    granularity = storage.granularity or ""
    size = int(granularity.partition("_")[2]) if granularity.startswith("blockwise") else columns
    if columns % size:  # no row can be cut into such blocks
        size = columns
    groups = expected.reshape(rows, columns // size, size)
    error = received.reshape(groups.shape).astype(np.float64) - groups
    ranges = np.abs(groups).max(-1) if largest is None else np.full(groups.shape[:2], largest)
    steps = rounding_step(ranges.astype(np.float64), storage)
    errors: Floats = (np.sqrt(np.square(error).mean(-1)) / steps).max(-1)
    return errors


def rounding_step(largest: Floats, storage: Storage) -> Floats:
    """Return the step of ideal rounding by the largest magnitude."""
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
