"""A quantized file may differ from its float file only in its matrices."""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from bart_export.errors import EngineError, VerificationFailed
from bart_export.verify import structure
from bart_export.verify.weights import StoredFile


def operators_called(model, graph, name):
    code = getattr(schema.BuiltinOperator, name)
    return [each for each in graph.operators
            if model.operatorCodes[each.opcodeIndex].builtinCode == code]  # fmt: skip


def move_a_bias(model, graph):
    bias = next(
        buffer
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.FLOAT32 and list(tensor.shape) == [64]
        if (buffer := model.buffers[tensor.buffer]).data is not None
    )
    bias.data = bias.data.copy()
    bias.data.view(np.float32)[10] += 1e-5


def turn_a_difference(model, graph):
    operator = operators_called(model, graph, "SUB")[0]
    operator.inputs = operator.inputs[::-1]


def approximate_gelu(model, graph):
    options = operators_called(model, graph, "GELU")[0].builtinOptions
    options.approximate = not options.approximate


def lose_an_operator(model, graph):
    graph.operators.remove(operators_called(model, graph, "RSQRT")[0])


def mean_instead_of_root(model, graph):
    right, other = (operators_called(model, graph, name)[0] for name in ("RSQRT", "MEAN"))
    right.opcodeIndex = other.opcodeIndex


def read_another_matrix(model, graph):
    first, second, *_ = operators_called(model, graph, "FULLY_CONNECTED")
    first.inputs = [first.inputs[0], second.inputs[1], first.inputs[2]]


def exchange(ends):
    """Return a change that swaps two caches among the inputs or outputs of a signature."""

    def change(model, graph):
        tensors = getattr(model.signatureDefs[0], ends)
        first, second, *_ = (each for each in tensors if each.name.startswith(b"self_key"))
        first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex

    return change


def changed(file, harm, path):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.path.read_bytes(), 0))
    signature = model.signatureDefs[0]
    harm(model, model.subgraphs[signature.subgraphIndex])
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def test_a_correct_file_passes(base, int8, tmp_path):
    structure.compare_graphs("it", int8.path, base.path)
    structure.compare_graphs(
        "it", changed(int8, lambda model, graph: None, tmp_path / "it"), base.path
    )


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (move_a_bias, r"input \d, .*, differs by up to 1"),
        (turn_a_difference, "SUB, input 0, "),
        (approximate_gelu, "GELU, has different options"),
        (lose_an_operator, r"there are \d+ operators instead of"),
        (mean_instead_of_root, r"operator \d+ is MEAN instead of RSQRT"),
        (read_another_matrix, "FULLY_CONNECTED, input 1, .* is a different matrix"),
        (exchange("outputs"), "the output self_key_. is a different tensor"),
        (exchange("inputs"), "is a different tensor"),
    ],
)
def test_the_first_difference_is_reported(base, int8, tmp_path, harm, words):
    wrong = changed(int8, harm, tmp_path / "wrong")
    with pytest.raises(
        VerificationFailed, match=rf"^it differs from the graph .* in decode, .*{words}"
    ):
        structure.compare_graphs("it", wrong, base.path)


@pytest.mark.parametrize(
    ("scale", "expected", "received", "passes"),
    [
        (0.01, [1.27, -0.5], [127, -50], True),
        (0.01, [1.27, -0.504], [127, -50], True),
        (0.01, [1.27, -0.51], [127, -50], False),
        # A scale three times too large, which would accept anything.
        (0.03, [1.27, -0.5], [127, -50], False),
        (0.03, [1.27, -0.5], [42, -17], False),
    ],
)
def test_an_integer_constant_may_be_off_by_half_a_step_of_its_values(
    scale, expected, received, passes
):
    tensor = schema.TensorT()
    tensor.type, tensor.shape = schema.TensorType.INT8, [2]
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = np.array([scale]), np.array([0])
    numbers = np.array(received, np.int8), np.array(expected, np.float32)
    assert (structure.constant_difference(*numbers, tensor) is None) == passes


@pytest.mark.parametrize("content", [b"", b"not a flatbuffer", b"\xff\xff\xff\x7fTFL3"])
def test_a_file_that_is_not_tflite_is_refused(tmp_path, content):
    path = tmp_path / "it"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=str(path)):
        StoredFile(path)
