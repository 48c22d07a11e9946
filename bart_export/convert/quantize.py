"""Quantization of a float `.tflite` by a recipe: AI Edge Quantizer does the work.

It is told to quantize projections and lookups, so that the tied table, which serves both, stays one
buffer. Static recipes, whose activations are integers as well, also need a calibration. Which
operators compute in integers is decided by what they read and who reads them: the converter's names
say nothing. Masks of sources, and what writes a cache, stay float: signatures exchange float32.
"""

import contextlib
import io
import logging
import math
import pathlib
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer, recipe_manager

from bart_export.convert.calibration import Ranges
from bart_export.convert.rounding import Content, floats, require_full_blocks, round_blocks
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LEAST_ERROR, MIN_MAX, MODES, Recipe, Storage

BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items()}
MATRIX_OPERATORS = (
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP,
)
# What adds a mask to the scores of attention: an ADD that ranges and modes know apart from others.
MASKING = "masking"
# Mode of a recipe -> operators that compute in its integers, beside the projections of its layers.
# Measured on the embedded preset, 128 texts: with int8, layer norms cost 10 % of the likeliest
# tokens, elementwise attention all sense, sums of the residual stream 1.3 % and GELU 0.6 %; with
# int16 nothing of it shows.
PROJECTED = ("BATCH_MATMUL", "SOFTMAX", MASKING, "RESHAPE", "TRANSPOSE")
NORMED = ("ADD", "SUB", "MUL", "MEAN", "RSQRT", "SUM")
ACTIVATIONS = ("GELU", "LOGISTIC", "TANH", "RELU")
INTEGER_OPERATORS: Mapping[str, frozenset[str]] = {
    "static_ai16": frozenset((*PROJECTED, *NORMED, *ACTIVATIONS)),
    "static_ai8": frozenset(PROJECTED),
}
# Layers whose inputs and outputs no fixed range of a mode suits; they are quantized on the fly. The
# second matrix of a feed-forward block gives the first token values several times any other's: with
# int8 that alone costs 3 % of the likeliest tokens, and clipping the range no less.
ON_THE_FLY: Mapping[str, str] = {"static_ai8": ".*/feedforward_output"}
# Bits of activations -> how far ranges go beyond the calibration's texts. On texts of another kind,
# what falls outside costs int16 more than steps half as fine again would (logits 7.6 % of their
# spread off, with headroom 2.6 %); int8 has no step to spare.
HEADROOM = {16: 1.5, 8: 1.0}
# A bias is an integer of 32 bits in steps of the input's scale times the row's; half is for safety.
LARGEST_BIAS = 2**30


def quantize(
    path: pathlib.Path,
    recipe: Recipe,
    layers: Collection[str],
    ranges: Ranges | None = None,
) -> bytearray:
    """Return the float file at `path` quantized.

    Args:
        path: the file.
        recipe: how.
        layers: the layers that the file's matrices are named after.
        ranges: those of this very file's activations, for a mode that has integer ones.

    Raises:
        ConfigurationError: for blocks that do not fill a matrix's rows.
    """
    content = np.memmap(path, np.uint8, "r")
    require_full_blocks(content, recipe, layers)
    manager = recipe_manager.RecipeManager()
    bits = MODES[recipe.mode].activation_bits
    statistics = None
    with silenced():
        add_matrices(manager, recipe, layers)
        if bits is not None:
            assert ranges is not None
            fitted = fit_ranges(content, ranges, bits)
            roomy = set(layers) - cramped_layers(content, fitted, bits)
            add_integer_operators(manager, recipe, sorted(roomy), content, bits)
            statistics = {
                name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
                for name, (low, high) in fitted.items()
            }
        tool = quantizer.Quantizer(str(path), manager.get_quantization_recipe())
        quantized = bytearray(tool.quantize(statistics).quantized_model)
    if bits is not None:
        restore_outputs(quantized)
    ours = [layer for layer in layers if recipe.storage(layer).algorithm == LEAST_ERROR]
    round_blocks(quantized, content, ours)
    return quantized


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence the quantizer, which prints reports and progress bars, logs and warns as it likes."""
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


def by_storage(recipe: Recipe, layers: Iterable[str]) -> dict[Storage, list[str]]:
    """Return, for each storage that a recipe uses, the layers that are stored so; no float32."""
    stored: dict[Storage, list[str]] = {}
    for layer in layers:
        storage = recipe.storage(layer)
        if storage.bits < 32:
            stored.setdefault(storage, []).append(layer)
    return stored


def operators_of(layers: Iterable[str]) -> str:
    """Return a regular expression for the results of operators that read some layers' matrices."""
    return f"^[^/]+/({'|'.join(map(re.escape, layers))})/[a-z]+;?$"


def add_matrices(
    manager: recipe_manager.RecipeManager, recipe: Recipe, layers: Iterable[str]
) -> None:
    """Tell the quantizer how the matrices of layers are stored and multiplied."""
    for storage, stored in by_storage(recipe, layers).items():
        # No kernel multiplies by float16: such a matrix is widened whatever the mode. Static modes
        # have no static lookups: both kinds read the same integers.
        widened = recipe.mode == "weight_only" or storage.granularity is None
        add = manager.add_weight_only_config if widened else manager.add_dynamic_config
        for operator in MATRIX_OPERATORS:
            add(
                regex=operators_of(stored),
                operation_name=operator,
                num_bits=storage.bits,
                granularity=qtyping.QuantGranularity((storage.granularity or "tensorwise").upper()),
                algorithm_key=MIN_MAX if storage.algorithm == LEAST_ERROR else storage.algorithm,
            )


def add_integer_operators(
    manager: recipe_manager.RecipeManager,
    recipe: Recipe,
    layers: Collection[str],
    content: Content,
    bits: int,
) -> None:
    """Tell the quantizer which operators compute in integers of so many bits throughout."""
    on_the_fly = ON_THE_FLY.get(recipe.mode, "")
    for storage, stored in by_storage(recipe, layers).items():
        fixed = [layer for layer in stored if not re.fullmatch(on_the_fly, layer)]
        # Blocks and float16 have no static form; such layers stay as they are without an entry.
        if fixed and storage.granularity in ("channelwise", "tensorwise"):
            manager.add_static_config(
                regex=operators_of(fixed),
                operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
                activation_num_bits=bits,
                weight_num_bits=storage.bits,
                weight_granularity=qtyping.QuantGranularity(storage.granularity.upper()),
                algorithm_key=storage.algorithm,
            )
    named: dict[str, list[str]] = {}  # results by the name of their operator
    for graph in graphs(content):
        for operator, kind in operator_kinds(graph):
            if kind in INTEGER_OPERATORS[recipe.mode]:
                named.setdefault(operator.name, []).append(graph.names[operator.outputs[0]])
    for name, results in named.items():
        manager.add_static_config(
            regex=f"^({'|'.join(map(re.escape, results))});?$",
            operation_name=qtyping.TFLOperationName(name),
            activation_num_bits=bits,
            weight_num_bits=8,  # of vectors
        )


class Operator(NamedTuple):
    """An operator of a subgraph: its builtin name and the indices of its tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Graph(NamedTuple):
    """The operators of one signature, its tensors' names, and which it takes and puts out."""

    operators: tuple[Operator, ...]
    names: tuple[str, ...]
    float_inputs: frozenset[int]
    outputs: frozenset[int]


def graphs(content: Content) -> Iterator[Graph]:
    """Yield the subgraphs of a file, without reading its weights."""
    model = schema.Model.GetRootAs(content, 0)
    codes = map(model.OperatorCodes, range(model.OperatorCodesLength()))
    names = [BUILTIN_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
        operators = tuple(
            Operator(
                names[operator.OpcodeIndex()],
                tuple(operator.InputsAsNumpy().tolist()),
                tuple(operator.OutputsAsNumpy().tolist()),
            )
            for operator in map(graph.Operators, range(graph.OperatorsLength()))
        )
        float_inputs = frozenset(
            index
            for index in graph.InputsAsNumpy().tolist()
            if tensors[index].Type() == schema.TensorType.FLOAT32
        )
        tensor_names = tuple(tensor.Name().decode() for tensor in tensors)
        outputs = frozenset(graph.OutputsAsNumpy().tolist())
        yield Graph(operators, tensor_names, float_inputs, outputs)


def operator_kinds(graph: Graph) -> Iterator[tuple[Operator, str]]:
    """Yield the operators that compute activations, each with its name or `MASKING`.

    Activations come of embeddings and of float inputs; masks, which come of ids alone, are none.
    An ADD that a signature puts out as it is writes a cache, with the MUL before it.
    """
    activations = set(graph.float_inputs)
    for operator in graph.operators:
        if operator.name != "EMBEDDING_LOOKUP" and not activations & set(operator.inputs):
            continue
        activations.update(operator.outputs)
        (result,) = operator.outputs
        readers = [reader for reader in graph.operators if result in reader.inputs]
        sums = [operator] if operator.name == "ADD" else readers
        if operator.name in ("ADD", "MUL") and any(
            each.name == "ADD" and each.outputs[0] in graph.outputs for each in sums
        ):
            continue
        masking = operator.name == "ADD" and any(reader.name == "SOFTMAX" for reader in readers)
        yield operator, MASKING if masking else operator.name


def fit_ranges(content: Content, measured: Ranges, bits: int) -> Ranges:
    """Return the ranges for activations of so many bits.

    They are those measured, with headroom, but for masks and masked scores: a masked position's
    score is far below all others, and a range that goes there has no steps left for them. It is
    enough that its softmax rounds to 0, as it does `margin` below the least unmasked score;
    rounding to integers saturates, so that whatever is lower becomes just that.
    """
    # Softmax has steps of 2**-bits: half a step below the largest is e**-margin.
    margin = (bits + 1) * math.log(2)
    room = HEADROOM[bits]
    fitted = {name: (room * low, room * high) for name, (low, high) in measured.items()}
    for graph in graphs(content):
        sums = [operator for operator, kind in operator_kinds(graph) if kind == MASKING]
        depths: dict[str, float] = {}
        for operator in sums:
            scores, mask = (graph.names[index] for index in operator.inputs)
            low, high = fitted[scores]
            depths[mask] = max(depths.get(mask, 0.0), high - low + margin)
            fitted[graph.names[operator.outputs[0]]] = low - margin, high
        fitted |= {mask: (-depth, 0.0) for mask, depth in depths.items()}
    return fitted


def cramped_layers(content: Content, fitted: Ranges, bits: int) -> set[str]:
    """Return the layers with a bias that is too large for its integer, and would saturate unseen.

    Such a row of the matrix is zero, or nearly: the padding token's in a table with a logits bias.
    """
    model = schema.Model.GetRootAs(content, 0)
    cramped = set()
    for number, graph in enumerate(graphs(content)):
        tensors = model.Subgraphs(number).Tensors
        for operator in graph.operators:
            with_bias = operator.name == "FULLY_CONNECTED" and len(operator.inputs) == 3
            if not with_bias or operator.inputs[2] < 0:
                continue
            read, matrix, bias = operator.inputs
            low, high = fitted[graph.names[read]]
            rows = np.abs(floats(model, content, tensors(matrix))).max(axis=1) / 127
            largest = LARGEST_BIAS * rows * ((high - low) / 2**bits)
            if (np.abs(floats(model, content, tensors(bias))) > largest).any():
                result = graph.names[operator.outputs[0]]
                cramped.add(result.partition("/")[2].rpartition("/")[0])
    return cramped


def restore_outputs(content: bytearray) -> None:
    """Have the subgraphs of a quantized file put out what their signatures name.

    Where a result both leaves the graph and is rounded for a reader inside, AI Edge Quantizer 0.10
    puts the rounded one into the list of outputs; LiteRT then finds none of that name.
    """
    model = schema.Model.GetRootAs(content, 0)
    for definition in map(model.SignatureDefs, range(model.SignatureDefsLength())):
        outputs = model.Subgraphs(definition.SubgraphIndex()).OutputsAsNumpy()  # a view
        named = {
            definition.Outputs(index).TensorIndex() for index in range(definition.OutputsLength())
        }
        lost = sorted(named - set(outputs.tolist()))
        outputs[[index for index, output in enumerate(outputs) if output not in named]] = lost
