"""OpenVINO nodes for BART's graph: an encoder, and a decoder step that holds its caches itself.

Weights are those of `graph.parameters`. The decoder is the stateful one that OpenVINO's
documentation advises for generation: every cache is a variable, gathered by `beam_idx`, lengthened
by one position and attended by `ScaledDotProductAttention`, a pattern that its CPU plug-in runs as
one operator.
"""

from typing import Any

import numpy as np
import openvino
from openvino import opset15 as ops
from openvino.op.util import Variable, VariableInfo

from bart_export.checkpoints.weight_names import TOKEN_EMBEDDING
from bart_export.config import BartConfig
from bart_export.graph.parameters import InferenceParameters
from peers import bart_graph

EPSILON = 1e-5
FLOAT, INTEGER = openvino.Type.f32, openvino.Type.i32
ACTIVATIONS = {
    "gelu": lambda x: ops.gelu(x, "erf"),
    "gelu_new": lambda x: ops.gelu(x, "tanh"),
    "relu": ops.relu,
    "silu": ops.swish,
    "tanh": ops.tanh,
}


class OpenvinoOperators:
    """Makes OpenVINO nodes. See `bart_graph.Operators`; `beam_index` is the decoder's input."""

    def __init__(
        self,
        config: BartConfig,
        parameters: InferenceParameters,
        heads: int,
        beam_index: Any = None,
    ) -> None:
        self.config = config
        self.parameters = parameters
        self.heads = heads
        self.size = config.hidden_dim // heads
        self.beam_index = beam_index
        self.constants: dict[str, Any] = {}
        self.variables: list[Any] = []
        self.assigns: list[Any] = []
        self.beams: Any = None  # the shape of the queries of `attend_source`

    def weight(self, name: str) -> Any:
        """Store a weight once; that of a query without its scale, which the attention applies."""
        if name not in self.constants:
            array = self.parameters[name]
            if "/query/" in name:
                array = array * np.float32(self.size**0.5)
            self.constants[name] = ops.constant(array, name=name)
        return self.constants[name]

    def rows(self, name: str, indices: Any) -> Any:
        return ops.gather(self.weight(name), indices, integers(0))

    def first_rows(self, name: str, like: Any) -> Any:
        length = ops.gather(ops.shape_of(like), integers([1]), integers(0))
        return ops.slice(self.weight(name), integers([0]), length, integers([1]), integers([0]))

    def linear(self, name: str, x: Any) -> Any:
        product = ops.matmul(x, self.weight(f"{name}/kernel"), False, True, name=name)
        return self.bias(f"{name}/bias", product)

    def logits(self, x: Any) -> Any:
        return ops.matmul(x, self.weight(TOKEN_EMBEDDING), False, True, name="logits")

    def norm(self, name: str, x: Any) -> Any:
        normal = ops.mvn(x, integers([-1]), True, EPSILON, "INSIDE_SQRT")
        scaled = ops.multiply(normal, self.weight(f"{name}/gamma"))
        return ops.add(scaled, self.weight(f"{name}/beta"))

    def bias(self, name: str, x: Any) -> Any:
        return ops.add(x, self.weight(name))

    def add(self, x: Any, y: Any) -> Any:
        return ops.add(x, y)

    def scale(self, x: Any, factor: float) -> Any:
        return ops.multiply(x, np.float32(factor))

    def activation(self, x: Any) -> Any:
        return ACTIVATIONS[self.config.activation_function](x)

    def heads_of(self, x: Any, shape: Any) -> Any:
        """Turn activations into (batch, heads, length, head_size).

        `shape` is (batch, length, heads, head_size), where 0 keeps an axis of `x`.
        """
        return ops.transpose(ops.reshape(x, shape, True), integers([0, 2, 1, 3]))

    def split(self, batch: int, length: int) -> Any:
        """Return the shape for `heads_of`."""
        return integers([batch, length, self.heads, self.size])

    def merged(self, x: Any, *batch: int) -> Any:
        """Turn (batch, heads, length, head_size) into (*batch, hidden); 0 keeps an axis."""
        shape = integers([*batch, self.config.hidden_dim])
        return ops.reshape(ops.transpose(x, integers([0, 2, 1, 3])), shape, True)

    def attend(self, query: Any, key: Any, value: Any) -> Any:
        parts = [self.heads_of(x, self.split(0, -1)) for x in (query, key, value)]
        return self.merged(attention(*parts), 0, -1)

    def attend_past(self, layer: int, query: Any, key: Any, value: Any) -> Any:
        past = [
            self.lengthened(f"self_{part}_{layer}", self.heads_of(x, self.split(-1, 1)))
            for part, x in (("key", key), ("value", value))
        ]
        return self.merged(attention(self.heads_of(query, self.split(-1, 1)), *past), -1)

    def lengthened(self, name: str, present: Any) -> Any:
        """Reorder a cache's rows, append the new entries, and keep the result."""
        info = VariableInfo()
        info.data_shape = openvino.PartialShape([-1, self.heads, -1, self.size])
        info.data_type, info.variable_id = FLOAT, name
        variable = Variable(info)
        rows = ops.shape_of(self.beam_index)
        shape = ops.concat([rows, integers([self.heads, 0, self.size])], 0)
        empty = ops.broadcast(np.float32(0), shape)
        past = ops.gather(ops.read_value(empty, variable), self.beam_index, integers(0))
        cache = ops.concat([past, present], 2)
        self.variables.append(variable)
        self.assigns.append(ops.assign(cache, variable))
        return cache

    def source_heads(self, x: Any) -> Any:
        sizes = [self.config.decoder_heads, self.config.decoder_head_size]
        return self.heads_of(x, integers([0, -1, *sizes]))

    def attend_source(self, query: Any, key: Any, value: Any) -> Any:
        if self.beams is None:
            sources = ops.gather(ops.shape_of(key), integers([0]), integers(0))
            self.beams = ops.concat([sources, integers([-1, self.heads, self.size])], 0)
        return self.merged(attention(self.heads_of(query, self.beams), key, value), -1)


def integers(values: Any) -> Any:
    """Return a constant of integers."""
    return ops.constant(np.array(values, np.int64))


def attention(query: Any, key: Any, value: Any) -> Any:
    """Add an attention as OpenVINO's passes look for it: neither mask nor scale are inputs."""
    return ops.scaled_dot_product_attention(query, key, value)


def parameter(name: str, shape: list[int], dtype: Any) -> Any:
    """Return an input."""
    made = ops.parameter(shape, dtype, name=name)
    made.output(0).set_names({name})
    return made


def result(name: str, node: Any) -> Any:
    """Return an output."""
    made = ops.result(node, name=name)
    made.output(0).set_names({name})
    return made


def encoder(config: BartConfig, parameters: InferenceParameters) -> openvino.Model:
    """Return the encoder: `token_ids` (sources, source) to `cross_key_i` and `cross_value_i`."""
    token_ids = parameter("token_ids", [-1, -1], INTEGER)
    operators = OpenvinoOperators(config, parameters, config.num_heads)
    outputs = bart_graph.encode(config, operators, token_ids)
    return openvino.Model(
        [result(name, node) for name, node in outputs.items()], [token_ids], "encode"
    )


def decoder(config: BartConfig, parameters: InferenceParameters) -> openvino.Model:
    """Return the decoder step, whose caches are its state."""
    token_ids, position, beam_index = (
        parameter(name, shape, INTEGER)
        for name, shape in (("token_ids", [-1]), ("position", [1]), ("beam_idx", [-1]))
    )
    shape = [-1, config.decoder_heads, -1, config.decoder_head_size]
    cross = {
        f"cross_{part}_{layer}": parameter(f"cross_{part}_{layer}", shape, FLOAT)
        for layer in range(config.decoder_layers)
        for part in ("key", "value")
    }
    operators = OpenvinoOperators(config, parameters, config.decoder_heads, beam_index)
    logits = bart_graph.decode(config, operators, token_ids, position, cross)
    return openvino.Model(
        [result("logits", logits)],
        operators.assigns,
        [token_ids, position, beam_index, *cross.values()],
        operators.variables,
        "decode",
    )
