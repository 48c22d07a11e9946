"""What a `.tflite` file stores: its graphs and constants, numbers as the engine takes them.

A path goes in, a `Stored` comes out, from which constants are read as float32 a few rows at a time,
whatever they are stored in. The file is mapped, not loaded. What a graph should hold is not known
here.
"""

import mmap
import pathlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.errors import EngineError

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

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


class Stored:
    """The graphs and constants of a file.

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

    def graphs(self) -> dict[str, Any]:
        """Return the subgraph, a `SubGraphT`, of every signature by its name."""
        return {
            signature.signatureKey.decode(): self.model.subgraphs[signature.subgraphIndex]
            for signature in self.model.signatureDefs or ()
        }

    def operator(self, operator: Any) -> str:
        """Return the name of an operator."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        # Codes up to 127 live in a field of their own, which older files have alone.
        number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        return str(OPERATORS.get(number, number))

    def data(self, tensor: Any) -> npt.NDArray[np.uint8] | None:
        """Return the bytes of a constant; None for a tensor that is computed."""
        buffer = self.model.buffers[tensor.buffer]
        if buffer.size:  # beyond the flatbuffer, at the end of the file
            return np.frombuffer(self.content, np.uint8, buffer.size, buffer.offset)
        data: npt.NDArray[np.uint8] | None = buffer.data
        return data

    def numbers(self, tensor: Any) -> Array:
        """Return the numbers of a constant in its shape, as they are stored."""
        data = self.data(tensor)
        if data is None:
            raise EngineError(f"The tensor {tensor.name.decode()} is no constant.")
        shape = shape_of(tensor)
        if tensor.type == TYPES.INT4:
            return unpacked(data)[: int(np.prod(shape))].reshape(shape)
        return data.view(NUMPY_TYPES[tensor.type]).reshape(shape)

    def rows(self, graph: Any, tensor: Any, first: int, last: int) -> FloatArray:
        """Return some rows of a stored matrix as float32, (last - first, columns)."""
        numbers = self.row_numbers(tensor, first, last).astype(np.float32)
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

    def row_numbers(self, tensor: Any, first: int, last: int) -> Array:
        """Return some rows of a stored matrix, as they are stored."""
        data, columns = self.data(tensor), shape_of(tensor)[1]
        if tensor.type == TYPES.INT4 and data is not None and columns % 2 == 0:
            half = columns // 2
            return unpacked(data[first * half : last * half]).reshape(-1, columns)
        return self.numbers(tensor)[first:last]

    def matrices(self) -> dict[str, list[tuple[Any, Any]]]:
        """Return the (graph, tensor) pairs of every layer that hold its matrix.

        They are the constants called SIGNATURE/LAYER/weights. Signatures share what they store;
        what several share is listed once.
        """
        found: dict[str, dict[Any, tuple[Any, Any]]] = {}
        for graph in self.model.subgraphs:
            for tensor in graph.tensors:
                name = tensor.name.decode()
                if name.endswith(WEIGHTS) and self.data(tensor) is not None:
                    layer = name.removesuffix(WEIGHTS).partition("/")[2]
                    shared = self.identity(graph, tensor)
                    found.setdefault(layer, {}).setdefault(shared, (graph, tensor))
        return {layer: list(pairs.values()) for layer, pairs in found.items()}

    def identity(self, graph: Any, tensor: Any) -> Any:
        """Return what two tensors have in common if they stand for the same numbers."""
        quantization = tensor.quantization
        if quantization is None:
            return tensor.buffer
        details, scale = quantization.details, quantization.scale
        blocks = None if details is None else graph.tensors[details.scales].buffer
        return tensor.buffer, blocks, None if scale is None else np.asarray(scale).tobytes()


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return a tensor's shape; a scalar has none."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def unpacked(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return the signed 4-bit numbers of some bytes, the lower half of a byte first."""
    both = np.stack([data << 4, data & 0xF0], axis=-1).reshape(-1)
    return both.view(np.int8) >> 4
