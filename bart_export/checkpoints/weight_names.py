"""Names and shapes of all BART weights in every format, and the layer names of matrices.

Readers, writers, checks and the Keras model all use this table, which has one row per weight.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from bart_export.config import BartConfig

TOKEN_EMBEDDING = "token_embedding/embeddings"
FINAL_LOGITS_BIAS = "final_logits_bias"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight tensor.

    `name` is the Keras variable's path, as in KerasHub, and the canonical name; `h5` is the dataset
    in a Keras preset; `hugging_face` is the tensor in a transformers checkpoint, without the prefix
    "model.". KerasHub has no logits bias, so that dataset's path is this package's own.
    """

    name: str
    shape: Shape
    h5: str
    hugging_face: str

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


# The kind, the Keras name and the transformers name of each sublayer, in the order of KerasHub's
# `backbone.weights`.
ENCODER = (
    ("attention", "self_attention_layer", "self_attn"),
    ("norm", "self_attention_layer_norm", "self_attn_layer_norm"),
    ("norm", "feedforward_layer_norm", "final_layer_norm"),
    ("widen", "feedforward_intermediate_dense", "fc1"),
    ("narrow", "feedforward_output_dense", "fc2"),
)
DECODER = (
    ("attention", "self_attention", "self_attn"),
    ("norm", "self_attention_layer_norm", "self_attn_layer_norm"),
    ("attention", "cross_attention", "encoder_attn"),
    ("norm", "cross_attention_layer_norm", "encoder_attn_layer_norm"),
    ("widen", "feedforward_intermediate_dense", "fc1"),
    ("narrow", "feedforward_output_dense", "fc2"),
    ("norm", "feedforward_layer_norm", "final_layer_norm"),
)


def weights(config: BartConfig) -> tuple[Weight, ...]:
    """Return all weights of a BART model, in the order of KerasHub's `backbone.weights`."""
    table = (config.vocabulary_size, config.hidden_dim)
    rows = [
        Weight(TOKEN_EMBEDDING, table, "layers/reversible_embedding/vars/0", "shared.weight"),
        *side_weights(config, "encoder"),
        *side_weights(config, "decoder"),
    ]
    if config.final_logits_bias:
        place = "layers/final_logits_bias/vars/0"
        rows.append(Weight(FINAL_LOGITS_BIAS, table[:1], place, "final_logits_bias"))
    return tuple(rows)


def parameter_count(config: BartConfig) -> int:
    """Return the number of parameters, counting the tied embedding once."""
    return sum(weight.size for weight in weights(config))


def side_weights(config: BartConfig, side: str) -> Iterator[Weight]:
    """Yield the weights of the encoder or the decoder."""
    encoder, hidden = side == "encoder", config.hidden_dim
    heads = config.num_heads if encoder else config.decoder_heads
    width = config.intermediate_dim if encoder else config.decoder_feedforward
    kinds = sublayers(hidden, heads, width)
    second = "" if encoder else "_1"  # Keras numbers the second instance of a class 1
    yield Weight(
        f"{side}_position_embedding/embeddings",
        (config.max_sequence_length, hidden),
        f"layers/position_embedding{second}/vars/0",
        f"{side}.embed_positions.weight",
    )
    blocks = [
        (
            "norm",
            f"{side}_embeddings_layer_norm",
            f"layers/layer_normalization{second}",
            f"{side}.layernorm_embedding",
        )
    ]
    for layer in range(config.num_layers if encoder else config.decoder_layers):
        group = f"layers/transformer_{side}" + (f"_{layer}" if layer else "")
        for kind, keras, hugging_face in ENCODER if encoder else DECODER:
            ending = "_layer" if keras.endswith("attention") else ""
            name = f"transformer_{side}_layer_{layer}/{keras}"
            theirs = f"{side}.layers.{layer}.{hugging_face}"
            blocks.append((kind, name, f"{group}/_{keras}{ending}", theirs))
    for kind, name, h5, theirs in blocks:
        for keras_part, h5_part, their_part, shape in kinds[kind]:
            yield Weight(name + keras_part, shape, h5 + h5_part, theirs + their_part)


def sublayers(hidden: int, heads: int, width: int) -> dict[str, list[tuple[str, str, str, Shape]]]:
    """Return each kind of sublayer's weights: the suffixes of their three names, and their shapes.

    `width` is the feed-forward network's. Attention kernels have a separate head axis.
    """

    def projection(
        keras: str, h5: str, theirs: str, kernel: Shape, bias: Shape
    ) -> list[tuple[str, str, str, Shape]]:
        return [
            (f"{keras}/kernel", f"{h5}/vars/0", f"{theirs}.weight", kernel),
            (f"{keras}/bias", f"{h5}/vars/1", f"{theirs}.bias", bias),
        ]

    size = hidden // heads
    split, merged = ((hidden, heads, size), (heads, size)), ((heads, size, hidden), (hidden,))
    return {
        "attention": [
            *projection("/query", "/query_dense", ".q_proj", *split),
            *projection("/key", "/key_dense", ".k_proj", *split),
            *projection("/value", "/value_dense", ".v_proj", *split),
            *projection("/attention_output", "/output_dense", ".out_proj", *merged),
        ],
        "norm": [
            ("/gamma", "/vars/0", ".weight", (hidden,)),
            ("/beta", "/vars/1", ".bias", (hidden,)),
        ],
        "widen": projection("", "", "", (hidden, width), (width,)),
        "narrow": projection("", "", "", (width, hidden), (hidden,)),
    }


KERNEL = re.compile(r"transformer_(encoder|decoder)_layer_(\d+)/(.*)/kernel")
# Parts of Keras names → parts of layer names.
WORDS = (
    ("self_attention_layer", "self_attention"),
    ("/attention_output", "_output"),
    ("/", "_"),
    ("_dense", ""),
)


def layer_names(config: BartConfig) -> dict[str, str]:
    """Return the weight name of every matrix, keyed by layer name, in the order of `weights`."""
    return {
        layer_name(weight.name): weight.name
        for weight in weights(config)
        if weight.name.endswith(("/kernel", "/embeddings"))
    }


def layer_name(weight: str) -> str:
    """Return a matrix's layer name in recipe files, reports and `.tflite` files.

    For example `decoder/layer_3/feedforward_output` for
    `transformer_decoder_layer_3/feedforward_output_dense/kernel`.
    """
    if weight == TOKEN_EMBEDDING:
        return "token_embedding"
    kernel = KERNEL.fullmatch(weight)
    if kernel is None:
        side, _, _ = weight.partition("_")
        return f"{side}/position_embedding"
    side, number, projection = kernel.groups()
    for keras, word in WORDS:
        projection = projection.replace(keras, word)
    return f"{side}/layer_{number}/{projection}"
