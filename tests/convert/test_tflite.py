"""Exported files of both builds: signatures, operators, and each weight once."""

import pytest
from ai_edge_litert import schema_py_generated as schema
from support import tflite_files

from bart_export import contract
from bart_export.contract import StaticShapes
from bart_export.convert import tflite
from bart_export.errors import BartExportError, ConfigurationError

FLOAT_FILE, INT8_FILE = "tflite/float32.tflite", "tflite/dynamic_wi8_afp32.tflite"
STATIC_FILES = ["tflite/float32.static.tflite", "tflite/dynamic_wi8_afp32.static.tflite"]
TABLE = "token_embedding/weights"
# What fuses, delegates or is free on a CPU. A new name here is a cost somebody should have seen. A
# static build has no arithmetic on shapes, and nothing that a GPU delegate has no kernel for but
# lookups, comparisons of integers and a draft's first position, all at the
# start of a step.
STATIC_OPERATORS = {
    "ADD", "BATCH_MATMUL", "CAST", "EMBEDDING_LOOKUP", "EQUAL", "FULLY_CONNECTED",
    "GELU", "GREATER", "MEAN", "MUL", "RESHAPE", "RSQRT", "SOFTMAX", "SQUARED_DIFFERENCE",
    "STRIDED_SLICE", "SUB", "SUM", "TRANSPOSE",
}  # fmt: skip
OPERATORS = {*STATIC_OPERATORS, "CONCATENATION", "EXPAND_DIMS", "RANGE", "SHAPE"}


@pytest.fixture(scope="module", params=["symmetric", "distilled", "mini"])
def artifact(request):
    return request.getfixturevalue(f"{request.param}_artifact")


@pytest.fixture(scope="module")
def content(artifact):
    return artifact.path(FLOAT_FILE).read_bytes()


@pytest.fixture(scope="module", params=STATIC_FILES)
def static_content(request, static_artifact):
    return static_artifact.path(request.param).read_bytes()


def test_signatures_are_those_of_the_contract(artifact, content):
    sizes = contract.sizes(artifact.config)
    found = tflite_files.signatures(content)
    declared = {one.name: one for one in contract.tflite_signatures(artifact.config)}
    assert found.keys() == declared.keys()
    for name, sides in found.items():
        assert sides["inputs"] == {
            tensor.name: (tensor.dtype.upper(), [size or -1 for size in tensor.shape(sizes)])
            for tensor in declared[name].inputs
        }
        # The shape of an output is what inference makes of the inputs' shapes.
        assert {key: dtype for key, (dtype, _) in sides["outputs"].items()} == {
            tensor.name: tensor.dtype.upper() for tensor in declared[name].outputs
        }


def test_only_operators_that_were_looked_at(artifact, content):
    operators = tflite_files.operators(content)
    assert set(operators) <= OPERATORS
    config = artifact.config
    # Query, key, value, output; each feed-forward block has two; one for the logits.
    encoder = config.num_layers * (4 + 2) + config.decoder_layers * 2
    decoder = config.decoder_layers * (4 + 2 + 2) + 1
    # The decoder is there three times: for several beams, for one, and for drafts.
    assert operators.count("FULLY_CONNECTED") == encoder + 3 * decoder
    # Token and position tables of each.
    assert operators.count("EMBEDDING_LOOKUP") == 8


def test_runtimes_without_xnnpack_are_told_to_round_inputs_as_it_does(content):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    flags = [
        operator.builtinOptions.asymmetricQuantizeInputs
        for subgraph in model.subgraphs
        for operator in subgraph.operators
        if tflite.builtin_code(model, operator) == schema.BuiltinOperator.FULLY_CONNECTED
    ]
    assert flags and all(flags)


def tables(content):
    """Return the buffers of the token embedding, one for each signature that has it."""
    return [
        tensor.Buffer()
        for _, tensor in tflite_files.tensors(content)
        if tflite_files.is_named(tensor, TABLE)
    ]


def test_matrices_are_in_the_file_once_and_aligned(artifact, content):
    vocabulary, hidden = artifact.config.vocabulary_size, artifact.config.hidden_dim
    assert len(tables(content)) == 4  # one of each signature
    assert len(set(tables(content))) == 1
    sizes = tflite_files.buffer_sizes(content)
    assert sum(size >= 4 * vocabulary * hidden for size in sizes) == 1
    assert len(content) < 4 * artifact.manifest.parameter_count * 1.02 + 120_000
    matrices = [index for index, size in enumerate(sizes) if size >= 4 * hidden * hidden]
    assert [tflite_files.offset(content, index) % 16 for index in matrices] == [0] * len(matrices)


def test_an_int8_table_has_the_same_scales_in_every_signature(mini_artifact):
    first, *others = tflite_files.scale(mini_artifact.path(INT8_FILE).read_bytes(), TABLE)
    assert len(first) == mini_artifact.config.vocabulary_size
    assert all((scale == first).all() for scale in others)


def test_a_file_with_an_operator_that_is_not_builtin_is_refused(content):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    tflite.refuse_foreign_operators(model)
    code = schema.OperatorCodeT()
    code.builtinCode, code.customCode = schema.BuiltinOperator.CUSTOM, b"FlexErf"
    model.operatorCodes.append(code)
    model.subgraphs[0].operators[0].opcodeIndex = len(model.operatorCodes) - 1
    with pytest.raises(BartExportError, match="FlexErf"):
        tflite.refuse_foreign_operators(model)


def test_a_static_build_has_a_signature_for_every_bucket_with_numbers_only(static_artifact):
    file = STATIC_FILES[0]
    entry = static_artifact.manifest.files[file]
    assert entry.shapes == StaticShapes((32, 160), 32, (1, 4), draft_length=5)
    buckets = contract.static_buckets(static_artifact.config, **vars(entry.shapes))
    assert static_artifact.buckets(file) == buckets
    signatures = entry.signatures
    assert [(name, one.signature) for name, one in signatures.items()] == [
        ("encode_32", "encode"),
        ("decode_32_1", "decode_single"),
        ("decode_32_4", "decode"),
        ("decode_draft_32", "decode_draft"),
        ("encode_160", "encode"),
        ("decode_160_1", "decode_single"),
        ("decode_160_4", "decode"),
        ("decode_draft_160", "decode_draft"),
    ]
    assert signatures["encode_32"].sizes == {"source": 32}
    for source, beams in ((32, 1), (32, 4), (160, 1), (160, 4)):
        sizes = {"sources": 1, "source": source, "beams": beams, "rows": beams, "capacity": 32}
        assert signatures[f"decode_{source}_{beams}"].sizes == sizes
    assert signatures["decode_draft_160"].sizes == {"source": 160, "draft": 5, "capacity": 32}
    config = static_artifact.config
    heads, size = config.decoder_heads, config.decoder_head_size
    wide = signatures["decode_160_4"]
    assert wide.inputs["self_key_0"].shape == (4, heads, 32, size)
    assert wide.inputs["cross_key_0"].shape == (1, heads, size, 160)
    assert wide.inputs["cross_value_0"].shape == (1, heads, 160, size)
    assert wide.outputs["logits"].shape == (4, config.vocabulary_size)
    assert "beam_index" not in signatures["decode_32_1"].inputs


def test_the_signatures_of_a_static_file_are_those_of_its_entry(static_artifact, static_content):
    expected = {
        name: {
            side: {
                key: (tensor.dtype.upper(), list(tensor.shape))
                for key, tensor in getattr(one, side).items()
            }
            for side in ("inputs", "outputs")
        }
        for name, one in static_artifact.manifest.files[STATIC_FILES[0]].signatures.items()
    }
    assert tflite_files.signatures(static_content) == expected


def test_a_static_file_has_fixed_shapes_of_four_axes_and_computes_none(static_content):
    tensors = [tensor for _, tensor in tflite_files.tensors(static_content)]
    # A tensor with a size of -1 has a shape signature.
    assert not [tensor.Name() for tensor in tensors if tensor.ShapeSignatureLength()]
    assert max(tensor.ShapeLength() for tensor in tensors) == 4
    assert {len(shape) for shape in tflite_files.input_shapes(static_content, "SOFTMAX")} == {4}
    assert set(tflite_files.operators(static_content)) <= STATIC_OPERATORS


@pytest.mark.parametrize(("file", "width"), [(STATIC_FILES[0], 4), (STATIC_FILES[1], 1)])
def test_weights_are_in_a_static_file_once_for_all_signatures(
    static_artifact, mini_artifact, file, width
):
    config = static_artifact.config
    static = static_artifact.path(file).read_bytes()
    dynamic = mini_artifact.path(file.replace(".static", "")).read_bytes()
    assert len(set(tables(static))) == 1
    matrices, same = (
        sorted(size for size in tflite_files.buffer_sizes(one) if size >= config.hidden_dim**2)
        for one in (static, dynamic)
    )
    assert matrices == same
    assert matrices[-1] == width * config.hidden_dim * config.vocabulary_size
    # Eight graphs instead of four, and what quantization notes of each tensor in them.
    assert len(static) - len(dynamic) < 0.13 * static_artifact.manifest.parameter_count


def test_shapes_the_model_has_no_positions_for_are_refused(static_artifact):
    longest = static_artifact.config.max_sequence_length
    line = f"{longest} positions, received {longest + 1}"
    for source, target in ((longest + 1, 24), (16, longest + 1)):
        with pytest.raises(ConfigurationError, match=line):
            contract.tflite_buckets(
                static_artifact.config, StaticShapes((16, source), target, (1,))
            )
