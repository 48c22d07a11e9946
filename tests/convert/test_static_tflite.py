"""The static build: one signature for each bucket, nothing that can change, each weight once."""

import pytest
from support import tflite_files

from bart_export import contract
from bart_export.contract import StaticShapes
from bart_export.convert import tflite
from bart_export.errors import ConfigurationError

FLOAT_FILE, INT8_FILE = "tflite/float32.static.tflite", "tflite/dynamic_wi8_afp32.static.tflite"
# A static build has no arithmetic on shapes, and nothing that a GPU delegate has no kernel for but
# lookups, the caches' reordering and comparisons of integers, at the start of a step.
EXPECTED_OPERATORS = {
    "ADD", "BATCH_MATMUL", "CAST", "EMBEDDING_LOOKUP", "EQUAL", "FULLY_CONNECTED", "GATHER",
    "GELU", "GREATER", "MEAN", "MUL", "RESHAPE", "RSQRT", "SOFTMAX", "SQUARED_DIFFERENCE", "SUB",
    "SUM", "TRANSPOSE",
}  # fmt: skip


@pytest.fixture(scope="module", params=[FLOAT_FILE, INT8_FILE])
def content(request, static_artifact):
    return static_artifact.path(request.param).read_bytes()


def test_the_manifest_has_a_signature_for_every_bucket_with_numbers_only(static_artifact):
    entry = static_artifact.manifest.files[FLOAT_FILE]
    assert entry.shapes == StaticShapes((32, 160), 32, (1, 4))
    signatures = entry.signatures
    assert [(name, one.signature, one.sizes) for name, one in signatures.items()] == [
        ("encode_32", "encode", {"source": 32}),
        ("decode_32_1", "decode_single", {"source": 32, "beams": 1, "capacity": 32}),
        ("decode_32_4", "decode", {"source": 32, "beams": 4, "capacity": 32}),
        ("encode_160", "encode", {"source": 160}),
        ("decode_160_1", "decode_single", {"source": 160, "beams": 1, "capacity": 32}),
        ("decode_160_4", "decode", {"source": 160, "beams": 4, "capacity": 32}),
    ]
    config = static_artifact.config
    heads, size = config.decoder_heads, config.decoder_head_size
    wide = signatures["decode_160_4"]
    assert wide.inputs["self_key_0"].shape == (4, heads, 32, size)
    assert wide.inputs["cross_key_0"].shape == (1, heads, 160, size)
    assert wide.outputs["logits"].shape == (4, config.vocabulary_size)
    assert "beam_index" not in signatures["decode_32_1"].inputs
    for one in signatures.values():
        for tensor in (*one.inputs.values(), *one.outputs.values()):
            assert all(isinstance(size, int) for size in tensor.shape)


def test_the_signatures_of_the_file_are_those_of_its_entry(static_artifact, content):
    model = tflite_files.model_of(content)
    found = {}
    for index in range(model.SignatureDefsLength()):
        definition = model.SignatureDefs(index)
        graph = model.Subgraphs(definition.SubgraphIndex())
        sides = {
            "inputs": (definition.InputsLength(), definition.Inputs),
            "outputs": (definition.OutputsLength(), definition.Outputs),
        }
        found[definition.SignatureKey().decode()] = {
            name: {
                side(place).Name().decode(): graph.Tensors(side(place).TensorIndex())
                .ShapeAsNumpy()
                .tolist()
                for place in range(length)
            }
            for name, (length, side) in sides.items()
        }
    expected = {
        name: {
            side: {key: list(tensor.shape) for key, tensor in getattr(one, side).items()}
            for side in ("inputs", "outputs")
        }
        for name, one in static_artifact.manifest.files[FLOAT_FILE].signatures.items()
    }
    assert found == expected


def test_buckets_are_read_back_from_a_manifest(static_artifact):
    shapes = vars(static_artifact.manifest.files[FLOAT_FILE].shapes)
    expected = contract.static_buckets(static_artifact.config, **shapes)
    assert static_artifact.buckets(FLOAT_FILE) == expected


def test_no_tensor_can_change_its_shape_or_has_more_than_four_axes(content):
    tensors = [tensor for _, tensor in tflite_files.tensors(content)]
    # A tensor with a size of -1 has a shape signature.
    assert not [tensor.Name() for tensor in tensors if tensor.ShapeSignatureLength()]
    assert max(tensor.ShapeLength() for tensor in tensors) == 4


def test_there_is_no_arithmetic_on_shapes(content):
    assert set(tflite_files.operators(content)) <= EXPECTED_OPERATORS


def test_softmax_and_its_masks_have_four_axes(content):
    shapes = tflite_files.input_shapes(content, "SOFTMAX")
    assert shapes
    assert {len(shape) for shape in shapes} == {4}


def test_weights_are_in_the_file_once_for_all_signatures(static_artifact, mini_artifact):
    parameters = static_artifact.manifest.parameter_count
    hidden, vocabulary = static_artifact.config.hidden_dim, static_artifact.config.vocabulary_size
    for file, width in ((FLOAT_FILE, 4), (INT8_FILE, 1)):
        static = static_artifact.path(file).read_bytes()
        dynamic = mini_artifact.path(file.replace(".static", "")).read_bytes()
        tables = {
            tensor.Buffer()
            for _, tensor in tflite_files.tensors(static)
            if tflite_files.is_named(tensor, "token_embedding/weights")
        }
        assert len(tables) == 1
        matrices, same = (
            sorted(size for size in tflite_files.buffer_sizes(one) if size >= hidden * hidden)
            for one in (static, dynamic)
        )
        assert matrices == same
        assert matrices[-1] == width * hidden * vocabulary
        # Six graphs where there were three, and what quantization notes of each tensor in them.
        assert len(static) - len(dynamic) < 0.09 * parameters


def test_shapes_the_model_has_no_positions_for_are_refused(static_artifact):
    longest = static_artifact.config.max_sequence_length
    for shapes in (
        StaticShapes((16, longest + 1), 24, (1,)),
        StaticShapes((16,), longest + 1, (1,)),
    ):
        with pytest.raises(
            ConfigurationError, match=f"{longest} positions, received {longest + 1}"
        ):
            tflite.buckets(static_artifact.config, shapes)
