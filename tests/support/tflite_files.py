"""Reads the tensors of a `.tflite` file and modifies them in place.

Arrays are views of the file's bytes: writing to one changes a `bytearray` in place, so the file
keeps the alignment that LiteRT requires.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema


def model_of(content):
    return schema.Model.GetRootAs(content, 0)


def tensors(content):
    """Yield (signature's subgraph index, tensor) of all tensors."""
    model = model_of(content)
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            yield number, graph.Tensors(index)


def signatures(content):
    """Return signature -> side -> tensor -> (dtype, shape with -1 for dynamic sizes)."""
    model = model_of(content)
    types = {code: name for name, code in vars(schema.TensorType).items()}
    found = {}
    for definition in map(model.SignatureDefs, range(model.SignatureDefsLength())):
        graph = model.Subgraphs(definition.SubgraphIndex())
        assert graph.InputsLength() == definition.InputsLength()
        sides = {
            "inputs": map(definition.Inputs, range(definition.InputsLength())),
            "outputs": map(definition.Outputs, range(definition.OutputsLength())),
        }
        found[definition.SignatureKey().decode()] = {
            side: {
                one.Name().decode(): dtype_and_shape(graph.Tensors(one.TensorIndex()), types)
                for one in entries
            }
            for side, entries in sides.items()
        }
    return found


def dtype_and_shape(tensor, types):
    signature = tensor.ShapeSignatureAsNumpy()
    shape = tensor.ShapeAsNumpy() if isinstance(signature, int) else signature
    return types[tensor.Type()], shape.tolist()


def operators(content):
    """Return the names of all operators, including "CUSTOM"."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    model = model_of(content)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    found = []
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.OperatorsLength()):
            code = codes[graph.Operators(index).OpcodeIndex()]
            found.append(names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())])
    return found


def weight(content, name):
    """Return the bytes of the constant tensor with this suffix in its name, as a view of uint8."""
    found = {tensor.Buffer() for _, tensor in tensors(content) if is_named(tensor, name)}
    (index,) = found
    buffer = model_of(content).Buffers(index)
    if not buffer.DataLength():  # stored at the end of the file
        return np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset())
    return buffer.DataAsNumpy()


def scale(content, name):
    """Return the quantization scales of each tensor with this name."""
    return [
        tensor.Quantization().ScaleAsNumpy()
        for _, tensor in tensors(content)
        if is_named(tensor, name)
    ]


def is_named(tensor, name):
    return tensor.Name().decode().endswith(name)


def buffer_sizes(content):
    """Return the size of each buffer, stored in the flatbuffer or at the end of the file."""
    model = model_of(content)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    return [buffer.DataLength() or buffer.Size() for buffer in buffers]


def offset(content, index):
    """Return the offset of a buffer's bytes in the file."""
    data = model_of(content).Buffers(index).DataAsNumpy()
    return address(data) - address(np.frombuffer(content, np.uint8))


def address(array):
    return array.__array_interface__["data"][0]


def input_shapes(content, operator):
    """Return the shape of the first input of each operator with this name."""
    code = getattr(schema.BuiltinOperator, operator)
    model = schema.ModelT.InitFromObj(model_of(content))
    return [
        subgraph.tensors[one.inputs[0]].shape.tolist()
        for subgraph in model.subgraphs
        for one in subgraph.operators
        if model.operatorCodes[one.opcodeIndex].builtinCode == code
    ]
