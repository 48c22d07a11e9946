"""Static recipes: integer operators are integers, the rest says why, and the numbers hold."""

import collections
import dataclasses
import functools

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from support import tflite_files

from bart_export.checkpoints.names import layer_names
from bart_export.convert import static, tflite
from bart_export.convert.calibration import Calibration, activations
from bart_export.convert.quantize import quantize
from bart_export.export import calibration_texts
from bart_export.recipes.table import RECIPES
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import run, search
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify.evaluation import StepFigures
from bart_export.verify.golden import TEXTS

FILE, STATIC_FILE = "tflite/float32.tflite", "tflite/float32.static.tflite"
AI16, AI8 = "static_wi8_ai16", "static_wi8_ai8"
TYPES = {code: name for name, code in vars(schema.TensorType).items()}
NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items()}
# One layer of the encoder has 6 FULLY_CONNECTED, of the decoder 8; cross keys and values are the
# encoder's, the logits the decoder's; the decoder is there twice.
PROJECTIONS = 3 * (6 + 2) + 2 * (3 * 8 + 1)


@pytest.fixture(scope="module")
def tokenizer(mini_artifact):
    return BartTokenizer.from_artifact(mini_artifact)


@pytest.fixture(scope="module")
def quantized(mini_artifact, static_artifact, tokenizer, tmp_path_factory):
    """Return `quantized(recipe, static)`, which gives the path of a calibrated file."""
    directory = tmp_path_factory.mktemp("static_recipes")
    config = mini_artifact.config

    @functools.cache
    def calibrated(static_build):
        path, buckets = mini_artifact.path(FILE), tflite.buckets(config, None)
        if static_build:
            path, buckets = static_artifact.path(STATIC_FILE), static_buckets(static_artifact)
        texts = calibration_texts.Texts(TEXTS, "given", "")
        calibrator = calibration_texts.calibrator(texts, ModelInfo.from_artifact(mini_artifact))
        return path, calibrator(path, buckets)

    @functools.cache
    def made(name, static_build=False):
        path, calibration = calibrated(static_build)
        target = directory / f"{name}_{static_build}.tflite"
        target.write_bytes(quantize(path, RECIPES[name], layer_names(config), calibration))
        return target

    return made


def static_buckets(artifact):
    return artifact.buckets(STATIC_FILE)


def results(content):
    """Yield (operator, the types of what it reads that is no vector of a layer, type of result)."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
            result = graph.tensors[operator.outputs[0]]
            yield name, TYPES[graph.tensors[operator.inputs[0]].type], result


@pytest.mark.parametrize(("recipe", "integer"), [(AI16, "INT16"), (AI8, "INT8")])
def test_operators_compute_in_the_integers_of_the_mode(quantized, recipe, integer):
    content = quantized(recipe).read_bytes()
    found = collections.Counter(
        name for name, read, result in results(content) if {read, TYPES[result.type]} == {integer}
    )
    floats = collections.Counter(
        name for name, read, result in results(content) if TYPES[result.type] == "FLOAT32"
    )
    mode = RECIPES[recipe].mode
    # The ADDs that mask scores are 3 of the encoder, 6 of either decoder.
    masked = {"FULLY_CONNECTED": PROJECTIONS, "SOFTMAX": 15, "BATCH_MATMUL": 12, "ADD": 15}
    if recipe == AI8:
        assert static.ON_THE_FLY[mode] == ".*/feedforward_output"
        # On the fly: those of 3 layers of the encoder and of the decoder, which is there twice.
        masked["FULLY_CONNECTED"] -= 9
        assert floats["FULLY_CONNECTED"] == 9
        assert found.keys() == {*masked, "RESHAPE", "TRANSPOSE"}
    else:
        masked["ADD"] = 96
        assert floats.keys() == {
            # Masks, lookups, and the caches: what comes in or goes out as float32.
            "CAST", "SUB", "MUL", "EXPAND_DIMS", "EMBEDDING_LOOKUP", "GATHER", "ADD", "DEQUANTIZE",
        } - ({"EXPAND_DIMS"} - floats.keys())  # fmt: skip
        assert found.keys() >= {"GELU", "MEAN", "RSQRT", "SUM", "MUL", "SUB"}
    assert {name: found[name] for name in masked} == masked


@pytest.mark.parametrize("recipe", [AI16, AI8])
def test_the_table_is_in_the_file_once_and_signatures_stay_float(quantized, mini_artifact, recipe):
    content = quantized(recipe).read_bytes()
    config = mini_artifact.config
    sizes = tflite_files.buffer_sizes(content)
    table = config.vocabulary_size * config.hidden_dim
    assert [size for size in sizes if size >= table] == [table]
    model = tflite_files.model_of(content)
    for index in range(model.SignatureDefsLength()):
        definition = model.SignatureDefs(index)
        graph = model.Subgraphs(definition.SubgraphIndex())
        ends = [*graph.InputsAsNumpy(), *graph.OutputsAsNumpy()]
        assert {TYPES[graph.Tensors(end).Type()] for end in ends} <= {"FLOAT32", "INT32"}


@pytest.mark.parametrize(
    ("recipe", "static_build", "texts", "bounds"),
    [
        (AI16, False, TEXTS, {"relative": 0.03, "top1": 0.95}),
        (AI8, False, TEXTS, {"relative": 0.1, "top1": 0.9}),
        # What a padded source closes, and what the future of a cache closes, is not seen.
        (AI8, True, TEXTS, {"relative": 0.1, "top1": 0.9}),
    ],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_logits_are_near_those_of_the_float_file(
    quantized, mini_artifact, static_artifact, tokenizer, recipe, static_build, texts, bounds, rows
):
    config = mini_artifact.config
    path = quantized(recipe, static_build)
    expected = open_compiled_model(mini_artifact.path(FILE), config)
    received = (
        open_compiled_model(path, config, static_buckets(static_artifact))
        if static_build
        else open_compiled_model(path, config)
    )
    greedy = mini_artifact.generation.replace(num_beams=1)
    figures = StepFigures()
    for text in texts:
        source = tokenizer.encode(text, 160, truncate=True)
        start = expected.start(source, 1, 32)
        fed = run(search(greedy), expected.step, start)[0].token_ids[:-1]
        for one, other in zip(
            logits(expected, source, fed, rows), logits(received, source, fed, rows), strict=True
        ):
            figures.add(one, other)
    found = figures.figures()
    assert 0 < found["relative"] <= bounds["relative"]
    assert found["top1"] >= bounds["top1"]


def logits(engine, source, fed, rows):
    """Return the logits of a greedy decoder's steps, each (1, vocabulary), of the last row."""
    state, kept = engine.start(source, rows, 32), []
    for token in fed:
        found, state = engine.step(
            state, np.full(rows, token, np.int32), np.arange(rows, dtype=np.int32)
        )
        kept.append(found[-1:].copy())
    return kept


@pytest.mark.parametrize(("bits", "steps"), [(8, 2**8), (16, 2**16)])
def test_what_is_closed_rounds_to_nothing_and_leaves_the_steps_to_the_others(
    mini_artifact, bits, steps
):
    content = mini_artifact.path(FILE).read_bytes()
    names = [name for graph in static.graphs(content) for name in graph.names]
    measured = {name: (-10.0, 6.0) for name in names}
    fitted = static.ranges(content, measured, bits)
    room = static.HEADROOM[bits]
    masks = 0
    for graph in static.graphs(content):
        for operator, kind in static.kinds(graph):
            if kind != static.MASKING:
                continue
            masks += 1
            scores, mask = (graph.names[index] for index in operator.inputs)
            low, high = fitted[graph.names[operator.outputs[0]]]
            depth = -fitted[mask][0]
            assert fitted[scores] == (room * -10, room * 6)
            assert high == room * 6
            # The highest score there is, closed, is no higher than what the range ends at, and
            # nothing beside an open score: less than half a step of the softmax.
            assert room * 6 - depth <= low + 1e-6
            assert np.exp(low - room * -10) <= 0.5 / steps + 1e-12
    assert masks == 15


def test_layers_that_have_no_static_form_keep_their_storage(mini_artifact):
    content = mini_artifact.path(FILE).read_bytes()
    names = [name for _, found in activations(content).values() for name in found.values()]
    mixed = dataclasses.replace(
        RECIPES[AI8],
        layers=((".*", "int8"), (".*/layer_0/.*", "int4"), (".*/self_attention_value", "float32")),
    )
    anything = Calibration({name: (-1.0, 1.0) for name in names}, 1, 1)
    made = quantize(mini_artifact.path(FILE), mixed, layer_names(mini_artifact.config), anything)
    types = {
        result.name.decode().partition("/")[2]: (read, TYPES[result.type])
        for name, read, result in results(bytes(made))
        if name == "FULLY_CONNECTED"
    }
    assert types["encoder/layer_0/self_attention_key/output"] == ("FLOAT32", "FLOAT32")
    assert types["encoder/layer_1/self_attention_value/output"] == ("FLOAT32", "FLOAT32")
    assert types["encoder/layer_1/self_attention_key/output"] == ("INT8", "INT8")


def test_a_layer_whose_bias_would_saturate_is_known(distilled_artifact, mini_artifact):
    # The padding token's row of the table is zero, and the checkpoint has a logits bias.
    for artifact, expected in ((distilled_artifact, {"token_embedding"}), (mini_artifact, set())):
        content = artifact.path(FILE).read_bytes()
        found = {name for _, names in activations(content).values() for name in names.values()}
        fitted = {name: (-8.0, 8.0) for name in found}
        for bits in (8, 16):
            assert static.cramped_layers(content, fitted, bits) == expected


def test_a_file_with_such_a_bias_keeps_it_and_computes_the_rest_in_integers(distilled_artifact):
    content = distilled_artifact.path(FILE).read_bytes()
    found = {name for _, names in activations(content).values() for name in names.values()}
    anything = Calibration({name: (-8.0, 8.0) for name in found}, 1, 1)
    made = quantize(
        distilled_artifact.path(FILE),
        RECIPES[AI16],
        layer_names(distilled_artifact.config),
        anything,
    )
    types = {
        result.name.decode(): TYPES[result.type]
        for name, _, result in results(bytes(made))
        if name == "FULLY_CONNECTED"
    }
    assert types.pop("decode/token_embedding/output") == "FLOAT32"
    assert types.pop("decode_single/token_embedding/output") == "FLOAT32"
    assert set(types.values()) == {"INT16"}
