"""The architecture of a BART model and the settings of a generation, validated on creation.

`BartConfig` uses KerasHub's names, and `GenerationConfig` uses Hugging Face's. Manifests store both
as plain dictionaries.
"""

import dataclasses
import math
import numbers
import os
from collections.abc import Mapping
from typing import Any, TypeGuard

from bart_export.errors import ConfigurationError, did_you_mean, named, shown

ACTIVATION_FUNCTIONS = ("gelu", "gelu_new", "relu", "silu", "tanh")
# Far above any BART, so that a damaged file is refused before a model is built from it.
LARGEST_SIZE, MOST_LAYERS, MOST_BEAMS, MOST_DRAFTED = 2**31 - 1, 1000, 10_000, 64
MOST_THREADS = 1024  # LiteRT crashes with tens of thousands
MAX_BATCH_SIZE = 32  # beams of all texts; larger batches decoded no more tokens per second


@dataclasses.dataclass(frozen=True, kw_only=True)
class BartConfig:
    """The architecture of a BART encoder-decoder.

    The first seven fields are those of `keras_hub.models.BartBackbone`. The others describe
    checkpoints that KerasHub cannot load: `decoder_*` fields default to the encoder's (they differ
    in distilled checkpoints), `scale_embedding` multiplies token embeddings by sqrt(hidden_dim),
    and `final_logits_bias` adds a bias to the logits.

    Raises:
        ConfigurationError: if a size is not a positive integer, hidden_dim is not divisible by a
            number of heads, dropout is not in [0, 1), or the activation function is unknown.
    """

    vocabulary_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int
    dropout: float = 0.1
    max_sequence_length: int = 1024
    decoder_num_layers: int | None = None
    decoder_num_heads: int | None = None
    decoder_intermediate_dim: int | None = None
    scale_embedding: bool = False
    activation_function: str = "gelu"
    final_logits_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "intermediate_dim"):
            if getattr(self, f"decoder_{name}") is None:
                object.__setattr__(self, f"decoder_{name}", getattr(self, name))
        for name in SIZES:
            value = getattr(self, name)
            largest = MOST_LAYERS if name.endswith("num_layers") else LARGEST_SIZE
            require(is_whole(value) and value > 0, name, "a positive integer", value)
            require(value <= largest, name, f"at most {largest}", value)
            object.__setattr__(self, name, int(value))
        for name in ("num_heads", "decoder_num_heads"):
            if self.hidden_dim % getattr(self, name):
                raise ConfigurationError(
                    f"hidden_dim must be divisible by {name}, received hidden_dim="
                    f"{self.hidden_dim} and {name}={getattr(self, name)}."
                )
        fraction = is_number(self.dropout) and 0 <= self.dropout < 1
        require(fraction, "dropout", "in [0, 1)", self.dropout)
        object.__setattr__(self, "dropout", plain(self.dropout))
        for name in ("scale_embedding", "final_logits_bias"):
            check_flag(name, getattr(self, name))
        activation, known = self.activation_function, ", ".join(ACTIVATION_FUNCTIONS)
        accepted = isinstance(activation, str) and activation in ACTIVATION_FUNCTIONS
        require(accepted, "activation_function", f"one of {known}", activation)

    @property
    def head_size(self) -> int:
        """Width of one encoder attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def decoder_head_size(self) -> int:
        """Width of one decoder attention head."""
        return self.hidden_dim // self.decoder_heads

    @property
    def decoder_layers(self) -> int:
        """Number of decoder layers."""
        assert self.decoder_num_layers is not None
        return self.decoder_num_layers

    @property
    def decoder_heads(self) -> int:
        """Number of decoder attention heads."""
        assert self.decoder_num_heads is not None
        return self.decoder_num_heads

    @property
    def decoder_feedforward(self) -> int:
        """Width of the decoder's feed-forward layers."""
        assert self.decoder_intermediate_dim is not None
        return self.decoder_intermediate_dim

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BartConfig":
        """Make a configuration from a dictionary, or raise ConfigurationError."""
        return cls(**checked_fields(cls, values))

    def extensions(self) -> dict[str, Any]:
        """Return the non-default fields that KerasHub's constructor lacks."""
        plain = dataclasses.replace(
            self,
            decoder_num_layers=None,
            decoder_num_heads=None,
            decoder_intermediate_dim=None,
            scale_embedding=False,
            activation_function="gelu",
            final_logits_bias=False,
        )
        defaults = plain.to_dict()
        return {name: value for name, value in self.to_dict().items() if defaults[name] != value}


DECODER_SIZES = ("decoder_num_layers", "decoder_num_heads", "decoder_intermediate_dim")
SIZES = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
    *DECODER_SIZES,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation settings.

    Names, meanings and defaults match Hugging Face's `generate()` (transformers 4.57); `seed`
    is an addition. Lengths count decoder tokens, including the start token. `early_stopping` is
    True, False or "never". `top_k=0` and `top_p=1.0` disable these filters. Sampling parameters
    only affect `do_sample=True`. `prompt_lookup_num_tokens` is the maximum number of next tokens
    that greedy search guesses and verifies together; it does not change the result. If
    `eos_token_id` is a tuple, each of its tokens ends a sequence.

    Raises:
        ConfigurationError: if a value is out of range or contradicts another.
    """

    max_length: int = 20
    min_length: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | None = None
    prompt_lookup_num_tokens: int = 0
    decoder_start_token_id: int = 2
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int | tuple[int, ...] = 2
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            several = name == "eos_token_id" and isinstance(value, (list, tuple)) and value
            for number in value if several else (value,):
                enough = is_whole(number) and number >= lowest
                require(enough, name, f"an integer of at least {lowest}", value)
                highest = HIGHEST.get(name, LARGEST_SIZE)
                require(number <= highest, name, f"at most {highest}", value)
            object.__setattr__(self, name, tuple(map(int, value)) if several else int(value))
        first, *others = dict.fromkeys(self.end_token_ids)
        object.__setattr__(self, "eos_token_id", (first, *others) if others else first)
        for name, accepts, accepted in NUMBERS:
            value = getattr(self, name)
            require(is_number(value) and accepts(value), name, accepted, value)
            object.__setattr__(self, name, plain(value))
        check_flag("do_sample", self.do_sample)
        stopping = self.early_stopping
        known = isinstance(stopping, (bool, str)) and stopping in (True, False, "never")
        require(known, "early_stopping", 'true, false or "never"', stopping)
        if self.min_length > self.max_length:
            raise ConfigurationError(
                f"min_length must not exceed max_length, received min_length={self.min_length} "
                f"and max_length={self.max_length}."
            )
        if self.do_sample and self.num_beams > 1:
            raise ConfigurationError(
                "do_sample=true samples one sequence at a time and needs num_beams=1, "
                f"received num_beams={self.num_beams}."
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ConfigurationError(
                f"num_return_sequences must not exceed num_beams without do_sample=true, received "
                f"num_return_sequences={self.num_return_sequences}, num_beams={self.num_beams}."
            )

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a sequence; a truncated source ends with the first."""
        ends = self.eos_token_id
        return (ends,) if isinstance(ends, int) else tuple(ends)

    def replace(self, **parameters: Any) -> "GenerationConfig":
        """Return a copy with changed parameters.

        `max_new_tokens` and `min_new_tokens` do not count the start token. `min_length` is lowered
        to a given `max_length`, and `num_return_sequences` to a given `num_beams`, unless those are
        given too.

        Raises:
            ConfigurationError: if a parameter is unknown or out of range, or if it is a sampling
            parameter without `do_sample=True`.
        """
        changes = checked_fields(type(self), lengths_with_start(parameters))
        sampling = changes.get("do_sample", self.do_sample)  # sampling has no beams
        for name, limit in LIMITED_BY[:1] if sampling is True else LIMITED_BY:
            most = changes.get(limit)
            if name not in changes and is_whole(most):
                changes[name] = min(getattr(self, name), most)
        changed = dataclasses.replace(self, **changes)
        idle = [name for name in SAMPLING if name in parameters and not changed.do_sample]
        if idle:
            raise ConfigurationError(
                f"{idle[0]} needs do_sample=true, received {idle[0]}="
                f"{shown(parameters[idle[0]])} with do_sample=false. Add do_sample=true."
            )
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values, with multiple end tokens as a list."""
        ends = self.eos_token_id
        listed = ends if isinstance(ends, int) else list(ends)
        return {**dataclasses.asdict(self), "eos_token_id": listed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerationConfig":
        """Make settings from a dictionary, or raise ConfigurationError."""
        return cls(**checked_fields(cls, values))


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How source texts are read, as in `Generator.generate`; every option must be a bool."""

    truncate: bool = False
    allow_empty: bool = False
    special_tokens: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_flag(name, value)


TEXT_OPTIONS = tuple(field.name for field in dataclasses.fields(TextOptions))


def check_threads(name: str, count: int | None) -> int | None:
    """Return a number of threads, or raise ConfigurationError; None means the default."""
    return None if count is None else whole(name, count, 1, MOST_THREADS)


def check_token_ids(generation: GenerationConfig, vocabulary_size: int) -> None:
    """Raise ConfigurationError if a token id is not in the model's vocabulary."""
    for name, value in generation.to_dict().items():
        for number in value if isinstance(value, list) else (value,):
            if name.endswith("_token_id") and number is not None and number >= vocabulary_size:
                raise ConfigurationError(
                    f"{name} must be a token id from 0 to {vocabulary_size - 1}, received {number}."
                )


def lengths_with_start(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with `max_new_tokens` and `min_new_tokens` converted to total lengths."""
    changed = dict(parameters)
    for without_start, name in NEW_TOKENS.items():
        length = changed.pop(without_start, None)
        if length is None:
            continue
        if changed.get(name) is not None:
            raise ConfigurationError(
                f"{name} and {without_start} set the same length. Give only one of them."
            )
        lowest = max(LOWEST[name] - 1, 0)
        enough = is_whole(length) and length >= lowest
        require(enough, without_start, f"an integer of at least {lowest}", length)
        require(length < LARGEST_SIZE, without_start, f"at most {LARGEST_SIZE - 1}", length)
        changed[name] = int(length) + 1
    return changed


def require(holds: bool, name: str, accepted: str, value: object) -> None:
    """Raise ConfigurationError unless `holds`; the message has `accepted` and the value."""
    if not holds:
        raise ConfigurationError(f"{name} must be {accepted}, received {shown(value)}.")


def check_flag(name: str, value: object) -> None:
    """Raise ConfigurationError unless a value is a bool."""
    require(isinstance(value, bool), name, "true or false", value)


def check_path(name: str, value: object) -> str:
    """Return a path or URL as a string, or raise ConfigurationError for another type."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    require(isinstance(path, str), name, "a string or a path", value)
    return str(path)


def whole(name: str, value: Any, lowest: int, highest: int) -> int:
    """Return an integer as an int, or raise ConfigurationError if it is out of range."""
    accepted = is_whole(value) and lowest <= value <= highest
    require(accepted, name, f"an integer from {lowest} to {highest}", value)
    return int(value)


def plain(number: Any) -> int | float:
    """Return a number as an int or float: NumPy's scalars would change the precision of results."""
    return int(number) if is_whole(number) else float(number)


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, such as NumPy's, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number within a float's range."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond a float's range
        return False


# Parameters of transformers that do not count the start token, and the fields that they set.
NEW_TOKENS = {"max_new_tokens": "max_length", "min_new_tokens": "min_length"}
# Fields, and the fields that they must not exceed.
LIMITED_BY = (("min_length", "max_length"), ("num_return_sequences", "num_beams"))
SAMPLING = ("temperature", "top_k", "top_p", "seed")
OPTIONAL = ("seed", "forced_bos_token_id", "forced_eos_token_id")
TOKEN_IDS = (
    "decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id",
    "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip
LOWEST = {
    "max_length": 2, "min_length": 0, "num_beams": 1, "num_return_sequences": 1,
    "no_repeat_ngram_size": 0, "top_k": 0, "seed": 0, "prompt_lookup_num_tokens": 0,
    **dict.fromkeys(TOKEN_IDS, 0),
}  # fmt: skip
HIGHEST = {
    "seed": 2**63 - 1, "num_beams": MOST_BEAMS, "num_return_sequences": MOST_BEAMS,
    "prompt_lookup_num_tokens": MOST_DRAFTED,
}  # fmt: skip
NUMBERS = (
    ("length_penalty", lambda value: True, "a finite number"),
    ("repetition_penalty", lambda value: value > 0, "a number above 0"),
    ("temperature", lambda value: value > 0, "a number above 0"),
    ("top_p", lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
)


def checked_fields(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataclass's arguments; raise ConfigurationError for unknown or missing names."""
    accepted = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
    require(accepted, f"A {record.__name__}", "a mapping of names to values", values)
    fields = {field.name: field for field in dataclasses.fields(record)}
    for name in values:
        if name not in fields:
            hint = did_you_mean(name, fields) or f" Known: {', '.join(fields)}."
            raise ConfigurationError(
                f"Unknown parameter {named(name)}={shown(values[name])}.{hint}"
            )
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ConfigurationError(f"{record.__name__} needs {', '.join(missing)}.")
    return dict(values)
