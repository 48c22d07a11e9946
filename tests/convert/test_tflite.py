"""The exported file: its signatures, its operators, and each weight in it once."""

import pytest
from ai_edge_litert import schema_py_generated as schema
from support import tflite_files

from bart_export import contract
from bart_export.convert import tflite
from bart_export.errors import BartExportError

FLOAT_FILE, INT8_FILE = "tflite/float32.tflite", "tflite/dynamic_wi8_afp32.tflite"
TABLE = "token_embedding/weights"
# What fuses, delegates or is free on a CPU. A new name here is a cost somebody should have seen.
EXPECTED_OPERATORS = {
    "ADD", "BATCH_MATMUL", "CAST", "EMBEDDING_LOOKUP", "EQUAL", "FULLY_CONNECTED", "GATHER",
    "GELU", "GREATER", "MEAN", "MUL", "RANGE", "RESHAPE", "RSQRT", "SHAPE", "SOFTMAX",
    "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TRANSPOSE", "EXPAND_DIMS",
}  # fmt: skip


@pytest.fixture(scope="module", params=["symmetric", "distilled", "mini"])
def artifact(request):
    return request.getfixturevalue(f"{request.param}_artifact")


@pytest.fixture(scope="module")
def content(artifact):
    return artifact.path(FLOAT_FILE).read_bytes()


def test_signatures_are_those_of_the_contract(artifact, content):
    sizes = contract.sizes(artifact.config)
    model = tflite_files.model_of(content)
    found = {}
    for index in range(model.SignatureDefsLength()):
        definition = model.SignatureDefs(index)
        graph = model.Subgraphs(definition.SubgraphIndex())
        sides = [
            (definition.InputsLength(), definition.Inputs),
            (definition.OutputsLength(), definition.Outputs),
        ]
        found[definition.SignatureKey().decode()] = [
            {
                side(place).Name().decode(): describe(graph.Tensors(side(place).TensorIndex()))
                for place in range(length)
            }
            for length, side in sides
        ]
        assert graph.InputsLength() == definition.InputsLength()
    expected = {
        signature.name: [
            {
                tensor.name: (
                    tensor.dtype.upper(),
                    [size or -1 for size in tensor.shape(sizes)],
                )
                for tensor in side
            }
            for side in (signature.inputs, signature.outputs)
        ]
        for signature in contract.tflite_signatures(artifact.config)
    }
    # The shape of an output is what inference makes of the inputs' shapes.
    for name, (inputs, outputs) in expected.items():
        assert found[name][0] == inputs
        assert {key: value[0] for key, value in found[name][1].items()} == {
            key: value[0] for key, value in outputs.items()
        }


def describe(tensor):
    """Return a tensor's dtype and shape, -1 for a size that may change."""
    types = {code: name for name, code in vars(schema.TensorType).items()}
    signature = tensor.ShapeSignatureAsNumpy()
    shape = tensor.ShapeAsNumpy() if isinstance(signature, int) else signature
    return types[tensor.Type()], shape.tolist()


def test_only_operators_that_were_looked_at(content):
    assert set(tflite_files.operators(content)) <= EXPECTED_OPERATORS


def test_every_projection_is_one_fully_connected(artifact, content):
    config = artifact.config
    # Query, key, value, output; each feed-forward block has two; one for the logits.
    encoder = config.num_layers * (4 + 2) + config.decoder_layers * 2
    decoder = config.decoder_layers * (4 + 2 + 2) + 1
    operators = tflite_files.operators(content)
    # The decoder is there twice, for several beams and for one.
    assert operators.count("FULLY_CONNECTED") == encoder + 2 * decoder
    # Token and position tables of each; what is left gathers the caches of the beams.
    assert operators.count("EMBEDDING_LOOKUP") == 6
    assert operators.count("GATHER") == 2 * config.decoder_layers


def test_runtimes_without_xnnpack_are_told_to_round_inputs_as_it_does(content):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    flags = [
        operator.builtinOptions.asymmetricQuantizeInputs
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        if tflite.builtin(model, operator) == schema.BuiltinOperator.FULLY_CONNECTED
    ]
    assert flags
    assert all(flags)


def test_matrices_are_in_the_file_once_and_aligned(artifact, content):
    vocabulary, hidden = artifact.config.vocabulary_size, artifact.config.hidden_dim
    buffers = [tensor.Buffer() for _, tensor in tflite_files.tensors(content)
               if tflite_files.is_named(tensor, TABLE)]  # fmt: skip
    assert len(buffers) == 3  # one of each signature
    assert len(set(buffers)) == 1
    sizes = tflite_files.buffer_sizes(content)
    assert sum(size >= 4 * vocabulary * hidden for size in sizes) == 1
    assert len(content) < 4 * artifact.manifest.parameter_count * 1.02 + 120_000
    matrices = [index for index, size in enumerate(sizes) if size >= 4 * hidden * hidden]
    assert [tflite_files.offset(content, index) % 16 for index in matrices] == [0] * len(matrices)


def test_an_int8_file_has_the_table_once_and_little_over_a_byte_a_parameter(mini_artifact):
    content = mini_artifact.path(INT8_FILE).read_bytes()
    vocabulary, hidden = mini_artifact.config.vocabulary_size, mini_artifact.config.hidden_dim
    sizes = tflite_files.buffer_sizes(content)
    assert sum(size >= vocabulary * hidden for size in sizes) == 1
    assert max(sizes) == vocabulary * hidden
    # 8.7 MB for 7.9 M parameters: scales and graphs count for more in a small model.
    assert len(content) <= 1.11 * mini_artifact.manifest.parameter_count
    (buffer,) = {
        tensor.Buffer() for _, tensor in tflite_files.tensors(content)
        if tflite_files.is_named(tensor, TABLE)
    }  # fmt: skip
    assert sizes[buffer] == vocabulary * hidden
    scales = tflite_files.scale(content, TABLE)
    assert {len(scale) for scale in scales} == {vocabulary}
    for scale in scales[1:]:
        assert (scale == scales[0]).all()


def test_a_file_with_an_operator_that_is_not_builtin_is_refused(content):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    tflite.refuse_foreign_operators(model)
    code = schema.OperatorCodeT()
    code.builtinCode, code.customCode = schema.BuiltinOperator.CUSTOM, b"FlexErf"
    model.operatorCodes.append(code)
    model.subgraphs[0].operators[0].opcodeIndex = len(model.operatorCodes) - 1
    with pytest.raises(BartExportError, match="FlexErf"):
        tflite.refuse_foreign_operators(model)
