"""The JSON files of a Keras preset, as KerasHub writes and reads them."""

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

import bart_export
from bart_export.checkpoints.generation import StatedSettings
from bart_export.checkpoints.names import parameter_count
from bart_export.checkpoints.tokenizer_files import ADDED_TOKENS
from bart_export.config import BartConfig, GenerationConfig
from bart_export.text.added_tokens import AddedToken
from bart_export.text.vocabulary import SPECIAL_TOKENS

PREPROCESSOR_FILE = "preprocessor.json"
KERAS_FIELDS = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "dropout",
    "max_sequence_length",
)


def keras_object(module: str, class_name: str, **config: Any) -> dict[str, Any]:
    """Return an object of a `keras_hub` module as Keras serializes it."""
    return {
        "module": f"keras_hub.src.models.bart.{module}",
        "class_name": class_name,
        "config": config,
        "registered_name": f"keras_hub>{class_name}",
    }


def dtype_object(name: str) -> dict[str, Any]:
    """Return a dtype policy as Keras serializes it."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": name},
        "registered_name": None,
    }


def config_json(config: BartConfig, dtype: str) -> dict[str, Any]:
    """Return config.json: KerasHub's when its BART can be this one, else this package's."""
    fields = {name: getattr(config, name) for name in KERAS_FIELDS}
    extensions = config.extensions()
    stored = keras_object(
        "bart_backbone",
        "BartBackbone",
        name="bart_backbone",
        trainable=True,
        dtype=dtype_object(dtype),
        **fields,
        **extensions,
    )
    if extensions:
        stored |= {"module": "bart_export.model", "registered_name": "bart_export>BartBackbone"}
    return stored


def metadata_json(config: BartConfig) -> dict[str, Any]:
    """Return metadata.json, which KerasHub's tools show and its loader passes over."""
    return {
        "keras_version": installed_version("keras"),
        "keras_hub_version": installed_version("keras-hub"),
        "bart_export_version": bart_export.__version__,
        "parameter_count": parameter_count(config),
        "tasks": ["Seq2SeqLM"],
    }


def installed_version(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tokenizer_json(
    added_tokens: Iterable[AddedToken] = (), add_prefix_space: bool = False
) -> dict[str, Any]:
    """Return tokenizer.json, which names KerasHub's tokenizer class; the data is in the assets.

    KerasHub cuts texts at `unsplittable_tokens`. What it has no word for, how an added token takes
    its surroundings, stands beside the config, where KerasHub does not look.
    """
    own = [token for token in added_tokens if token.content not in SPECIAL_TOKENS]
    unsplittable = [*SPECIAL_TOKENS, *(token.content for token in own)]
    stored = keras_object(
        "bart_tokenizer",
        "BartTokenizer",
        name="bart_tokenizer",
        trainable=True,
        dtype=dtype_object("int32"),
        config_file="tokenizer.json",
        sequence_length=None,
        add_prefix_space=add_prefix_space,
        **({"unsplittable_tokens": unsplittable} if own else {}),
    )
    return {**stored, ADDED_TOKENS: [dataclasses.asdict(token) for token in own]} if own else stored


def generation_json(generation: GenerationConfig | StatedSettings) -> dict[str, Any]:
    """Return generation_config.json: of a checkpoint's settings, those that somebody states."""
    if isinstance(generation, GenerationConfig):
        return {name: value for name, value in generation.to_dict().items() if value is not None}
    plain = GenerationConfig().to_dict()
    stated = {
        name: value
        for name, value in generation.generation.to_dict().items()
        if name in generation.origins or value != plain[name]
    }
    return stated | {"task_specific_params": generation.tasks, "prefix": generation.prefix}


def preprocessor_json(
    tokenizer: Mapping[str, Any], encoder_length: int, decoder_length: int
) -> dict[str, Any]:
    """Return preprocessor.json with the sequence lengths, which KerasHub reads but never writes."""
    return keras_object(
        "bart_seq_2_seq_lm_preprocessor",
        "BartSeq2SeqLMPreprocessor",
        name="bart_seq2_seq_lm_preprocessor",
        trainable=True,
        dtype=dtype_object("float32"),
        tokenizer=tokenizer,
        config_file=PREPROCESSOR_FILE,
        encoder_sequence_length=encoder_length,
        decoder_sequence_length=decoder_length,
    )
