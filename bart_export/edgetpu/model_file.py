"""A `.tflite` file as values: the bytes go in, its operations and their operands come out.

An operation is one node of the graph, with what the compiler's rules ask about: operator, version,
shapes, types, scales, constants. Nothing here knows a rule.
"""

import dataclasses
import pathlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export import documents
from bart_export.errors import EngineError

Array = npt.NDArray[Any]

IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every .tflite file
LARGEST_FILE = 1 << 31  # bytes: offsets in a flatbuffer have 32 bits and a sign


def names_of(enumeration: type) -> dict[int, str]:
    """Return number -> name of one of the schema's enumerations."""
    return {code: name for name, code in vars(enumeration).items() if isinstance(code, int)}


OPERATORS = names_of(schema.BuiltinOperator)
TYPES = names_of(schema.TensorType)
# How the numbers of a constant are read; of other types only the bytes count.
NUMPY_TYPES = {"INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64}


@dataclasses.dataclass(frozen=True)
class Operand:
    """One tensor of a subgraph.

    `constant` is its buffer's bytes, None where the tensor is computed; `buffer` tells buffers
    apart that several tensors share. `dynamic` says that a size is known only while running.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    dynamic: bool
    buffer: int
    constant: Array | None
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]

    @property
    def numbers(self) -> Array:
        """A constant's numbers in one row; none where it is computed."""
        if self.constant is None:
            return np.zeros(0, np.int32)
        return self.constant.view(NUMPY_TYPES.get(self.dtype, np.uint8))

    @property
    def rows(self) -> int:
        """How many rows of the innermost dimension there are: 1 for a tensor of one dimension."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Operation:
    """One node of a graph; an input that is left out is None. `options` are the schema's, or None.

    `operator` is the schema's name of the builtin code, "#CODE" for a code it does not know; of a
    custom operator `custom` is the name.
    """

    number: int
    subgraph: int
    operator: str
    code: int
    version: int
    custom: str
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]
    options: Any


def read(path: pathlib.Path) -> tuple[Operation, ...]:
    """Return the operations of a `.tflite` file, subgraph after subgraph, in running order.

    Raises:
        EngineError: for a file that cannot be read or is no `.tflite` file.
    """
    try:
        content = documents.read(path, LARGEST_FILE)
    except OSError as error:
        raise EngineError(f"Cannot read {path}: {error.strerror}.") from error
    if content[4:8] != IDENTIFIER:
        raise EngineError(f"{path} must be a .tflite file, whose bytes 4 to 8 are TFL3; it is not.")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        return tuple(
            operation(model, number, graph, node)
            for number, graph in enumerate(model.subgraphs)
            for node in range(len(graph.operators))
        )
    except (struct.error, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{path} begins like a .tflite file but is damaged: {error}.") from error


def operation(model: Any, subgraph: int, graph: Any, node: int) -> Operation:
    """Return one node of a graph as a value."""
    operator = graph.operators[node]
    entry = model.operatorCodes[operator.opcodeIndex]
    # Codes up to 127 live in a field of their own, which older files have alone.
    code = max(int(entry.builtinCode), int(entry.deprecatedBuiltinCode))
    return Operation(
        number=node,
        subgraph=subgraph,
        operator=OPERATORS.get(code, f"#{code}"),
        code=code,
        version=int(entry.version),
        custom=(entry.customCode or b"").decode(),
        inputs=tuple(
            operand(model, graph, index) if index >= 0 else None
            for index in listed(operator.inputs)
        ),
        outputs=tuple(operand(model, graph, index) for index in listed(operator.outputs)),
        options=operator.builtinOptions,
    )


def operand(model: Any, graph: Any, index: int) -> Operand:
    """Return one tensor of a graph as a value."""
    tensor = graph.tensors[index]
    buffer = model.buffers[tensor.buffer]
    shape, signature = listed(tensor.shape), listed(tensor.shapeSignature)
    quantization = tensor.quantization
    return Operand(
        index=index,
        name=(tensor.name or b"").decode(),
        shape=tuple(shape),
        dtype=TYPES.get(int(tensor.type), f"#{int(tensor.type)}"),
        dynamic=min([*shape, *signature], default=0) < 0,
        buffer=int(tensor.buffer),
        constant=None if buffer.data is None else np.asarray(buffer.data, np.uint8),
        scales=tuple(map(float, quantization.scale)) if has(quantization, "scale") else (),
        zero_points=tuple(listed(quantization.zeroPoint)) if has(quantization, "zeroPoint") else (),
    )


def has(quantization: Any, field: str) -> bool:
    """Return whether a tensor's quantization is there and has a field."""
    return quantization is not None and getattr(quantization, field) is not None


def listed(numbers: Any) -> list[int]:
    """Return a vector of the flatbuffer, which may be missing, as a list."""
    return [] if numbers is None else [int(number) for number in numbers]
