"""The operations of a `.tflite` file, in the form that the compiler's rules use."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export import documents
from bart_export.errors import EngineError

IDENTIFIER = b"TFL3"  # bytes 4 to 7 of every .tflite file
LARGEST_FILE = 1 << 31  # bytes: offsets in a flatbuffer are signed 32-bit integers
OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items()}
TYPES = {code: name for name, code in vars(schema.TensorType).items()}
# Types whose values the rules read.
NUMPY_TYPES = {"INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64}


@dataclasses.dataclass(frozen=True)
class Operand:
    """A tensor of a subgraph.

    `constant` is the content of its buffer, or None if the tensor is computed; `buffer` is the
    buffer's index. `dynamic` means that a size is known only at run time.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    dynamic: bool
    buffer: int
    constant: npt.NDArray[np.uint8] | None
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]

    @property
    def numbers(self) -> npt.NDArray[np.integer]:
        """The constant's values, (size,), or no values if the tensor is computed."""
        if self.constant is None:
            return np.zeros(0, np.int32)
        return self.constant.view(NUMPY_TYPES.get(self.dtype, np.uint8))

    @property
    def rows(self) -> int:
        """The number of rows of the innermost dimension: 1 for a one-dimensional tensor."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Operation:
    """A node of a graph; an omitted input is None. `options` are the schema's, or None.

    `operator` is the schema's name for the builtin code, or "#CODE" if it has none; `custom` is the
    name of a custom operator.
    """

    number: int
    subgraph: int
    operator: str
    code: int
    version: int
    custom: str
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]
    options: object

    @property
    def operands(self) -> list[Operand]:
        """Inputs and outputs."""
        return [operand for operand in (*self.inputs, *self.outputs) if operand is not None]

    def input(self, index: int) -> Operand:
        """Return a required input."""
        operand = self.inputs[index]
        if operand is None:
            raise IndexError(f"input {index} of {self.operator} is missing")
        return operand

    def option(self, name: str) -> int:
        """Return an option of the operator, or 0 if the file omits it."""
        return int(getattr(self.options, name, 0))


def read_operations(path: pathlib.Path) -> tuple[Operation, ...]:
    """Return the operations of all subgraphs of a `.tflite` file, in execution order.

    Raises:
        EngineError: if the file cannot be read or is not a `.tflite` file.
    """
    try:
        content = documents.read_bounded(path, LARGEST_FILE)
    except OSError as error:
        raise EngineError(f"Cannot read {path}: {error.strerror}.") from error
    if content[4:8] != IDENTIFIER:
        raise EngineError(f"{path} is not a .tflite file: bytes 4 to 7 must be TFL3.")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    return tuple(
        operation_of(model, number, graph, node)
        for number, graph in enumerate(model.subgraphs)
        for node in range(len(graph.operators))
    )


def operation_of(
    model: schema.ModelT, subgraph: int, graph: schema.SubGraphT, node: int
) -> Operation:
    """Return one node of a graph."""
    operator = graph.operators[node]
    entry = model.operatorCodes[operator.opcodeIndex]
    # Older files have the code in the deprecated field only.
    code = max(int(entry.builtinCode), int(entry.deprecatedBuiltinCode))
    inputs, outputs = integers(operator.inputs), integers(operator.outputs)
    return Operation(
        number=node,
        subgraph=subgraph,
        operator=OPERATORS.get(code, f"#{code}"),
        code=code,
        version=int(entry.version),
        custom=(entry.customCode or b"").decode(),
        inputs=tuple(operand_of(model, graph, index) if index >= 0 else None for index in inputs),
        outputs=tuple(operand_of(model, graph, index) for index in outputs),
        options=operator.builtinOptions,
    )


def operand_of(model: schema.ModelT, graph: schema.SubGraphT, index: int) -> Operand:
    """Return one tensor of a graph."""
    tensor = graph.tensors[index]
    buffer, shape = model.buffers[tensor.buffer], integers(tensor.shape)
    scales = getattr(tensor.quantization, "scale", None)
    return Operand(
        index=index,
        name=(tensor.name or b"").decode(),
        shape=shape,
        dtype=TYPES.get(int(tensor.type), f"#{int(tensor.type)}"),
        dynamic=min((*shape, *integers(tensor.shapeSignature)), default=0) < 0,
        buffer=int(tensor.buffer),
        constant=None if buffer.data is None else np.asarray(buffer.data, np.uint8),
        scales=() if scales is None else tuple(map(float, scales)),
        zero_points=integers(getattr(tensor.quantization, "zeroPoint", None)),
    )


def integers(numbers: Iterable[int] | None) -> tuple[int, ...]:
    """Return a flatbuffer vector as a tuple, which is empty if the vector is missing."""
    return () if numbers is None else tuple(map(int, numbers))
