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
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import qtyping, quantizer, recipe_manager

from bart_export.convert.calibration import Calibration, Ranges
from bart_export.convert.rounding import Content, require_full_blocks, round_blocks
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LEAST_ERROR, MIN_MAX, MODES, Recipe, Storage

BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items()}
MATRIX_OPERATORS = (
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP,
)
# What adds a mask to the scores of attention: an ADD that ranges and modes know apart from others.
MASKING = "masking"
# Mode of a recipe -> operators that compute in its integers. Measured on the embedded preset, 128
# texts: with int8, layer norms cost 10 % of the likeliest tokens, elementwise attention all sense,
# sums of the residual stream 1.3 % and GELU 0.6 %; with int16 nothing of it shows.
PROJECTED = ("FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX", MASKING, "RESHAPE", "TRANSPOSE")
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
    calibration: Calibration | None = None,
) -> bytearray:
    """Return the float file at `path` quantized.

    Args:
        path: the file.
        recipe: how.
        layers: the layers that the file's matrices are named after.
        calibration: of this very file, for a mode with integer activations.

    Raises:
        ConfigurationError: for blocks that do not fill a matrix's rows.
    """
    content = np.memmap(path, np.uint8, "r")
    require_full_blocks(content, recipe, layers)
    manager = recipe_manager.RecipeManager()
    for storage, stored in by_storage(recipe, layers).items():
        add_matrices(manager, recipe.mode, storage, operators_of(stored))
    bits = MODES[recipe.mode].activation_bits
    if bits is None:
        quantized = run_quantizer(path, manager, {})
    else:
        assert calibration is not None
        ranges = fit_ranges(content, calibration.ranges, bits)
        roomy = set(layers) - cramped_layers(content, ranges, bits)
        with warnings_silenced():
            add_integer_operators(manager, recipe, sorted(roomy), content, bits)
        quantized = run_quantizer(path, manager, ranges)
        restore_outputs(quantized)
    ours = [layer for layer in layers if recipe.storage(layer).algorithm == LEAST_ERROR]
    round_blocks(quantized, content, ours)
    return quantized


def run_quantizer(
    path: pathlib.Path, manager: recipe_manager.RecipeManager, ranges: Ranges
) -> bytearray:
    """Run the quantizer, which prints a report and progress bars, logs and warns as it likes."""
    statistics = {
        name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
        for name, (low, high) in ranges.items()
    }
    with native_stderr_silenced(), contextlib.redirect_stdout(io.StringIO()), warnings_silenced():
        tool = quantizer.Quantizer(str(path), manager.get_quantization_recipe())
        return bytearray(tool.quantize(statistics or None).quantized_model)


@contextlib.contextmanager
def warnings_silenced() -> Iterator[None]:
    """Keep warnings from users: of entries that replace others, of vectors that operators share."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
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
    manager: recipe_manager.RecipeManager, mode: str, storage: Storage, regex: str
) -> None:
    """Tell the quantizer how the operators with results named so store and multiply matrices."""
    # No kernel multiplies by float16: such a matrix is widened whatever the mode. Static modes have
    # no static lookups: both kinds read the same integers.
    widened = mode == "weight_only" or storage.granularity is None
    add = manager.add_weight_only_config if widened else manager.add_dynamic_config
    for operator in MATRIX_OPERATORS:
        add(
            regex=regex,
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
    for name, results in integer_operators(content, recipe.mode).items():
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

    def writes_cache(self, operator: Operator) -> bool:
        """Return whether an operator is a sum that leaves the graph: a cache's next position."""
        return operator.name == "ADD" and operator.outputs[0] in self.outputs


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


def integer_operators(content: Content, mode: str) -> dict[str, list[str]]:
    """Return, by operator name, the results of the operators that a mode has compute in integers.

    `FULLY_CONNECTED` is not among them: recipes choose those by their layers.
    """
    found: dict[str, list[str]] = {}
    for graph in graphs(content):
        for operator, kind in operator_kinds(graph):
            if kind in INTEGER_OPERATORS[mode] and kind != "FULLY_CONNECTED":
                found.setdefault(operator.name, []).append(graph.names[operator.outputs[0]])
    return found


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
        writers = [operator] if operator.name == "ADD" else readers
        if operator.name in ("ADD", "MUL") and any(map(graph.writes_cache, writers)):
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
            rows = np.abs(constant(model, tensors(matrix))).max(axis=1) / 127
            largest = LARGEST_BIAS * rows * ((high - low) / 2**bits)
            if (np.abs(constant(model, tensors(bias))) > largest).any():
                result = graph.names[operator.outputs[0]]
                cramped.add(result.partition("/")[2].rpartition("/")[0])
    return cramped


def constant(model: schema.Model, tensor: schema.Tensor) -> npt.NDArray[np.float32]:
    """Return the values of a constant float tensor, as they lie in the file."""
    data = model.Buffers(tensor.Buffer()).DataAsNumpy()
    return np.asarray(data).view(np.float32).reshape(tensor.ShapeAsNumpy())


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
