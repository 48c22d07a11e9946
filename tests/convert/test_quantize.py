"""Quantized files: every matrix is stored as its recipe says, and the tied table once."""

import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from bart_export.checkpoints.names import layer_names
from bart_export.convert import rounding
from bart_export.convert.blocks import matrices, view
from bart_export.convert.quantize import quantize
from bart_export.errors import ConfigurationError
from bart_export.recipes.table import RECIPES, parse_recipe

TYPES = {32: "FLOAT32", 16: "FLOAT16", 8: "INT8", 4: "INT4"}
MIXED = {
    "name": "mixed",
    "mode": "dynamic",
    "layers": [
        [".*", "int8"],
        ["encoder/.*", "int4_block128"],
        ["decoder/layer_[01]/.*", "int4"],
        [".*/position_embedding", "float16"],
        ["decoder/layer_2/feedforward_output", "float32"],
    ],
}
# Recipe -> at most so many bytes a parameter on bart_mini_en, whose graph and vectors take 0.02.
# A table stored twice would add a quarter of what is stored.
SIZES = {
    "float32": 4.03,
    "float16": 2.04,
    "dynamic_wi8_afp32": 1.12,
    "dynamic_wi8_afp32_tensorwise": 1.04,
    "weight_only_wi8_afp32": 1.12,
    "dynamic_wi4_afp32": 0.6,
}


@pytest.fixture(scope="module")
def float_file(mini_artifact):
    return mini_artifact.path("tflite/float32.tflite")


@pytest.fixture(scope="module")
def contents(mini_artifact, float_file):
    """Return recipe -> the bytes of its file."""
    layers = layer_names(mini_artifact.config)
    quantized = {
        name: quantize(float_file, RECIPES[name], layers) for name in SIZES if name != "float32"
    }
    return {"float32": float_file.read_bytes(), **quantized}


@dataclasses.dataclass(frozen=True)
class Kept:
    """How a file keeps a matrix: its type, how many scales it has, and the size of its blocks."""

    type: str
    scales: int
    block_size: int


def kept(content):
    """Return layer -> how its matrix is kept, the same in all signatures, and in which buffers."""
    model = schema.Model.GetRootAs(content, 0)
    names = {code: name for name, code in vars(schema.TensorType).items()}
    found, buffers = {}, {}
    for layer, (graph, tensor) in matrices(model):
        quantization = tensor.Quantization()
        scales = quantization.ScaleLength() if quantization else 0
        blockwise = schema.BlockwiseQuantization()
        if quantization and quantization.Details():
            blockwise.Init(quantization.Details().Bytes, quantization.Details().Pos)
            scales = int(np.prod(graph.Tensors(blockwise.Scales()).ShapeAsNumpy()))
        size = blockwise.BlockSize() if quantization and quantization.Details() else 0
        found.setdefault(layer, set()).add(Kept(names[tensor.Type()], scales, size))
        buffers.setdefault(layer, set()).add(tensor.Buffer())
    assert {len(ways) for ways in found.values()} == {1}
    assert {len(numbers) for numbers in buffers.values()} == {1}
    return {layer: ways.pop() for layer, ways in found.items()}


def wanted(recipe, layer, shape):
    """Return how a recipe says that a matrix (outputs, inputs) is kept."""
    storage = recipe.storage(layer)
    outputs, inputs = shape
    shared, _, size = (storage.granularity or "").partition("_")
    block_size = int(size or 0)
    scales = {"": 0, "tensorwise": 1, "channelwise": outputs}
    number = outputs * inputs // block_size if block_size else scales[shared]
    return Kept(TYPES[storage.bits], number, block_size)


def shapes(path):
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    return {layer: tuple(tensor.ShapeAsNumpy()) for layer, (_, tensor) in matrices(model)}


@pytest.mark.parametrize("name", SIZES)
def test_every_matrix_is_stored_once_and_as_the_recipe_says(
    mini_artifact, contents, float_file, name
):
    of = shapes(float_file)
    assert set(of) == set(layer_names(mini_artifact.config))
    assert kept(contents[name]) == {layer: wanted(RECIPES[name], layer, of[layer]) for layer in of}


@pytest.mark.parametrize(("name", "bound"), SIZES.items())
def test_a_file_takes_so_many_bytes_a_parameter(mini_artifact, contents, name, bound):
    size = len(contents[name]) / mini_artifact.manifest.parameter_count
    assert bound - 0.05 < size < bound


def test_a_recipe_of_ones_own_stores_every_layer_as_it_says(mini_artifact, float_file):
    recipe = parse_recipe(MIXED)
    of = shapes(float_file)
    ways = kept(quantize(float_file, recipe, layer_names(mini_artifact.config)))
    assert ways == {layer: wanted(recipe, layer, of[layer]) for layer in of}
    assert {way.type for way in ways.values()} == set(TYPES.values())
    assert {way.block_size for way in ways.values()} == {0, 32, 128}


def stored_floats(content, layer):
    """Return a matrix that is stored in blocks, as float32."""
    model = schema.Model.GetRootAs(content, 0)
    graph, tensor = dict(matrices(model))[layer]
    blockwise = schema.BlockwiseQuantization()
    details = tensor.Quantization().Details()
    blockwise.Init(details.Bytes, details.Pos)
    nibbles = view(model, content, tensor.Buffer(), np.uint8)
    codes = np.stack([nibbles & 15, nibbles >> 4], -1).reshape(-1, blockwise.BlockSize())
    signed = (codes.astype(np.int8) ^ 8) - 8
    scales = view(model, content, graph.Tensors(blockwise.Scales()).Buffer(), np.float16)
    return (signed * scales[:, None].astype(np.float32)).reshape(tensor.ShapeAsNumpy())


def test_blocks_hold_what_rounding_chose(contents, float_file):
    content = contents["dynamic_wi4_afp32"]
    layer = "decoder/layer_1/feedforward_output"
    source = float_file.read_bytes()
    model = schema.Model.GetRootAs(source, 0)
    _, tensor = dict(matrices(model))[layer]
    weights = view(model, source, tensor.Buffer(), np.float32).reshape(tensor.ShapeAsNumpy())
    codes, scales = rounding.rounded(weights, 64)
    expected = codes.reshape(*scales.shape, 64) * scales[..., None]
    np.testing.assert_array_equal(
        stored_floats(content, layer), expected.reshape(weights.shape).astype(np.float32)
    )


def test_blocks_that_do_not_fill_a_row_are_refused(symmetric_artifact):
    wide = {"name": "wide", "mode": "dynamic", "layers": [["decoder/.*query", "int4_block128"]]}
    path = symmetric_artifact.path("tflite/float32.tflite")
    with pytest.raises(ConfigurationError, match="in blocks of 128, but a row has 64 weights"):
        quantize(path, parse_recipe(wide), layer_names(symmetric_artifact.config))
