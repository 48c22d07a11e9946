"""ONNX nodes for BART's graph: an encoder and two decoder steps, as ONNX models.

Weights are those of `graph.parameters`. Attentions are `MultiHeadAttention`, with which ONNX
Runtime's own transformer optimizer replaces their parts; GELU and layer norms are single operators.
Caches are inputs and outputs, (rows, heads, past, head_size): a step returns them one position
longer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bart_export.checkpoints.weight_names import TOKEN_EMBEDDING
from bart_export.config import BartConfig
from bart_export.graph.parameters import InferenceParameters
from peers import bart_graph

OPSET = 20  # the first with GELU
IR_VERSION = 10
CONTRIBUTED = "com.microsoft"
EPSILON = 1e-5
# Activation function -> operator and its attributes.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
}


class OnnxOperators:
    """Adds ONNX nodes to a list; nodes are names of values. See `bart_graph.Operators`.

    With `reorders`, past caches are gathered by the input `beam_index` first.
    """

    def __init__(
        self, config: BartConfig, parameters: InferenceParameters, heads: int, *, reorders: bool
    ) -> None:
        self.config = config
        self.parameters = parameters
        self.heads = heads
        self.reorders = reorders
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.caches: dict[str, str] = {}  # input -> output
        self.beams: str | None = None  # the shape of the queries of `attend_source`

    def node(
        self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Any:
        """Add a node and return its output, or its outputs."""
        names = [f"{kind}_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=names[0], domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def constant(self, name: str, array: Any) -> str:
        """Store an array once and return its name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def integers(self, *values: int) -> str:
        """Store some integers."""
        return self.constant(f"integers_{values}", np.array(values, np.int64))

    def weight(self, name: str) -> str:
        """Store a weight."""
        return self.constant(name, self.parameters[name])

    def rows(self, name: str, indices: str) -> str:
        return self.node("Gather", self.weight(name), indices)

    def first_rows(self, name: str, like: str) -> str:
        length = self.node("Shape", like, start=1)
        zero = self.integers(0)
        return self.node("Slice", self.weight(name), zero, length, zero)

    def linear(self, name: str, x: str) -> str:
        matrix = self.constant(f"{name}/matrix", self.parameters[f"{name}/kernel"].T)
        return self.bias(f"{name}/bias", self.node("MatMul", x, matrix))

    def logits(self, x: str) -> str:
        matrix = self.constant("logits/matrix", self.parameters[TOKEN_EMBEDDING].T)
        return self.node("MatMul", x, matrix)

    def norm(self, name: str, x: str) -> str:
        scale, shift = self.weight(f"{name}/gamma"), self.weight(f"{name}/beta")
        return self.node("LayerNormalization", x, scale, shift, epsilon=EPSILON)

    def bias(self, name: str, x: str) -> str:
        return self.node("Add", x, self.weight(name))

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)

    def scale(self, x: str, factor: float) -> str:
        return self.node("Mul", x, self.constant(f"factor_{factor}", np.float32(factor)))

    def activation(self, x: str) -> str:
        if self.config.activation_function == "silu":
            return self.node("Mul", x, self.node("Sigmoid", x))
        kind, attributes = ACTIVATIONS[self.config.activation_function]
        return self.node(kind, x, **attributes)

    def attention(self, *inputs: str, outputs: int = 1) -> Any:
        """Add a fused attention; the scale is in the query already."""
        return self.node(
            "MultiHeadAttention",
            *inputs,
            outputs=outputs,
            domain=CONTRIBUTED,
            num_heads=self.heads,
            scale=1.0,
        )

    def attend(self, query: str, key: str, value: str) -> str:
        mixed: str = self.attention(query, key, value)
        return mixed

    def attend_past(self, layer: int, query: str, key: str, value: str) -> str:
        axis = self.integers(1)
        rows = [self.node("Unsqueeze", x, axis) for x in (query, key, value)]
        names = [f"self_{part}_{layer}" for part in ("key", "value")]
        past = names
        if self.reorders:
            past = [self.node("Gather", name, "beam_index") for name in names]
        mixed, *present = self.attention(*rows, "", "", "", *past, outputs=3)
        self.caches |= dict(zip(names, present, strict=True))
        return self.node("Squeeze", mixed, axis)

    def source_heads(self, x: str) -> str:
        shape = self.integers(0, -1, self.config.decoder_heads, self.config.decoder_head_size)
        return self.node("Transpose", self.node("Reshape", x, shape), perm=[0, 2, 1, 3])

    def attend_source(self, query: str, key: str, value: str) -> str:
        sizes = self.integers(-1, self.config.hidden_dim)
        if self.beams is None:  # (sources, beams, hidden)
            sources = self.node("Shape", key, end=1)
            self.beams = self.node("Concat", sources, sizes, axis=0)
        mixed = self.attention(self.node("Reshape", query, self.beams), key, value)
        return self.node("Reshape", mixed, sizes)

    def model(
        self, inputs: dict[str, tuple[int, Sequence[Any]]], outputs: dict[str, str]
    ) -> onnx.ModelProto:
        """Return the model.

        Args:
            inputs: name -> type and shape.
            outputs: name -> the value that is it.
        """
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        graph = helper.make_graph(
            self.nodes,
            "bart",
            [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIBUTED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def encoder(config: BartConfig, parameters: InferenceParameters) -> onnx.ModelProto:
    """Return the encoder: `token_ids` (sources, source) to `cross_key_i` and `cross_value_i`."""
    operators = OnnxOperators(config, parameters, config.num_heads, reorders=False)
    outputs = bart_graph.encode(config, operators, "token_ids")
    return operators.model({"token_ids": (TensorProto.INT64, ["sources", "source"])}, outputs)


def decoder(
    config: BartConfig, parameters: InferenceParameters, *, reorders: bool
) -> onnx.ModelProto:
    """Return a decoder step; `beam_index` is an input only where it `reorders` caches."""
    operators = OnnxOperators(config, parameters, config.decoder_heads, reorders=reorders)
    size, heads = config.decoder_head_size, config.decoder_heads
    cross = [
        f"cross_{part}_{layer}"
        for layer in range(config.decoder_layers)
        for part in ("key", "value")
    ]
    logits = bart_graph.decode(
        config, operators, "token_ids", "position", {name: name for name in cross}
    )
    inputs: dict[str, tuple[int, Sequence[Any]]] = {
        "token_ids": (TensorProto.INT64, ["rows"]),
        "position": (TensorProto.INT64, [1]),
        **{name: (TensorProto.FLOAT, ["sources", heads, "source", size]) for name in cross},
        **{name: (TensorProto.FLOAT, ["rows", heads, "past", size]) for name in operators.caches},
    }
    if reorders:
        inputs["beam_index"] = (TensorProto.INT64, ["rows"])
    outputs = {f"new_{name}": value for name, value in operators.caches.items()}
    return operators.model(inputs, {"logits": logits, **outputs})
