"""`.tflite` files of a few operations, each of which satisfies or violates one rule."""

import dataclasses

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

NUMPY = {"INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "FLOAT32": np.float32}


@dataclasses.dataclass(frozen=True)
class Given:
    """A tensor; `numbers` are a constant's values, `signature` its shape with -1 if dynamic."""

    shape: tuple
    dtype: str = "INT8"
    numbers: object = None
    scales: tuple = (0.5,)
    zero_point: int = 0
    signature: tuple | None = None


def int32(*numbers):
    return Given((len(numbers),), "INT32", numbers, scales=())


@dataclasses.dataclass(frozen=True)
class Node:
    """An operation; its options are fields of the operator's options in the schema."""

    operator: str
    inputs: tuple
    outputs: tuple
    options: str | None = None
    version: int = 1
    fields: dict = dataclasses.field(default_factory=dict)
    code: int | None = None
    custom: str | None = None

    def change(self, **changes):
        return dataclasses.replace(self, **changes)

    def change_input(self, place, **changes):
        inputs = list(self.inputs)
        inputs[place] = dataclasses.replace(inputs[place], **changes)
        return self.change(inputs=tuple(inputs))

    def change_output(self, **changes):
        return self.change(outputs=(dataclasses.replace(self.outputs[0], **changes),))

    def change_fields(self, **changes):
        return self.change(fields={**self.fields, **changes})


def content(*graphs):
    """Return the bytes of a file with a subgraph for each list of operations.

    A `Given` object that occurs twice is one tensor.
    """
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    model.operatorCodes = []
    model.subgraphs = [subgraph(model, nodes) for nodes in graphs]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def subgraph(model, nodes):
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
    places = {}
    for node in nodes:
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes)
        model.operatorCodes.append(operator_code(node))
        operator.inputs = [place(model, graph, places, given) for given in node.inputs]
        operator.outputs = [place(model, graph, places, given) for given in node.outputs]
        if node.options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, node.options)
            operator.builtinOptions = getattr(schema, f"{node.options}T")()
            for name, value in node.fields.items():
                setattr(operator.builtinOptions, name, value)
        graph.operators.append(operator)
    return graph


def operator_code(node):
    code = schema.OperatorCodeT()
    number = getattr(schema.BuiltinOperator, node.operator) if node.code is None else node.code
    code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
    code.version, code.customCode = node.version, node.custom
    return code


def place(model, graph, places, given):
    if given is None:
        return -1
    if id(given) not in places:
        places[id(given)] = len(graph.tensors)
        graph.tensors.append(tensor(model, given, f"tensor_{len(graph.tensors)}"))
    return places[id(given)]


def tensor(model, given, name):
    made = schema.TensorT()
    made.name, made.shape = name, list(given.shape)
    made.type = getattr(schema.TensorType, given.dtype)
    made.shapeSignature = None if given.signature is None else list(given.signature)
    made.buffer = 0
    if given.numbers is not None:
        buffer = schema.BufferT()
        numbers = np.broadcast_to(np.asarray(given.numbers, NUMPY[given.dtype]), given.shape)
        buffer.data = np.frombuffer(numbers.tobytes(), np.uint8)
        made.buffer = len(model.buffers)
        model.buffers.append(buffer)
    if given.scales:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = list(given.scales)
        made.quantization.zeroPoint = [given.zero_point] * len(given.scales)
    return made


ROW, ROWS = (1, 16), (1, 1, 8, 16)  # one row of numbers; eight of them

# A valid operation for each operator that has rules.
OPERATIONS = {
    node.operator: node
    for node in (
        Node("ADD", (Given(ROWS), Given(ROWS)), (Given(ROWS),), "AddOptions", 2),
        Node("LOGISTIC", (Given(ROWS),), (Given(ROWS),)),
        Node("CONV_2D",
             (Given(ROWS), Given((4, 1, 1, 16), numbers=1, scales=(0.1, 0.2, 0.3, 0.4)),
              Given((4,), "INT32", 1)),
             (Given((1, 1, 8, 4)),), "Conv2DOptions", 3,
             {"dilationWFactor": 1, "dilationHFactor": 1}),
        Node("FULLY_CONNECTED",
             (Given(ROW), Given((4, 16), numbers=1), Given((4,), "INT32", 1)),
             (Given((1, 4)),), "FullyConnectedOptions", 5),
        Node("SOFTMAX", (Given(ROW),), (Given(ROW),), "SoftmaxOptions", 2),
        Node("MEAN", (Given(ROWS), int32(3)), (Given((1, 1, 8, 1)),), "ReducerOptions", 2),
        Node("SUM", (Given(ROWS), int32(2)), (Given((1, 1, 1, 16)),), "ReducerOptions"),
        Node("STRIDED_SLICE",
             (Given(ROWS), int32(0, 0, 0, 0), int32(1, 1, 4, 16), int32(1, 1, 1, 1)),
             (Given((1, 1, 4, 16)),), "StridedSliceOptions", 2),
        Node("CONCATENATION",
             (Given(ROWS), Given(ROWS, numbers=7, zero_point=7)),
             (Given((1, 1, 16, 16)),), "ConcatenationOptions", 2, {"axis": 2}),
        Node("MAX_POOL_2D", (Given(ROWS),), (Given(ROWS),), "Pool2DOptions", 2,
             {"filterWidth": 1, "filterHeight": 1, "strideW": 1, "strideH": 1}),
        Node("PACK", (Given(ROW), Given(ROW)), (Given((1, 2, 16)),), "PackOptions", 2, {"axis": 1}),
        Node("PAD",
             (Given(ROW), Given((2, 2), "INT32", [[0, 0], [1, 1]], scales=())),
             (Given((1, 18)),), "PadOptions", 2),
        Node("SPLIT",
             (Given((), "INT32", 1, scales=()), Given(ROW)),
             (Given((1, 8)), Given((1, 8))), "SplitOptions", 2, {"numSplits": 2}),
        Node("PRELU", (Given(ROWS), Given((1, 1, 16), numbers=1)), (Given(ROWS),)),
        Node("SQUEEZE", (Given((1, 5, 16)),), (Given((5, 16)),), "SqueezeOptions"),
        Node("RESHAPE", (Given(ROWS), int32(1, 8, 16)), (Given((1, 8, 16)),), "ReshapeOptions"),
        Node("QUANTIZE", (Given(ROWS),), (Given(ROWS, "UINT8"),), "QuantizeOptions"),
    )
}  # fmt: skip
