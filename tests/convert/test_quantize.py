"""Quantized files: matrices as the recipe says, and integer operators of static recipes."""

import collections
import dataclasses
import functools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from support import tflite_files

from bart_export.checkpoints.weight_names import layer_names
from bart_export.convert import quantize as quantization
from bart_export.convert import rounding
from bart_export.convert.calibration import activation_names
from bart_export.convert.quantize import quantize
from bart_export.convert.rounding import matrices, read_model
from bart_export.errors import ConfigurationError
from bart_export.export.tflite_target import calibrate_file
from bart_export.recipes.table import RECIPES, parse_recipe
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import run, search
from bart_export.verify.golden import TEXTS
from bart_export.verify.traces import StepFigures

FILE, STATIC_FILE = "tflite/float32.tflite", "tflite/float32.static.tflite"
AI16, AI8 = "static_wi8_ai16", "static_wi8_ai8"
TYPES = {code: name for name, code in vars(schema.TensorType).items()}
BITS = {32: "FLOAT32", 16: "FLOAT16", 8: "INT8", 4: "INT4"}
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
    "dynamic_wi8_afp32": 1.14,
    "dynamic_wi8_afp32_tensorwise": 1.04,
    "weight_only_wi8_afp32": 1.14,
    "dynamic_wi4_afp32": 0.6,
}
# One layer of the encoder has 6 FULLY_CONNECTED, of the decoder 8; cross keys and values are the
# encoder's, the logits the decoder's; the decoder is there three times.
PROJECTIONS = 3 * (6 + 2) + 3 * (3 * 8 + 1)


@pytest.fixture(scope="module")
def float_file(mini_artifact):
    return mini_artifact.path(FILE)


@pytest.fixture(scope="module")
def contents(mini_artifact, float_file):
    """Return recipe -> the bytes of its file."""
    layers = layer_names(mini_artifact.config)
    quantized = {
        name: quantize(float_file, RECIPES[name], layers) for name in SIZES if name != "float32"
    }
    return {"float32": float_file.read_bytes(), **quantized}


def storage_of(content):
    """Return layer -> (type, number of scales, block size) of its matrix, which is there once."""
    found, buffers = {}, {}
    for layer, (graph, tensor) in matrices(read_model(content)):
        scales = size = 0
        if quantization := tensor.quantization:
            scales = 0 if quantization.scale is None else len(quantization.scale)
            if blocks := quantization.details:
                scales, size = int(np.prod(graph.tensors[blocks.scales].shape)), blocks.blockSize
        found.setdefault(layer, set()).add((TYPES[tensor.type], scales, size))
        buffers.setdefault(layer, set()).add(tensor.buffer)
    assert {len(one) for one in (*found.values(), *buffers.values())} == {1}
    return {layer: ways.pop() for layer, ways in found.items()}


def stated_storage(recipe, path):
    """Return what a recipe says of every matrix of a float file, as `storage_of` finds it."""
    stated = {}
    for layer, (_, tensor) in matrices(read_model(path.read_bytes())):
        outputs, inputs = tensor.shape
        storage = recipe.storage(layer)
        shared, _, size = (storage.granularity or "").partition("_")
        number = {"": 0, "tensorwise": 1, "channelwise": outputs}.get(shared)
        block = int(size or 0)
        scales = outputs * inputs // block if block else number
        stated[layer] = (BITS[storage.bits], scales, block)
    return stated


@pytest.mark.parametrize(("name", "bound"), SIZES.items())
def test_every_matrix_is_stored_once_and_as_the_recipe_says(
    mini_artifact, contents, float_file, name, bound
):
    stated = stated_storage(RECIPES[name], float_file)
    assert set(stated) == set(layer_names(mini_artifact.config))
    assert storage_of(contents[name]) == stated
    size = len(contents[name]) / mini_artifact.manifest.parameter_count
    assert bound - 0.05 < size < bound


def test_a_recipe_of_ones_own_stores_every_layer_as_it_says(mini_artifact, float_file):
    recipe = parse_recipe(MIXED)
    found = storage_of(quantize(float_file, recipe, layer_names(mini_artifact.config)))
    assert found == stated_storage(recipe, float_file)
    types, _, blocks = zip(*found.values(), strict=True)
    assert (set(types), set(blocks)) == (set(BITS.values()), {0, 32, 128})


def stored_floats(content, layer):
    """Return a matrix that is stored in blocks, as float32."""
    model = read_model(content)
    graph, tensor = dict(matrices(model))[layer]
    blocks, nibbles = tensor.quantization.details, model.buffers[tensor.buffer].data
    codes = np.stack([nibbles & 15, nibbles >> 4], -1).reshape(-1, blocks.blockSize)
    signed = (codes.astype(np.int8) ^ 8) - 8
    scales = model.buffers[graph.tensors[blocks.scales].buffer].data.view(np.float16)
    return (signed * scales[:, None].astype(np.float32)).reshape(tensor.shape)


def test_blocks_hold_what_rounding_chose(contents, float_file):
    layer, model = "decoder/layer_1/feedforward_output", read_model(float_file.read_bytes())
    _, tensor = dict(matrices(model))[layer]
    weights = rounding.floats(model, tensor)
    codes, scales = rounding.round_matrix(weights, 64)
    expected = codes.reshape(*scales.shape, 64) * scales[..., None]
    np.testing.assert_array_equal(
        stored_floats(contents["dynamic_wi4_afp32"], layer),
        expected.reshape(weights.shape).astype(np.float32),
    )


def test_blocks_that_do_not_fill_a_row_are_refused(symmetric_artifact):
    wide = {"name": "wide", "mode": "dynamic", "layers": [["decoder/.*query", "int4_block128"]]}
    with pytest.raises(ConfigurationError, match="in blocks of 128, but a row has 64 weights"):
        layers = layer_names(symmetric_artifact.config)
        quantize(symmetric_artifact.path(FILE), parse_recipe(wide), layers)


@pytest.fixture(scope="module")
def static_recipe(mini_artifact, static_artifact, tmp_path_factory):
    """Return `static_recipe(name, build)`, the path of a file calibrated with the golden texts."""
    directory = tmp_path_factory.mktemp("static_recipes")
    info = ModelInfo.from_artifact(mini_artifact)
    builds = {
        "dynamic": (mini_artifact.path(FILE), None),
        "static": (
            static_artifact.path(STATIC_FILE),
            static_artifact.manifest.files[STATIC_FILE].shapes,
        ),
    }

    @functools.cache
    def calibrated(build):
        path, shapes = builds[build]
        return calibrate_file(path, info, shapes, TEXTS)[0]

    @functools.cache
    def made(name, build="dynamic"):
        path, target = builds[build][0], directory / f"{name}_{build}.tflite"
        layers = layer_names(info.config)
        target.write_bytes(quantize(path, RECIPES[name], layers, calibrated(build)))
        return target

    return made


def results(content):
    """Yield (operator, type of its first input, type of its result, name of its result)."""
    model = read_model(content)
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = quantization.operator_name(model, operator)
            read, result = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
            yield name, TYPES[read.type], TYPES[result.type], result.name.decode()


@pytest.mark.parametrize(("recipe", "integer"), [(AI16, "INT16"), (AI8, "INT8")])
def test_operators_compute_in_the_integers_of_the_mode(static_recipe, recipe, integer):
    operators = list(results(static_recipe(recipe).read_bytes()))
    found = collections.Counter(
        name for name, read, result, _ in operators if read == result == integer
    )
    floats = collections.Counter(name for name, _, result, _ in operators if result == "FLOAT32")
    # The ADDs that mask scores are 3 of the encoder, 6 of each of three decoders.
    expected = {"FULLY_CONNECTED": PROJECTIONS, "SOFTMAX": 21, "BATCH_MATMUL": 30, "ADD": 21}
    if recipe == AI8:
        # On the fly: those of 3 layers of the encoder and of each of three decoders.
        expected["FULLY_CONNECTED"] -= 12
        assert floats["FULLY_CONNECTED"] == 12
        assert found.keys() == {*expected, "RESHAPE", "TRANSPOSE"}
    else:
        expected["ADD"] = 150
        # Masks, lookups, and what goes out as float32.
        assert floats.keys() - {"EXPAND_DIMS"} == {
            "CAST", "SUB", "MUL", "EMBEDDING_LOOKUP", "DEQUANTIZE",
        }  # fmt: skip
        assert found.keys() >= {"GELU", "MEAN", "RSQRT", "SUM", "MUL", "SUB"}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("recipe", [AI16, AI8])
def test_the_table_is_in_the_file_once_and_signatures_stay_float(
    static_recipe, mini_artifact, recipe
):
    content = static_recipe(recipe).read_bytes()
    table = mini_artifact.config.vocabulary_size * mini_artifact.config.hidden_dim
    assert [size for size in tflite_files.buffer_sizes(content) if size >= table] == [table]
    for sides in tflite_files.signatures(content).values():
        for tensors in sides.values():
            assert {dtype for dtype, _ in tensors.values()} <= {"FLOAT32", "INT32"}


@pytest.mark.parametrize(
    ("recipe", "build", "bounds"),
    [
        (AI16, "dynamic", {"relative": 0.03, "top1": 0.95}),
        (AI8, "dynamic", {"relative": 0.1, "top1": 0.9}),
        # What a padded source masks, and what the future of a cache masks, is not seen.
        (AI8, "static", {"relative": 0.1, "top1": 0.9}),
    ],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_logits_are_near_those_of_the_float_file(
    static_recipe, mini_artifact, static_artifact, recipe, build, bounds, rows
):
    info = ModelInfo.from_artifact(mini_artifact)
    buckets = static_artifact.buckets(STATIC_FILE) if build == "static" else None
    expected = open_compiled_model(mini_artifact.path(FILE), info.config)
    received = open_compiled_model(static_recipe(recipe, build), info.config, buckets)
    greedy, figures = info.generation.replace(num_beams=1), StepFigures()
    for text in TEXTS:
        source = info.encode(text)
        start = expected.start(source, 1, 32)
        fed = run(search(greedy), expected.step, start)[0].token_ids[:-1]
        for pair in zip(
            logits(expected, source, fed, rows), logits(received, source, fed, rows), strict=True
        ):
            figures.add(*pair)
    found = figures.figures()
    assert 0 < found["relative"] <= bounds["relative"]
    assert found["top1"] >= bounds["top1"]


def logits(engine, source, fed, rows):
    """Yield the logits of a greedy decoder's steps, each (1, vocabulary), of the last row."""
    state = engine.start(source, rows, 32)
    for token in fed:
        found, state = engine.step(
            state, np.full(rows, token, np.int32), np.arange(rows, dtype=np.int32)
        )
        yield found[-1:].copy()


@pytest.mark.parametrize(("bits", "steps"), [(8, 2**8), (16, 2**16)])
def test_what_is_masked_rounds_to_nothing_and_leaves_the_steps_to_the_others(
    float_file, bits, steps
):
    model, room = read_model(float_file.read_bytes()), quantization.HEADROOM[bits]
    tensors = (tensor for graph in model.subgraphs for tensor in graph.tensors)
    measured = {tensor.name.decode(): (-10.0, 6.0) for tensor in tensors}
    fitted = quantization.fit_ranges(model, measured, bits)
    masked = [
        [graph.tensors[index].name.decode() for index in (*operator.inputs, *operator.outputs)]
        for graph in model.subgraphs
        for operator, kind in quantization.operator_kinds(model, graph)
        if kind == quantization.MASKING
    ]
    assert len(masked) == 21
    for scores, mask, result in masked:
        low, high = fitted[result]
        assert fitted[scores] == (room * -10, room * 6)
        assert high == room * 6
        # The highest score there is, masked, is no higher than what the range ends at, and
        # nothing beside an unmasked score: less than half a step of the softmax.
        assert room * 6 + fitted[mask][0] <= low + 1e-6
        assert np.exp(low - room * -10) <= 0.5 / steps + 1e-12


def same_range(path, reach):
    """Return ranges that are the same for every activation."""
    found = activation_names(path.read_bytes()).values()
    return {name: (-reach, reach) for _, names in found for name in names.values()}


def projections(artifact, recipe, reach):
    """Return the types that every FULLY_CONNECTED of a quantized file reads and gives, by name."""
    path, layers = artifact.path(FILE), layer_names(artifact.config)
    made = quantize(path, recipe, layers, same_range(path, reach))
    return {
        result_name: (read, result)
        for name, read, result, result_name in results(bytes(made))
        if name == "FULLY_CONNECTED"
    }


def test_layers_that_have_no_static_form_keep_their_storage(mini_artifact):
    mixed = dataclasses.replace(
        RECIPES[AI8],
        layers=((".*", "int8"), (".*/layer_0/.*", "int4"), (".*/self_attention_value", "float32")),
    )
    types = projections(mini_artifact, mixed, 1.0)
    for layer, expected in (
        ("layer_0/self_attention_key", "FLOAT32"),
        ("layer_1/self_attention_value", "FLOAT32"),
        ("layer_1/self_attention_key", "INT8"),
    ):
        assert types[f"encode/encoder/{layer}/output"] == (expected, expected)


def test_a_bias_that_would_saturate_keeps_its_layer_out_of_integers(
    distilled_artifact, mini_artifact
):
    # The padding token's row of the table is zero, and the checkpoint has a logits bias.
    for artifact, expected in ((distilled_artifact, {"token_embedding"}), (mini_artifact, set())):
        path = artifact.path(FILE)
        model, fitted = read_model(path.read_bytes()), same_range(path, 8.0)
        for bits in (8, 16):
            assert quantization.saturating_layers(model, fitted, bits) == expected
    types = projections(distilled_artifact, RECIPES[AI16], 8.0)
    for decoder in ("decode", "decode_single", "decode_draft"):
        assert types.pop(f"{decoder}/token_embedding/output")[1] == "FLOAT32"
    assert {result for _, result in types.values()} == {"INT16"}
