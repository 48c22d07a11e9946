"""The signatures of exported files: the name, dtype and named axes of every tensor.

`sizes` returns the axes that a configuration fixes. The others (`SOURCES`, `SOURCE`, `BEAMS`,
`ROWS`, `DRAFT`, `CAPACITY`) are dynamic: the runtime resizes them. A static build of a `.tflite`
file fixes them, too, and has a signature for each *bucket* of sizes.

    one         always 1: a call encodes one source
    sources     source texts decoded together
    source      source tokens
    beams       sequences decoded for each source
    rows        sources times beams; the beams of a source are adjacent
    draft       tokens of one sequence that are decoded together
    capacity    decoder positions in a self-attention cache
    heads       decoder attention heads
    head_size   width of one head
    vocabulary  vocabulary size
    hidden      width of the encoder's and decoder's outputs

The signatures of a SavedModel are batch-major:

    batch       texts of one request, or of several batched requests
    target      tokens of a decoder sequence, including the start token
    sequences   sequences returned for each text, fixed at export
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

from bart_export.config import BartConfig
from bart_export.errors import ConfigurationError

CONTRACT_VERSION = 2  # of new `.tflite` files; version 1 decoded one source at a time

ONE, SOURCES, SOURCE, DRAFT = "one", "sources", "source", "draft"
BEAMS, ROWS, CAPACITY = "beams", "rows", "capacity"
HEADS, HEAD_SIZE, VOCABULARY = "heads", "head_size", "vocabulary"
BATCH, TARGET, SEQUENCES, HIDDEN = "batch", "target", "sequences", "hidden"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output: its name, dtype ("int32", "float32" or "string") and named axes."""

    name: str
    dtype: str
    axes: tuple[str, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
        """Return the size of each axis, or None for an axis that `sizes` lacks."""
        return tuple(sizes.get(axis) for axis in self.axes)


@dataclasses.dataclass(frozen=True)
class Signature:
    """A signature of an exported file, from named inputs to named outputs."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @functools.cached_property
    def axes(self) -> set[str]:
        """The axes of all tensors."""
        return {axis for tensor in (*self.inputs, *self.outputs) for axis in tensor.axes}


def sizes(config: BartConfig) -> dict[str, int]:
    """Return the size of every axis that the configuration fixes."""
    return {
        ONE: 1,
        HEADS: config.decoder_heads,
        HEAD_SIZE: config.decoder_head_size,
        VOCABULARY: config.vocabulary_size,
        HIDDEN: config.hidden_dim,
    }


def cross_tensors(
    config: BartConfig, sources: str = ONE, version: int = CONTRACT_VERSION
) -> tuple[Tensor, ...]:
    """Return the cross-attention keys and values of each decoder layer, which `encode` outputs."""
    # In this order of axes, the product of queries and keys needs no transposition.
    key = (HEADS, HEAD_SIZE, SOURCE) if version > 1 else (HEADS, SOURCE, HEAD_SIZE)
    axes = {"key": key, "value": (HEADS, SOURCE, HEAD_SIZE)}
    return tuple(
        Tensor(f"cross_{part}_{layer}", "float32", (sources, *axes[part]))
        for layer in range(config.decoder_layers)
        for part in axes
    )


def cache_tensors(
    config: BartConfig, rows: str = ROWS, positions: str = CAPACITY
) -> tuple[Tensor, ...]:
    """Return the self-attention keys and values of each decoder layer: caches, or new entries."""
    return tuple(
        Tensor(f"self_{part}_{layer}", "float32", (rows, HEADS, positions, HEAD_SIZE))
        for layer in range(config.decoder_layers)
        for part in ("key", "value")
    )


def tflite_signatures(config: BartConfig, version: int = CONTRACT_VERSION) -> tuple[Signature, ...]:
    """Return the signatures of a `.tflite` file: `encode` runs once per text, `decode` per token.

    `decode` steps all beams of several sources, `decode_single` one beam of each with faster
    operators. `position` counts a row's decoder tokens from 0. Sources shorter than `source` are
    masked. `self_*` inputs are caches, of which only the entries before `position` are read;
    `self_*` outputs are the new tokens' entries, which the caller writes into the caches. If a row
    continues another row, the caller copies that row's cache first.

    `decode_draft` decodes successive tokens of one sequence.

    In version 1, `decode` steps one source, all of whose beams are at the same position, and first
    reorders the caches: `beam_index[r]` is the row that row `r` continues. `self_*` outputs are
    complete updated caches, and inputs must be 0 from `position` on.
    """
    encode = Signature(
        "encode",
        inputs=(
            Tensor("encoder_token_ids", "int32", (ONE, SOURCE)),
            Tensor("encoder_padding_mask", "int32", (ONE, SOURCE)),
        ),
        outputs=cross_tensors(config, ONE, version),
    )
    if version == 1:
        return (
            encode,
            decode_signature("decode", config, version, (BEAMS, ONE), BEAMS),
            decode_signature("decode_single", config, version, (ONE, ONE), ONE),
        )
    return (
        encode,
        decode_signature("decode", config, version, (SOURCES, BEAMS), ROWS),
        decode_signature("decode_single", config, version, (SOURCES, ONE), SOURCES),
        draft_signature(config),
    )


def draft_signature(config: BartConfig) -> Signature:
    """Return the signature that decodes several tokens of one sequence."""
    return Signature(
        "decode_draft",
        inputs=(
            Tensor("decoder_token_ids", "int32", (ONE, DRAFT)),
            Tensor("position", "int32", (DRAFT,)),
            Tensor("encoder_padding_mask", "int32", (ONE, SOURCE)),
            *cross_tensors(config),
            *cache_tensors(config, ONE),
        ),
        outputs=(
            Tensor("logits", "float32", (DRAFT, VOCABULARY)),
            *cache_tensors(config, ONE, DRAFT),
        ),
    )


def decode_signature(
    name: str, config: BartConfig, version: int, token_axes: tuple[str, str], rows: str
) -> Signature:
    """Return the signature of a decode step; the axes are those of its tokens and its caches."""
    sources, position, returned = (SOURCES, rows, ONE) if version > 1 else (ONE, ONE, CAPACITY)
    reorders = version == 1 and name == "decode"
    beam_index = (Tensor("beam_index", "int32", (rows,)),) if reorders else ()
    return Signature(
        name,
        inputs=(
            Tensor("decoder_token_ids", "int32", token_axes),
            Tensor("position", "int32", (position,)),
            *beam_index,
            Tensor("encoder_padding_mask", "int32", (sources, SOURCE)),
            *cross_tensors(config, sources, version),
            *cache_tensors(config, rows),
        ),
        outputs=(
            Tensor("logits", "float32", (rows, VOCABULARY)),
            *cache_tensors(config, rows, returned),
        ),
    )


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A signature of a static build: one of `tflite_signatures` with fixed axes.

    `name` is the name in the file; `sizes` has the sizes of the otherwise dynamic axes.
    """

    name: str
    signature: Signature
    sizes: Mapping[str, int]


def dynamic_buckets(signatures: Sequence[Signature]) -> tuple[Bucket, ...]:
    """Return the signatures of a dynamic `.tflite` file: buckets without fixed axes."""
    return tuple(Bucket(signature.name, signature, {}) for signature in signatures)


def static_buckets(
    config: BartConfig,
    source_lengths: Sequence[int],
    target_length: int,
    num_beams: Sequence[int],
    draft_length: int = 0,
    sources: Sequence[int] = (1,),
) -> tuple[Bucket, ...]:
    """Return the signatures of a static `.tflite` file.

    These are `encode_S` for every source length, `decode_S_K` for every source length and number of
    beams (a `decode_single` for one beam), `decode_S_K_N` for several sources, and with a
    `draft_length` and one beam `decode_draft_S`. Readers must not rely on these names.
    """
    longest = max(*source_lengths, target_length, draft_length)
    if longest > config.max_sequence_length:
        raise ConfigurationError(
            f"source_lengths and target_length must be at most the model's "
            f"{config.max_sequence_length} positions, received {longest}."
        )
    encode, decode, decode_single, decode_draft = tflite_signatures(config)
    buckets = []
    for source in source_lengths:
        buckets.append(Bucket(f"encode_{source}", encode, {SOURCE: source}))
        for count, beams in itertools.product(sources, num_beams):
            sizes = {
                SOURCES: count,
                SOURCE: source,
                BEAMS: beams,
                ROWS: count * beams,
                CAPACITY: target_length,
            }
            signature = decode if beams > 1 else decode_single
            name = f"decode_{source}_{beams}" if count == 1 else f"decode_{source}_{beams}_{count}"
            buckets.append(Bucket(name, signature, sizes))
        if draft_length > 0 and 1 in num_beams:
            sizes = {SOURCE: source, DRAFT: draft_length, CAPACITY: target_length}
            buckets.append(Bucket(f"decode_draft_{source}", decode_draft, sizes))
    return tuple(buckets)


def tflite_buckets(config: BartConfig, shapes: "StaticShapes | None" = None) -> tuple[Bucket, ...]:
    """Return the signatures of a static `.tflite` file, or of a dynamic one if `shapes` is None."""
    if shapes is None:
        return dynamic_buckets(tflite_signatures(config))
    return static_buckets(config, **vars(shapes))


# Optional settings for each text of a request, named as in `config.GenerationConfig`;
# `early_stopping` is "true", "false" or "never".
GENERATION_INPUTS = (
    Tensor("max_length", "int32", (BATCH,)),
    Tensor("min_length", "int32", (BATCH,)),
    Tensor("length_penalty", "float32", (BATCH,)),
    Tensor("repetition_penalty", "float32", (BATCH,)),
    Tensor("early_stopping", "string", (BATCH,)),
)


def saved_model_signatures() -> tuple[Signature, ...]:
    """Return the signatures of a SavedModel: text to text, and every step in between.

    Masks are computed from lengths, so a server may pad a batch with any ids. `generate` returns
    `sequences` hypotheses for each text, best first, padded with the padding token. `score` returns
    the log-probability of each decoder token given the tokens before it, and 0 for the start token
    and padding. `tokenize` adds the start and end tokens and truncates to the model's limit;
    `detokenize` drops special tokens. Generated text has no leading space.
    """
    text = Tensor("text", "string", (BATCH,))
    source = (
        Tensor("encoder_token_ids", "int32", (BATCH, SOURCE)),
        Tensor("encoder_lengths", "int32", (BATCH,)),
    )
    target = (
        Tensor("decoder_token_ids", "int32", (BATCH, TARGET)),
        Tensor("decoder_lengths", "int32", (BATCH,)),
    )
    encoded = Tensor("encoder_sequence_output", "float32", (BATCH, SOURCE, HIDDEN))
    scores = Tensor("scores", "float32", (BATCH, SEQUENCES))
    return (
        Signature("serving_default", (text,), (Tensor("generated_text", "string", (BATCH,)),)),
        Signature(
            "generate_text",
            (text, *GENERATION_INPUTS),
            (Tensor("generated_text", "string", (BATCH, SEQUENCES)), scores),
        ),
        Signature(
            "generate",
            (*source, *GENERATION_INPUTS),
            (
                Tensor("decoder_token_ids", "int32", (BATCH, SEQUENCES, TARGET)),
                Tensor("decoder_lengths", "int32", (BATCH, SEQUENCES)),
                scores,
            ),
        ),
        Signature("encode", source, (encoded,)),
        Signature(
            "score",
            (*source, *target),
            (Tensor("log_probabilities", "float32", (BATCH, TARGET)),),
        ),
        Signature(
            "backbone",
            (
                Tensor("encoder_token_ids", "int32", (BATCH, SOURCE)),
                Tensor("encoder_padding_mask", "int32", (BATCH, SOURCE)),
                Tensor("decoder_token_ids", "int32", (BATCH, TARGET)),
                Tensor("decoder_padding_mask", "int32", (BATCH, TARGET)),
            ),
            (encoded, Tensor("decoder_sequence_output", "float32", (BATCH, TARGET, HIDDEN))),
        ),
        Signature("tokenize", (text,), source),
        Signature("detokenize", target, (text,)),
    )


def output_padding(pad_token_id: int) -> dict[str, int]:
    """Return, by name, the padding of each SavedModel output with rows of varying length."""
    return {
        tensor.name: pad_token_id if tensor.dtype == "int32" else 0
        for signature in saved_model_signatures()
        for tensor in signature.outputs
        if {SOURCE, TARGET} & {*tensor.axes}
    }


@dataclasses.dataclass(frozen=True)
class StaticShapes:
    """The buckets of a static build; lengths are in tokens, including start and end.

    `source_lengths`, `num_beams` and `sources` are sorted. There is an `encode` for every source
    length and a `decode` for every combination; `target_length` is the capacity of a cache.
    `draft_length` is the number of tokens that a `decode_draft` for every source length decodes, or
    0 for none. `sources` are the numbers of sources decoded together, and always include 1.

    Raises:
        ConfigurationError: if a number is below 1, or a list is empty.
    """

    source_lengths: tuple[int, ...]
    target_length: int
    num_beams: tuple[int, ...]
    draft_length: int = 0
    sources: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", (1, *self.sources))
        for name in ("source_lengths", "num_beams", "sources"):
            numbers = tuple(sorted(set(getattr(self, name))))
            if not numbers or numbers[0] < 1:
                raise ConfigurationError(
                    f"{name} must be one or more numbers of at least 1, received "
                    f"{', '.join(map(str, numbers)) or 'none'}."
                )
            object.__setattr__(self, name, numbers)
        if self.target_length < 1:
            raise ConfigurationError(
                f"target_length must be at least 1, received {self.target_length}."
            )

    def limited_to(self, source_length: int) -> "StaticShapes":
        """Return the shapes with source lengths lowered to at most `source_length`."""
        lengths = tuple(min(length, source_length) for length in self.source_lengths)
        return dataclasses.replace(self, source_lengths=lengths)

    def drafting(self, tokens: int) -> "StaticShapes":
        """Return the shapes with drafts of `tokens` tokens, but no longer than an output."""
        length = min(1 + tokens, self.target_length - 1) if tokens else 0
        return dataclasses.replace(self, draft_length=length)
