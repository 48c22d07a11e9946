"""A quantized file that differs from its float file in anything but its matrices is told."""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from bart_export.errors import EngineError, VerificationFailed
from bart_export.verify import structure
from bart_export.verify.weights import StoredFile, unpack_int4


def operator_called(model, graph, name):
    return next(
        operator
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode
        == getattr(schema.BuiltinOperator, name)
    )


def move_a_bias(model, graph):
    constants = [
        model.buffers[tensor.buffer]
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.FLOAT32 and list(tensor.shape) == [64]
    ]
    bias = next(one for one in constants if one.data is not None)
    bias.data = bias.data.copy()
    bias.data.view(np.float32)[10] += 1e-5


def turn_a_difference(model, graph):
    operator = operator_called(model, graph, "SUB")
    operator.inputs = operator.inputs[::-1]


def approximate_gelu(model, graph):
    options = operator_called(model, graph, "GELU").builtinOptions
    options.approximate = not options.approximate


def lose_an_operator(model, graph):
    graph.operators.remove(operator_called(model, graph, "RSQRT"))


def square_instead_of_root(model, graph):
    right = operator_called(model, graph, "RSQRT")
    other = operator_called(model, graph, "MEAN")
    right.opcodeIndex = other.opcodeIndex


def read_another_matrix(model, graph):
    first, second, *_ = [
        operator
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode
        == schema.BuiltinOperator.FULLY_CONNECTED
    ]
    first.inputs = [first.inputs[0], second.inputs[1], first.inputs[2]]


def exchange(ends):
    """Return a harm that exchanges two caches among the inputs or outputs of a signature."""

    def harm(model, graph):
        tensors = getattr(model.signatureDefs[0], ends)
        first, second = [one for one in tensors if one.name.startswith(b"self_key")][:2]
        first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex

    return harm


def changed(file, harm, path):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.path.read_bytes(), 0))
    signature = model.signatureDefs[0]
    harm(model, model.subgraphs[signature.subgraphIndex])
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def test_a_right_file_passes(base, int8, tmp_path):
    structure.compare_graphs("it", int8.path, base.path)
    structure.compare_graphs(
        "it", changed(int8, lambda model, graph: None, tmp_path / "it"), base.path
    )


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (move_a_bias, r"input \d, .*, differs by up to 1"),
        (turn_a_difference, "SUB, input 0, "),
        (approximate_gelu, "GELU, has other options"),
        (lose_an_operator, r"there are \d+ operators instead of"),
        (square_instead_of_root, "RSQRT, is MEAN"),
        (read_another_matrix, "FULLY_CONNECTED, input 1, .* is another matrix"),
        (exchange("outputs"), "the output self_key_. is another tensor"),
        (exchange("inputs"), "is another tensor"),
    ],
)
def test_the_first_difference_is_told(base, int8, tmp_path, harm, words):
    wrong = changed(int8, harm, tmp_path / "wrong")
    with pytest.raises(VerificationFailed, match=rf"^it is not the graph .* in decode, .*{words}"):
        structure.compare_graphs("it", wrong, base.path)


@pytest.mark.parametrize(
    ("scale", "expected", "received", "passes"),
    [
        (0.01, [1.27, -0.5], [127, -50], True),
        (0.01, [1.27, -0.504], [127, -50], True),
        (0.01, [1.27, -0.51], [127, -50], False),
        # A scale three times too large has room for everything, but the step is not its own.
        (0.03, [1.27, -0.5], [127, -50], False),
        (0.03, [1.27, -0.5], [42, -17], False),
    ],
)
def test_a_constant_in_integers_is_held_to_the_step_of_its_values(
    scale, expected, received, passes
):
    tensor = schema.TensorT()
    tensor.type, tensor.shape = schema.TensorType.INT8, [2]
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = np.array([scale]), np.array([0])
    numbers = np.array(received, np.int8), np.array(expected, np.float32)
    assert (structure.constant_difference(*numbers, tensor) is None) == passes


def test_four_bits_are_unpacked_lower_half_first():
    assert unpack_int4(np.array([0x21, 0xF8], np.uint8)).tolist() == [1, 2, -8, -1]


@pytest.mark.parametrize("content", [b"", b"not a flatbuffer", b"\xff\xff\xff\x7fTFL3"])
def test_a_file_that_is_none_is_told(tmp_path, content):
    path = tmp_path / "it"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=str(path)):
        StoredFile(path)
