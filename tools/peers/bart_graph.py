"""BART's encoder and decoder step, composed of the operators of a peer's library.

An `Operators` has the weights and adds nodes to a graph. Activations are (sources, source, hidden)
in the encoder and (rows, hidden) in the decoder, whose rows are the beams of each source in turn.
Sources have the same length, so no mask is needed. The encoder projects its output once to the
cross keys and values of every decoder layer, where the beams of a source are the queries of one
sequence. The peer defines attentions, and how caches are passed from one step to the next.
"""

from typing import Any, Protocol

from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.config import BartConfig

Node = Any  # a value in the graph of a peer


class Operators(Protocol):
    """Adds nodes to a graph; `name` names weights as `checkpoints.weight_names` does."""

    def rows(self, name: str, indices: Node) -> Node:
        """Look up rows of a table."""

    def first_rows(self, name: str, like: Node) -> Node:
        """Return a table's first rows, one per source token in `like`, (sources, source)."""

    def linear(self, name: str, x: Node) -> Node:
        """Apply a projection with its bias."""

    def norm(self, name: str, x: Node) -> Node:
        """Apply a layer norm."""

    def logits(self, x: Node) -> Node:
        """Multiply by the transposed token embedding."""

    def bias(self, name: str, x: Node) -> Node:
        """Add a vector."""

    def add(self, x: Node, y: Node) -> Node:
        """Add two values."""

    def scale(self, x: Node, factor: float) -> Node:
        """Multiply by a number."""

    def activation(self, x: Node) -> Node:
        """Apply the activation function of the feed-forward blocks."""

    def attend(self, query: Node, key: Node, value: Node) -> Node:
        """Attend over the tokens of each source; all are (sources, source, hidden)."""

    def attend_past(self, layer: int, query: Node, key: Node, value: Node) -> Node:
        """Attend over each row's past, extended by key and value; all are (rows, hidden)."""

    def source_heads(self, x: Node) -> Node:
        """Convert (sources, source, hidden) to keys or values for `attend_source`."""

    def attend_source(self, query: Node, key: Node, value: Node) -> Node:
        """Attend over each source's keys and values with a query (rows, hidden)."""


def encode(config: BartConfig, operators: Operators, token_ids: Node) -> dict[str, Node]:
    """Return `cross_key_i` and `cross_value_i` of every decoder layer.

    `token_ids` are (sources, source).
    """
    positions = operators.first_rows("encoder_position_embedding/embeddings", token_ids)
    x = embed(config, operators, "encoder", token_ids, positions)
    for layer in range(config.num_layers):
        name = f"transformer_encoder_layer_{layer}"
        attention = f"{name}/self_attention_layer"
        mixed = operators.attend(
            *(operators.linear(f"{attention}/{part}", x) for part in ("query", "key", "value"))
        )
        x = residual(operators, f"{name}/self_attention", attention, x, mixed)
        x = feedforward(operators, name, x)
    return {
        f"cross_{part}_{layer}": operators.source_heads(
            operators.linear(f"transformer_decoder_layer_{layer}/cross_attention/{part}", x)
        )
        for layer in range(config.decoder_layers)
        for part in ("key", "value")
    }


def decode(
    config: BartConfig,
    operators: Operators,
    token_ids: Node,
    position: Node,
    cross: dict[str, Node],
) -> Node:
    """Return logits (rows, vocabulary) from ids (rows,), a position (1,) and cross tensors."""
    positions = operators.rows("decoder_position_embedding/embeddings", position)
    x = embed(config, operators, "decoder", token_ids, positions)
    for layer in range(config.decoder_layers):
        name = f"transformer_decoder_layer_{layer}"
        attention = f"{name}/self_attention"
        mixed = operators.attend_past(
            layer,
            *(operators.linear(f"{attention}/{part}", x) for part in ("query", "key", "value")),
        )
        x = residual(operators, attention, attention, x, mixed)
        attention = f"{name}/cross_attention"
        mixed = operators.attend_source(
            operators.linear(f"{attention}/query", x),
            cross[f"cross_key_{layer}"],
            cross[f"cross_value_{layer}"],
        )
        x = residual(operators, attention, attention, x, mixed)
        x = feedforward(operators, name, x)
    logits = operators.logits(x)
    return operators.bias(FINAL_LOGITS_BIAS, logits) if config.final_logits_bias else logits


def embed(
    config: BartConfig, operators: Operators, side: str, token_ids: Node, positions: Node
) -> Node:
    """Sum token and position embeddings and normalize them."""
    x = operators.rows(TOKEN_EMBEDDING, token_ids)
    if config.scale_embedding:
        x = operators.scale(x, float(config.hidden_dim) ** 0.5)
    return operators.norm(f"{side}_embeddings_layer_norm", operators.add(x, positions))


def residual(operators: Operators, norm: str, attention: str, x: Node, mixed: Node) -> Node:
    """Project the output of an attention, add its input, and normalize."""
    projected = operators.linear(f"{attention}/attention_output", mixed)
    return operators.norm(f"{norm}_layer_norm", operators.add(x, projected))


def feedforward(operators: Operators, name: str, x: Node) -> Node:
    """Apply the feed-forward block of the layer `name`."""
    wide = operators.activation(operators.linear(f"{name}/feedforward_intermediate_dense", x))
    narrow = operators.linear(f"{name}/feedforward_output_dense", wide)
    return operators.norm(f"{name}/feedforward_layer_norm", operators.add(x, narrow))
