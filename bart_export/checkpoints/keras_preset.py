"""Reads and writes Keras presets: config.json, HDF5 weights and tokenizer assets.

A model that KerasHub's BART supports is written as KerasHub writes it. A model that uses an
extension (a shorter decoder, scaled embeddings, a logits bias) is written under this package's
registered name, so that KerasHub rejects the preset instead of computing something else.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import bart_export
from bart_export.artifact.drafts import exchange
from bart_export.checkpoints import generation as generation_settings
from bart_export.checkpoints import keras_weights, tokenizer_files, weight_names
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.files import CONFIG_FILE, GENERATION_FILE, JsonObject, read_json
from bart_export.checkpoints.generation import StatedSettings
from bart_export.checkpoints.weights import (
    Array,
    numpy_dtype,
    require_exactly,
    require_names,
    stored_weights,
)
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import (
    CheckpointError,
    ConfigurationError,
    PresetError,
    named,
    one_line,
    shown,
)
from bart_export.text.added_tokens import AddedToken
from bart_export.text.vocabulary import SPECIAL_TOKENS

PREPROCESSOR_FILE = "preprocessor.json"
REGISTERED_NAMES = (
    "keras_hub>BartBackbone",
    "keras_nlp>BartBackbone",
    "bart_export>BartBackbone",
)
KERAS_FIELDS = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "dropout",
    "max_sequence_length",
)
LAYER_KEYS = ("name", "trainable", "dtype")  # config keys that are not part of the architecture
QUANTIZED = ("int8", "int4", "float8", "gptq", "awq")
# The entries that the preset directory of any model may have.
FILES = re.compile(
    r"(config|metadata|tokenizer|preprocessor|task|generation_config|model\.weights)\.json"
    r"|(model|task)(_\d{5})?\.weights\.h5|assets"
)


def read(directory: Path, stored: JsonObject, with_weights: bool, tokenizer: bool) -> Checkpoint:
    """Read a preset with the parsed config.json `stored`; for errors see `resolve.read`."""
    config, dtype = read_config(directory / CONFIG_FILE, stored)
    tables = tokenizer_files.TokenizerTables()
    if tokenizer:
        tables = tokenizer_files.read_keras(directory, config.vocabulary_size)
    tensors: Mapping[str, Array] = {}
    files: tuple[Path, ...] = ()
    if with_weights:
        place, files, entries = keras_weights.read_entries(directory)
        if any(entry.dtype in QUANTIZED for entry in entries.values()):
            raise quantized_error(place, "int8 or smaller")
        rows = weight_names.weights(config)
        require_exactly(place, {row.h5: (row.shape,) for row in rows}, entries)
        tensors = stored_weights(rows, {row.name: entries[row.h5] for row in rows})
    path = directory / PREPROCESSOR_FILE
    preprocessor = read_json(path).get("config") if path.is_file() else None
    encoder_length, decoder_length = (
        read_length(path, preprocessor, f"{side}_sequence_length", config.max_sequence_length)
        for side in ("encoder", "decoder")
    )
    note = (
        f"The preset has no {PREPROCESSOR_FILE}: the maximum source length is the model's "
        f"{config.max_sequence_length} positions."
    )
    return Checkpoint(
        directory=directory,
        format="keras",
        config=config,
        settings=read_settings(directory, config),
        encoder_sequence_length=encoder_length,
        decoder_sequence_length=decoder_length,
        dtype=dtype,
        weights=tensors,
        weight_files=files,
        notes=() if path.is_file() else (note,),
        **vars(tables),
    )


def read_config(path: Path, stored: JsonObject) -> tuple[BartConfig, str | None]:
    """Return the architecture and the dtype policy's name in a preset's config.json."""
    if stored["registered_name"] not in REGISTERED_NAMES:
        raise PresetError(
            f"registered_name in {path} must be {' or '.join(REGISTERED_NAMES)}, received "
            f"{named(stored['registered_name'])}."
        )
    values = stored.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"config in {path} must be an object, received {shown(values)}.")
    dtype = dtype_policy(path, values.get("dtype"))
    fields = {name: value for name, value in values.items() if name not in LAYER_KEYS}
    try:
        return BartConfig.from_dict(fields), dtype
    except ConfigurationError as error:
        raise CheckpointError(f"{path} does not describe a BART model: {error}") from error


def dtype_policy(path: Path, dtype: object) -> str | None:
    """Return the name of a serialized dtype policy, or raise CheckpointError if it quantizes."""
    name = dtype
    if isinstance(dtype, dict):
        settings = dtype.get("config")
        name = settings.get("name") if isinstance(settings, dict) else None
        if dtype.get("class_name") != "DTypePolicy" or not isinstance(name, str):
            name = f"{named(dtype.get('class_name'))} {named(name or '')}".strip()
            raise quantized_error(path, name)
    if name is None:
        return None
    if not isinstance(name, str):
        raise CheckpointError(f"{path} must name a dtype policy, received {shown(dtype)}.")
    if name.startswith(QUANTIZED):
        raise quantized_error(path, named(name))
    return name


def quantized_error(path: Path, policy: str) -> CheckpointError:
    """Return the error for a preset that Keras has quantized."""
    return CheckpointError(
        f"{path} has the dtype policy {policy}, and presets quantized by Keras are not supported. "
        "Use the preset it was quantized from; recipes quantize during export."
    )


def read_settings(directory: Path, config: BartConfig) -> StatedSettings | None:
    """Return the settings in `generation_config.json`, which KerasHub does not write."""
    path = directory / GENERATION_FILE
    if not path.is_file():
        return None
    stored = read_json(path)
    settings = generation_settings.parse(path, stored, {})
    generation_settings.require_ids(path, settings.generation, config.vocabulary_size)
    return generation_settings.with_tasks(path, settings, stored)


def read_length(path: Path, preprocessor: object, name: str, positions: int) -> int:
    """Return a sequence length of a preprocessor, at most the model's positions."""
    length = preprocessor.get(name) if isinstance(preprocessor, dict) else None
    if length is None:
        return positions
    if isinstance(length, bool) or not isinstance(length, int) or length < 3:
        raise CheckpointError(
            f"{name} in {path} must be an integer of at least 3, received {shown(length)}."
        )
    return min(length, positions)


def write(
    directory: Path,
    config: BartConfig,
    weights: Mapping[str, Array],
    *,
    generation: GenerationConfig | StatedSettings | None = None,
    vocabulary: Mapping[str, int] | None = None,
    merges: Sequence[tuple[str, str]] = (),
    added_tokens: Iterable[AddedToken] = (),
    add_prefix_space: bool = False,
    dtype: str = "float32",
    weights_dtype: str | None = None,
    encoder_sequence_length: int | None = None,
    decoder_sequence_length: int | None = None,
    max_shard_size: float | None = 10,
) -> None:
    """Write a preset directory that KerasHub's `from_preset` can load.

    One rename makes the complete directory appear or replaces an earlier preset. `weights` has an
    array for each name in `weight_names.weights(config)`; `weights_dtype` casts them. `dtype` is
    the dtype policy in config.json. Without a vocabulary, the preset has no tokenizer and no
    preprocessor. The sequence lengths are the preprocessor's, by default the model's positions.
    `max_shard_size` is in GB as in KerasHub; None writes one file.

    Raises:
        CheckpointError: if weights are missing or unexpected or have the wrong shape, or if the
            directory contains something else or cannot be written.
        MissingExtra: if h5py is not installed.
    """
    directory = Path(os.path.realpath(directory))
    rows = weight_names.weights(config)
    require_names((row.name for row in rows), weights)
    require_replaceable(directory)
    files = {CONFIG_FILE: config_json(config, dtype), "metadata.json": metadata_json(config)}
    texts = {}
    if vocabulary is not None:
        tokenizer = tokenizer_json(added_tokens, add_prefix_space)
        files["tokenizer.json"] = tokenizer
        files[PREPROCESSOR_FILE] = keras_object(
            "bart_seq_2_seq_lm_preprocessor",
            "BartSeq2SeqLMPreprocessor",
            name="bart_seq2_seq_lm_preprocessor",
            trainable=True,
            dtype=dtype_object("float32"),
            tokenizer=tokenizer,
            config_file=PREPROCESSOR_FILE,
            encoder_sequence_length=encoder_sequence_length or config.max_sequence_length,
            decoder_sequence_length=decoder_sequence_length or config.max_sequence_length,
        )
        assets = "assets/tokenizer"
        texts[f"{assets}/vocabulary.json"] = json.dumps(dict(vocabulary), ensure_ascii=False)
        texts[f"{assets}/merges.txt"] = "".join(f"{left} {right}\n" for left, right in merges)
    if generation is not None:
        files[GENERATION_FILE] = generation_json(generation)
    texts |= {name: json.dumps(value, indent=4) for name, value in files.items()}
    cast = None if weights_dtype is None else numpy_dtype(weights_dtype)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name[:50]}.", dir=directory.parent, ignore_cleanup_errors=True
        ) as place:
            draft = Path(place) / "preset"
            draft.mkdir()
            keras_weights.write(draft, rows, weights, cast, max_shard_size or math.inf)
            for name, text in texts.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_text(text, encoding="utf-8", newline="\n")
            if directory.exists():
                exchange(draft, directory)
            else:
                draft.rename(directory)
    except (OSError, RuntimeError) as error:  # h5py raises either if the disk is full
        fault = getattr(error, "strerror", None) or one_line(error)
        raise CheckpointError(f"Cannot write {directory}: {fault}.") from error


def require_replaceable(directory: Path) -> None:
    """Raise CheckpointError if a path exists and contains anything but a preset."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"{directory} exists and is not a preset. Name another directory.")
    for path in sorted(directory.iterdir()):
        if not FILES.fullmatch(path.name):
            raise CheckpointError(
                f"{directory} exists and is not a preset: it contains {shown(path.name)}, which "
                "would be lost. Move it, or choose another directory."
            )


def keras_object(module: str, class_name: str, **config: object) -> JsonObject:
    """Return a serialized object of a `keras_hub` module."""
    return {
        "module": f"keras_hub.src.models.bart.{module}",
        "class_name": class_name,
        "config": config,
        "registered_name": f"keras_hub>{class_name}",
    }


def dtype_object(name: str) -> JsonObject:
    """Return a serialized dtype policy."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": name},
        "registered_name": None,
    }


def config_json(config: BartConfig, dtype: str) -> JsonObject:
    """Return config.json, under this package's registered name if the model has extensions."""
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


def metadata_json(config: BartConfig) -> JsonObject:
    """Return metadata.json, which KerasHub's tools show and its loader ignores."""
    versions: dict[str, str | None] = {}
    for package in ("keras", "keras-hub"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = None
        versions[f"{package.replace('-', '_')}_version"] = version
    return {
        **versions,
        "bart_export_version": bart_export.__version__,
        "parameter_count": weight_names.parameter_count(config),
        "tasks": ["Seq2SeqLM"],
    }


def tokenizer_json(added_tokens: Iterable[AddedToken], add_prefix_space: bool) -> JsonObject:
    """Return tokenizer.json with KerasHub's tokenizer class; the tables are in the assets.

    KerasHub splits texts at `unsplittable_tokens`. The other attributes of added tokens, which it
    does not support, are stored outside the config, where it ignores them.
    """
    custom = [token for token in added_tokens if token.content not in SPECIAL_TOKENS]
    unsplittable = [*SPECIAL_TOKENS, *(token.content for token in custom)]
    stored = keras_object(
        "bart_tokenizer",
        "BartTokenizer",
        name="bart_tokenizer",
        trainable=True,
        dtype=dtype_object("int32"),
        config_file="tokenizer.json",
        sequence_length=None,
        add_prefix_space=add_prefix_space,
        **({"unsplittable_tokens": unsplittable} if custom else {}),
    )
    if custom:
        stored[tokenizer_files.ADDED_TOKENS] = [dataclasses.asdict(token) for token in custom]
    return stored


def generation_json(generation: GenerationConfig | StatedSettings) -> JsonObject:
    """Return generation_config.json without the defaults that a checkpoint does not state."""
    if isinstance(generation, GenerationConfig):
        return {name: value for name, value in generation.to_dict().items() if value is not None}
    plain = GenerationConfig().to_dict()
    stated = {
        name: value
        for name, value in generation.generation.to_dict().items()
        if name in generation.origins or value != plain[name]
    }
    return stated | {"task_specific_params": generation.tasks, "prefix": generation.prefix}
