"""The name of every BART weight, in every format that stores it, and of every matrix for people.

One row a weight: our name (the path of the Keras variable, which is also KerasHub's), its shape,
where a Keras preset's HDF5 file keeps it and what Hugging Face calls it. Readers, writers, the
strict check and the Keras model all go by these rows; none of them spells a name of its own.
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


# Of a layer, each sublayer's kind, its name in Keras and in transformers, in the order of
# KerasHub's `backbone.weights`.
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
    """Return the rows of all weights of a BART, in the order of KerasHub's `backbone.weights`."""
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
    """Return the number of trained values, the tied table counted once."""
    return sum(weight.size for weight in weights(config))


def side_weights(config: BartConfig, side: str) -> Iterator[Weight]:
    """Yield the rows of the encoder or the decoder: positions, embedding norm, and every layer."""
    encoder, hidden = side == "encoder", config.hidden_dim
    heads = config.num_heads if encoder else config.decoder_heads
    width = config.intermediate_dim if encoder else config.decoder_feedforward
    kinds = {kind: parts(kind, hidden, heads, width) for kind in PARTS}
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


PARTS = ("attention", "norm", "widen", "narrow")


def parts(kind: str, hidden: int, heads: int, width: int) -> list[tuple[str, str, str, Shape]]:
    """Return the weights of a sublayer: the end of each name in the three formats, and its shape.

    `width` is that of the feed-forward network. Attention kernels have their heads split.
    """
    if kind == "norm":
        return [
            ("/gamma", "/vars/0", ".weight", (hidden,)),
            ("/beta", "/vars/1", ".bias", (hidden,)),
        ]
    split = ((hidden, heads, hidden // heads), (heads, hidden // heads))
    projections: dict[str, list[tuple[str, str, str, Shape, Shape]]] = {
        "attention": [
            ("/query", "/query_dense", ".q_proj", *split),
            ("/key", "/key_dense", ".k_proj", *split),
            ("/value", "/value_dense", ".v_proj", *split),
            (
                "/attention_output",
                "/output_dense",
                ".out_proj",
                (heads, hidden // heads, hidden),
                (hidden,),
            ),
        ],
        "widen": [("", "", "", (hidden, width), (width,))],
        "narrow": [("", "", "", (width, hidden), (hidden,))],
    }
    return [
        part
        for keras, h5, theirs, kernel, bias in projections[kind]
        for part in (
            (f"{keras}/kernel", f"{h5}/vars/0", f"{theirs}.weight", kernel),
            (f"{keras}/bias", f"{h5}/vars/1", f"{theirs}.bias", bias),
        )
    ]


KERNEL = re.compile(r"transformer_(encoder|decoder)_layer_(\d+)/(.*)/kernel")
# The sublayers' words in Keras -> in a layer name.
WORDS = (
    ("self_attention_layer", "self_attention"),
    ("/attention_output", "_output"),
    ("/", "_"),
    ("_dense", ""),
)


def layer_names(config: BartConfig) -> dict[str, str]:
    """Return layer name -> weight name of every matrix, in the order of `weights`."""
    return {
        layer_name(weight.name): weight.name
        for weight in weights(config)
        if weight.name.endswith(("/kernel", "/embeddings"))
    }


def layer_name(weight: str) -> str:
    """Return how people, recipe files, reports and `.tflite` files call a matrix.

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
