"""Static recipes: which operators of a file compute in integers, and the ranges they round to.

The bytes of a float `.tflite` and a calibration go in, operators and ranges come out in the words
of AI Edge Quantizer. Operators are told apart by what they read and who reads them: the converter's
names say nothing. Sources' masks, and what writes a cache, stay float: signatures exchange float32.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from bart_export.convert.calibration import Ranges

BUILTIN_NAMES = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
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


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of a subgraph: its builtin name and the indices of its tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The operators of one signature, its tensors' names, and which it takes and puts out."""

    operators: tuple[Operator, ...]
    names: tuple[str, ...]
    float_inputs: frozenset[int]
    outputs: frozenset[int]

    def readers(self, tensor: int) -> list[Operator]:
        """Return the operators that read a tensor."""
        return [operator for operator in self.operators if tensor in operator.inputs]


def graphs(content: Any) -> Iterator[Graph]:
    """Yield the subgraphs of a file, without reading its weights."""
    model = schema.Model.GetRootAs(content, 0)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    names = [BUILTIN_NAMES[max(one.BuiltinCode(), one.DeprecatedBuiltinCode())] for one in codes]
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
        yield Graph(
            tuple(
                Operator(
                    names[operator.OpcodeIndex()],
                    tuple(operator.InputsAsNumpy().tolist()),
                    tuple(operator.OutputsAsNumpy().tolist()),
                )
                for operator in map(graph.Operators, range(graph.OperatorsLength()))
            ),
            tuple(tensor.Name().decode() for tensor in tensors),
            frozenset(
                index
                for index in graph.InputsAsNumpy().tolist()
                if tensors[index].Type() == schema.TensorType.FLOAT32
            ),
            frozenset(graph.OutputsAsNumpy().tolist()),
        )


def integer_operators(content: Any, mode: str) -> dict[str, list[str]]:
    """Return, by operator name, the results of the operators that a mode has compute in integers.

    `FULLY_CONNECTED` is not among them: recipes choose those by their layers.
    """
    found: dict[str, list[str]] = {}
    for graph in graphs(content):
        for operator, kind in kinds(graph):
            if kind in INTEGER_OPERATORS[mode] and kind != "FULLY_CONNECTED":
                found.setdefault(operator.name, []).append(graph.names[operator.outputs[0]])
    return found


def kinds(graph: Graph) -> Iterator[tuple[Operator, str]]:
    """Yield the operators that compute activations, and what tells modes them apart: the name, or
    `MASKING`.

    Activations come of embeddings and of float inputs; masks, which come of ids alone, are none.
    An ADD that a signature puts out as it is writes a cache, with the MUL before it.
    """
    activations = set(graph.float_inputs)
    for operator in graph.operators:
        if operator.name != "EMBEDDING_LOOKUP" and not activations & set(operator.inputs):
            continue
        activations.update(operator.outputs)
        (result,) = operator.outputs
        readers = graph.readers(result)
        writers = [operator] if operator.name == "ADD" else readers
        if operator.name in ("ADD", "MUL") and any(writes(graph, one) for one in writers):
            continue
        masking = operator.name == "ADD" and any(one.name == "SOFTMAX" for one in readers)
        yield operator, MASKING if masking else operator.name


def writes(graph: Graph, operator: Operator) -> bool:
    """Return whether an operator is a sum that leaves the graph: a cache with one more position."""
    return operator.name == "ADD" and operator.outputs[0] in graph.outputs


def ranges(content: Any, measured: Ranges, bits: int) -> Ranges:
    """Return the ranges for activations of so many bits.

    They are those measured, with headroom, but for masks and masked scores: a closed position's
    score is far below all others, and a range that goes there has no steps left for them. It is
    enough that its softmax rounds to 0, as it does `margin` below the least open score; rounding to
    integers saturates, so that whatever is lower becomes just that.
    """
    # Softmax has steps of 2**-bits: half a step below the largest is e**-margin.
    margin = (bits + 1) * math.log(2)
    room = HEADROOM[bits]
    fitted = {name: (room * low, room * high) for name, (low, high) in measured.items()}
    for graph in graphs(content):
        sums = [operator for operator, kind in kinds(graph) if kind == MASKING]
        depths: dict[str, float] = {}
        for operator in sums:
            scores, mask = (graph.names[index] for index in operator.inputs)
            low, high = fitted[scores]
            depths[mask] = max(depths.get(mask, 0.0), high - low + margin)
            fitted[graph.names[operator.outputs[0]]] = low - margin, high
        fitted |= {mask: (-depth, 0.0) for mask, depth in depths.items()}
    return fitted


def cramped_layers(content: Any, fitted: Ranges, bits: int) -> set[str]:
    """Return the layers with a bias that is too large for its integer, and would saturate unseen.

    Such a row of the matrix is zero, or nearly: the padding token's in a table with a logits bias.
    """
    model = schema.Model.GetRootAs(content, 0)
    cramped = set()
    for number, graph in enumerate(graphs(content)):
        for operator in graph.operators:
            if operator.name != "FULLY_CONNECTED" or len(operator.inputs) < 3:
                continue
            read, matrix, bias = operator.inputs
            if bias < 0:
                continue
            low, high = fitted[graph.names[read]]
            tensors = model.Subgraphs(number).Tensors
            rows = np.abs(constant(model, tensors(matrix))).max(axis=1) / 127
            largest = LARGEST_BIAS * rows * ((high - low) / 2**bits)
            if (np.abs(constant(model, tensors(bias))) > largest).any():
                result = graph.names[operator.outputs[0]]
                cramped.add(result.partition("/")[2].rpartition("/")[0])
    return cramped


def constant(model: Any, tensor: Any) -> npt.NDArray[np.float32]:
    """Return the values of a constant float tensor, as they lie in the file."""
    data = model.Buffers(tensor.Buffer()).DataAsNumpy()
    return np.asarray(data).view(np.float32).reshape(tensor.ShapeAsNumpy())


def quantizer_statistics(fitted: Ranges) -> dict[str, dict[str, np.ndarray]]:
    """Return ranges as the quantizer takes them."""
    return {
        name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
        for name, (low, high) in fitted.items()
    }


def restore_outputs(content: bytearray) -> None:
    """Have the subgraphs of a quantized file put out what their signatures name.

    Where a result both leaves the graph and is rounded for a reader inside, AI Edge Quantizer 0.10
    puts the rounded one into the list of outputs; LiteRT then finds none of that name.
    """
    model = schema.Model.GetRootAs(content, 0)
    for number in range(model.SignatureDefsLength()):
        definition = model.SignatureDefs(number)
        outputs = model.Subgraphs(definition.SubgraphIndex()).OutputsAsNumpy()  # a view
        named = {
            definition.Outputs(index).TensorIndex() for index in range(definition.OutputsLength())
        }
        lost = sorted(named - set(outputs.tolist()))
        outputs[[index for index, one in enumerate(outputs) if one not in named]] = lost
