"""The name of every BART weight, in every format that stores it.

One row a weight: our name (the path of the Keras variable, which is also KerasHub's), its shape,
where a Keras preset's HDF5 file keeps it and what Hugging Face calls it. Readers, writers, the
strict check and the Keras model all go by these rows; none of them spells a name of its own.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

from bart_export.config import BartConfig

TOKEN_EMBEDDING = "token_embedding/embeddings"
FINAL_LOGITS_BIAS = "final_logits_bias"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight tensor.

    `name` is the Keras variable's path; `h5` the dataset in a Keras preset (KerasHub has no
    logits bias; its place is ours); `hugging_face` the tensor in a transformers checkpoint, without
    the leading "model.".
    """

    name: str
    shape: Shape
    h5: str
    hugging_face: str

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def weights(config: BartConfig) -> tuple[Weight, ...]:
    """Return the rows of all weights of a BART, in the order of KerasHub's `backbone.weights`."""
    rows = [
        Weight(
            TOKEN_EMBEDDING,
            (config.vocabulary_size, config.hidden_dim),
            "layers/reversible_embedding/vars/0",
            "shared.weight",
        )
    ]
    for stack in ENCODER, DECODER:
        rows += stack_rows(config, stack)
    if config.final_logits_bias:
        rows.append(
            Weight(
                FINAL_LOGITS_BIAS,
                (config.vocabulary_size,),
                "layers/final_logits_bias/vars/0",
                "final_logits_bias",
            )
        )
    return tuple(rows)


def parameter_count(config: BartConfig) -> int:
    """Return the number of trained values, the tied table counted once."""
    return sum(weight.size for weight in weights(config))


@dataclasses.dataclass(frozen=True)
class Stack:
    """How the rows of the encoder or the decoder are spelled."""

    word: str
    h5_suffix: str  # the second instance of a class is numbered 1
    sublayers: tuple[tuple[str, str, str, str], ...]  # kind, Keras name, HDF5 group, Hugging Face


# The order of the sub-layers is that of KerasHub's `backbone.weights`.
ENCODER = Stack(
    "encoder",
    "",
    (
        ("attention", "self_attention_layer", "_self_attention_layer", "self_attn"),
        ("norm", "self_attention_layer_norm", "_self_attention_layer_norm", "self_attn_layer_norm"),
        ("norm", "feedforward_layer_norm", "_feedforward_layer_norm", "final_layer_norm"),
        ("widen", "feedforward_intermediate_dense", "_feedforward_intermediate_dense", "fc1"),
        ("narrow", "feedforward_output_dense", "_feedforward_output_dense", "fc2"),
    ),
)
DECODER = Stack(
    "decoder",
    "_1",
    (
        ("attention", "self_attention", "_self_attention_layer", "self_attn"),
        ("norm", "self_attention_layer_norm", "_self_attention_layer_norm", "self_attn_layer_norm"),
        ("attention", "cross_attention", "_cross_attention_layer", "encoder_attn"),
        (
            "norm",
            "cross_attention_layer_norm",
            "_cross_attention_layer_norm",
            "encoder_attn_layer_norm",
        ),
        ("widen", "feedforward_intermediate_dense", "_feedforward_intermediate_dense", "fc1"),
        ("narrow", "feedforward_output_dense", "_feedforward_output_dense", "fc2"),
        ("norm", "feedforward_layer_norm", "_feedforward_layer_norm", "final_layer_norm"),
    ),
)
PROJECTIONS = (
    ("query", "query_dense", "q_proj"),
    ("key", "key_dense", "k_proj"),
    ("value", "value_dense", "v_proj"),
    ("attention_output", "output_dense", "out_proj"),
)


def stack_rows(config: BartConfig, stack: Stack) -> list[Weight]:
    """Return the rows of one side: positions, embedding norm, and every layer."""
    word, hidden = stack.word, config.hidden_dim
    encoder = stack is ENCODER
    heads = config.num_heads if encoder else config.decoder_heads
    feedforward = config.intermediate_dim if encoder else config.decoder_feedforward
    rows = [
        Weight(
            f"{word}_position_embedding/embeddings",
            (config.max_sequence_length, hidden),
            f"layers/position_embedding{stack.h5_suffix}/vars/0",
            f"{word}.embed_positions.weight",
        ),
        *norm_rows(
            f"{word}_embeddings_layer_norm",
            f"layers/layer_normalization{stack.h5_suffix}",
            f"{word}.layernorm_embedding",
            hidden,
        ),
    ]
    for layer in range(config.num_layers if encoder else config.decoder_layers):
        number = f"_{layer}" if layer else ""
        for kind, keras, h5, hugging_face in stack.sublayers:
            rows += KINDS[kind](
                f"transformer_{word}_layer_{layer}/{keras}",
                f"layers/transformer_{word}{number}/{h5}",
                f"{word}.layers.{layer}.{hugging_face}",
                hidden,
                heads,
                feedforward,
            )
    return rows


def attention_rows(
    name: str, h5: str, hugging_face: str, hidden: int, heads: int, feedforward: int
) -> Iterator[Weight]:
    """Yield the rows of the four projections of an attention layer, heads split as in Keras."""
    size = hidden // heads
    for keras_word, h5_word, hugging_face_word in PROJECTIONS:
        output = keras_word == "attention_output"
        kernel = (heads, size, hidden) if output else (hidden, heads, size)
        bias = (hidden,) if output else (heads, size)
        yield from linear_rows(
            f"{name}/{keras_word}", f"{h5}/{h5_word}", f"{hugging_face}.{hugging_face_word}",
            kernel, bias,
        )  # fmt: skip


def norm_rows(
    name: str, h5: str, hugging_face: str, hidden: int, *unused_sizes: int
) -> Iterator[Weight]:
    """Yield the rows of a layer norm's scale and offset."""
    yield Weight(f"{name}/gamma", (hidden,), f"{h5}/vars/0", f"{hugging_face}.weight")
    yield Weight(f"{name}/beta", (hidden,), f"{h5}/vars/1", f"{hugging_face}.bias")


def widen_rows(
    name: str, h5: str, hugging_face: str, hidden: int, heads: int, feedforward: int
) -> Iterator[Weight]:
    """Yield the rows of the first feed-forward projection."""
    yield from linear_rows(name, h5, hugging_face, (hidden, feedforward), (feedforward,))


def narrow_rows(
    name: str, h5: str, hugging_face: str, hidden: int, heads: int, feedforward: int
) -> Iterator[Weight]:
    """Yield the rows of the second feed-forward projection."""
    yield from linear_rows(name, h5, hugging_face, (feedforward, hidden), (hidden,))


def linear_rows(
    name: str, h5: str, hugging_face: str, kernel: Shape, bias: Shape
) -> Iterator[Weight]:
    """Yield the kernel and bias of one projection."""
    yield Weight(f"{name}/kernel", kernel, f"{h5}/vars/0", f"{hugging_face}.weight")
    yield Weight(f"{name}/bias", bias, f"{h5}/vars/1", f"{hugging_face}.bias")


KINDS: dict[str, Callable[[str, str, str, int, int, int], Iterable[Weight]]] = {
    "attention": attention_rows,
    "norm": norm_rows,
    "widen": widen_rows,
    "narrow": narrow_rows,
}
