"""Quantizes a float `.tflite` file with LiteRT Quantizer, according to a recipe.

Projections and lookups are quantized alike, so that the tied embedding table remains one buffer.
Static recipes, which also have integer activations, need calibration. Their integer operators are
selected by position in the graph, because the converter's tensor names are not descriptive.
Masks remain float32, because they are computed from integers.
"""

import contextlib
import io
import logging
import math
import pathlib
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from litert_quantizer import qtyping, quantizer, recipe_manager

from bart_export.convert.calibration import Ranges
from bart_export.convert.rounding import floats, read_model, require_full_blocks, round_blocks
from bart_export.convert.tflite import builtin_code
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LEAST_ERROR, MIN_MAX, MODES, Recipe, Storage

BUILTIN_NAMES: dict[int, str] = {code: name for name, code in vars(schema.BuiltinOperator).items()}
MATRIX_OPERATORS = (
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP,
)
# An ADD of a mask to attention scores; modes and ranges treat it unlike other ADDs.
MASKING = "masking"
# Mode of a recipe -> its integer operators besides the projections. On the embedded preset with 128
# texts, int8 layer norms change the most likely token in 10 % of the steps, int8 residual sums in
# 1.3 % and int8 GELU in 0.6 %; int8 elementwise attention generates nonsense. int16 changes none.
PROJECTED = ("BATCH_MATMUL", "SOFTMAX", MASKING, "RESHAPE", "TRANSPOSE")
NORMED = ("ADD", "SUB", "MUL", "MEAN", "RSQRT", "SUM")
ACTIVATIONS = ("GELU", "LOGISTIC", "TANH", "RELU")
INTEGER_OPERATORS: Mapping[str, frozenset[str]] = {
    "static_ai16": frozenset((*PROJECTED, *NORMED, *ACTIVATIONS)),
    "static_ai8": frozenset(PROJECTED),
}
# Layers whose activations do not fit a fixed range and are quantized dynamically. The second matrix
# of a feed-forward block makes the first token's values several times larger than any other's. In
# int8 this alone changes the most likely token in 3 % of the steps; clipping is no better.
DYNAMIC_LAYERS: Mapping[str, str] = {"static_ai8": ".*/feedforward_output"}
# Bits of activations -> headroom of the ranges. On texts unlike the calibration texts, int16 loses
# more to clipping than to steps that are 1.5 times as coarse (the relative error of the logits is
# 7.6 %, or 2.6 % with headroom). int8 has no resolution to spare.
HEADROOM = {16: 1.5, 8: 1.0}
# A bias is an int32 in units of the input's scale times the row's; half its range is a margin.
LARGEST_BIAS = 2**30


def quantize(
    path: pathlib.Path,
    recipe: Recipe,
    layers: Collection[str],
    ranges: Ranges | None = None,
) -> bytearray:
    """Quantize the float file at `path`, and return the new file's content.

    `layers` are the names of the file's layers; `ranges` has the range of each activation, for
    modes with integer activations.

    Raises:
        ConfigurationError: if the recipe's blocks do not fill the rows of a matrix.
    """
    model = read_model(np.memmap(path, np.uint8, "r"))
    require_full_blocks(model, recipe, layers)
    manager = recipe_manager.RecipeManager()
    bits = MODES[recipe.mode].activation_bits
    statistics = None
    with silenced():
        add_matrices(manager, recipe, layers)
        if bits is not None:
            assert ranges is not None
            fitted = fit_ranges(model, ranges, bits)
            fitting = set(layers) - saturating_layers(model, fitted, bits)
            add_integer_operators(manager, recipe, sorted(fitting), model, bits)
            statistics = {
                name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
                for name, (low, high) in fitted.items()
            }
        tool = quantizer.Quantizer(str(path), manager.get_quantization_recipe())
        content = bytearray(tool.quantize(statistics).quantized_model)
    quantized = read_model(content)
    if bits is not None:
        restore_outputs(quantized)
    rounded = [layer for layer in layers if recipe.storage(layer).algorithm == LEAST_ERROR]
    round_blocks(quantized, model, rounded)
    return content


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress the quantizer's output, logs and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            native_stderr_silenced(),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def layers_by_storage(recipe: Recipe, layers: Iterable[str]) -> dict[Storage, list[str]]:
    """Return the layers of each storage that a recipe uses, except float32."""
    stored: dict[Storage, list[str]] = {}
    for layer in layers:
        storage = recipe.storage(layer)
        if storage.bits < 32:
            stored.setdefault(storage, []).append(layer)
    return stored


def output_pattern(layers: Iterable[str]) -> str:
    """Return a regular expression for the outputs of operators that read the layers' matrices."""
    return f"^[^/]+/({'|'.join(map(re.escape, layers))})/[a-z]+;?$"


def add_matrices(
    manager: recipe_manager.RecipeManager, recipe: Recipe, layers: Iterable[str]
) -> None:
    """Configure how the layers' matrices are stored and multiplied."""
    for storage, stored in layers_by_storage(recipe, layers).items():
        # There is no float16 kernel, so a float16 matrix is dequantized in every mode. No lookup is
        # static; in static modes, dynamic lookups read the same integers.
        widened = recipe.mode == "weight_only" or storage.granularity is None
        add = manager.add_weight_only_config if widened else manager.add_dynamic_config
        for operator in MATRIX_OPERATORS:
            add(
                regex=output_pattern(stored),
                operation_name=operator,
                num_bits=storage.bits,
                granularity=qtyping.QuantGranularity((storage.granularity or "tensorwise").upper()),
                algorithm_key=MIN_MAX if storage.algorithm == LEAST_ERROR else storage.algorithm,
            )


def add_integer_operators(
    manager: recipe_manager.RecipeManager,
    recipe: Recipe,
    layers: Collection[str],
    model: schema.ModelT,
    bits: int,
) -> None:
    """Configure the operators whose inputs and outputs are integers of `bits` bits."""
    dynamic = DYNAMIC_LAYERS.get(recipe.mode, "")
    for storage, stored in layers_by_storage(recipe, layers).items():
        fixed = [layer for layer in stored if not re.fullmatch(dynamic, layer)]
        # Blockwise and float16 layers cannot be static, and keep their dynamic configuration.
        if fixed and storage.granularity in ("channelwise", "tensorwise"):
            manager.add_static_config(
                regex=output_pattern(fixed),
                operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
                activation_num_bits=bits,
                weight_num_bits=storage.bits,
                weight_granularity=qtyping.QuantGranularity(storage.granularity.upper()),
                algorithm_key=storage.algorithm,
            )
    named: dict[str, list[str]] = {}  # output tensors by operator name
    for graph in model.subgraphs:
        for operator, kind in operator_kinds(model, graph):
            if kind in INTEGER_OPERATORS[recipe.mode]:
                name = operator_name(model, operator)
                named.setdefault(name, []).append(tensor_name(graph, operator.outputs[0]))
    for name, results in named.items():
        manager.add_static_config(
            regex=f"^({'|'.join(map(re.escape, results))});?$",
            operation_name=qtyping.TFLOperationName(name),
            activation_num_bits=bits,
            weight_num_bits=8,  # of vectors
        )


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """Return the name of an operator."""
    return BUILTIN_NAMES[builtin_code(model, operator)]


def tensor_name(graph: schema.SubGraphT, index: int) -> str:
    """Return the name of a tensor."""
    return str(graph.tensors[index].name.decode())


def operator_kinds(
    model: schema.ModelT, graph: schema.SubGraphT
) -> Iterator[tuple[schema.OperatorT, str]]:
    """Yield the operators that compute activations, each with its name or `MASKING`.

    Activations are computed from embeddings and float inputs, unlike masks, which depend only on
    ids.
    """
    float32, softmax = schema.TensorType.FLOAT32, schema.BuiltinOperator.SOFTMAX
    activations = {index for index in graph.inputs if graph.tensors[index].type == float32}
    normalized = {
        index
        for operator in graph.operators
        if builtin_code(model, operator) == softmax
        for index in operator.inputs
    }
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name != "EMBEDDING_LOOKUP" and activations.isdisjoint(operator.inputs):
            continue
        activations.update(operator.outputs)
        (result,) = operator.outputs
        yield operator, MASKING if name == "ADD" and result in normalized else name


def fit_ranges(model: schema.ModelT, measured: Ranges, bits: int) -> Ranges:
    """Return the ranges for activations of `bits` bits.

    They are the measured ranges plus headroom, except for masks and masked scores: the score of a
    masked position is far below all others, and a range that includes it would leave no resolution
    for the others. A masked score only needs to be low enough for its softmax to round to 0, that
    is, `margin` below the smallest unmasked score. Integers saturate, so lower ones are clipped.
    """
    # The softmax has steps of 2**-bits; e**-margin is half a step.
    margin = (bits + 1) * math.log(2)
    room = HEADROOM[bits]
    fitted = {name: (room * low, room * high) for name, (low, high) in measured.items()}
    for graph in model.subgraphs:
        sums = [operator for operator, kind in operator_kinds(model, graph) if kind == MASKING]
        depths: dict[str, float] = {}
        for operator in sums:
            scores, mask = (tensor_name(graph, index) for index in operator.inputs)
            low, high = fitted[scores]
            depths[mask] = max(depths.get(mask, 0.0), high - low + margin)
            fitted[tensor_name(graph, operator.outputs[0])] = low - margin, high
        fitted |= {mask: (-depth, 0.0) for mask, depth in depths.items()}
    return fitted


def saturating_layers(model: schema.ModelT, fitted: Ranges, bits: int) -> set[str]:
    """Return the layers whose bias is too large for its integer type and would silently saturate.

    This happens if a row of the matrix is almost zero, such as the padding token's embedding in a
    model with a logits bias.
    """
    saturating, projection = set(), schema.BuiltinOperator.FULLY_CONNECTED
    for graph in model.subgraphs:
        for operator in graph.operators:
            with_bias = builtin_code(model, operator) == projection and len(operator.inputs) == 3
            if not with_bias or operator.inputs[2] < 0:
                continue
            read, matrix, bias = (graph.tensors[index] for index in operator.inputs)
            low, high = fitted[read.name.decode()]
            rows = np.abs(floats(model, matrix)).max(axis=1) / 127
            largest = LARGEST_BIAS * rows * ((high - low) / 2**bits)
            if (np.abs(floats(model, bias)) > largest).any():
                result = tensor_name(graph, operator.outputs[0])
                saturating.add(result.partition("/")[2].rpartition("/")[0])
    return saturating


def restore_outputs(model: schema.ModelT) -> None:
    """Restore the subgraph outputs that a quantized file's signatures name.

    If a tensor is both an output and quantized for an operator inside the graph, LiteRT Quantizer
    0.10 lists the quantized copy as the output, and LiteRT does not find the signature's output.
    """
    for definition in model.signatureDefs:
        outputs = model.subgraphs[definition.subgraphIndex].outputs  # a view of the file
        named = {output.tensorIndex for output in definition.outputs}
        lost = sorted(named - set(outputs.tolist()))
        outputs[[index for index, output in enumerate(outputs) if output not in named]] = lost
