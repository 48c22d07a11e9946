"""Keras preset directories: config.json, HDF5 weights, tokenizer assets. Read, and written.

Flows in and out: the same `Checkpoint`. What KerasHub's BART can express is written as KerasHub
writes it, and KerasHub loads it. What it cannot (a shorter decoder, scaled embeddings, a logits
bias) is written under this package's registered name, so that KerasHub refuses the preset instead
of computing something else. It builds no Keras object and knows nothing of layers.
"""

import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bart_export.checkpoints import generation as generation_settings
from bart_export.checkpoints import keras_json, keras_weights, tokenizer_files
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.files import CONFIG_FILE, GENERATION_FILE, read_json
from bart_export.checkpoints.generation import StatedSettings
from bart_export.checkpoints.names import weights as weight_rows
from bart_export.checkpoints.safetensors_file import numpy_dtype
from bart_export.checkpoints.weights_check import Array, Entry, StoredWeights, check
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import CheckpointError, ConfigurationError, PresetError, named, shown
from bart_export.text.added_tokens import AddedToken

REGISTERED_NAMES = (
    "keras_hub>BartBackbone",
    "keras_nlp>BartBackbone",
    "bart_export>BartBackbone",
)
QUANTIZED = ("int8", "int4", "float8", "gptq", "awq")
# Beside the folder "assets", all that a Keras preset of any model has.
FILES = re.compile(
    r"(config|metadata|tokenizer|preprocessor|task|generation_config|model\.weights)\.json"
    r"|(model|task)(_\d{5})?\.weights\.h5"
)
OF_THE_LAYER = ("name", "trainable", "dtype")  # config keys that are not the architecture's


def read(directory: Path, stored: Mapping[str, Any], weights: bool, tokenizer: bool) -> Checkpoint:
    """Read a preset whose parsed config.json is `stored`.

    Raises:
        PresetError: for a model that is not a BART.
        CheckpointError, TokenizerError, MissingExtra: as `checkpoints.read`.
    """
    path = directory / CONFIG_FILE
    config, dtype = read_config(path, stored)
    tables = tokenizer_files.read_keras(directory) if tokenizer else tokenizer_files.Tokenizer()
    tokenizer_files.check_fits(directory, tables.vocabulary, config.vocabulary_size)
    tensors: Mapping[str, Array] = {}
    files: tuple[Path, ...] = ()
    if weights:
        place, files, entries = keras_weights.read_entries(directory)
        tensors = checked_weights(config, place, entries)
    return Checkpoint(
        directory=directory,
        format="keras",
        config=config,
        settings=read_settings(directory, config),
        encoder_sequence_length=read_sequence_length(directory, config, "encoder"),
        decoder_sequence_length=read_sequence_length(directory, config, "decoder"),
        dtype=dtype,
        weights=tensors,
        weight_files=files,
        vocabulary=tables.vocabulary,
        merges=tables.merges,
        added_tokens=tables.added_tokens,
        add_prefix_space=tables.add_prefix_space,
        notes=unstated_lengths(directory, config),
    )


def read_config(path: Path, stored: Mapping[str, Any]) -> tuple[BartConfig, str | None]:
    """Return the architecture and the dtype policy's name in a preset's config.json."""
    if stored["registered_name"] not in REGISTERED_NAMES:
        raise PresetError(
            f"{path} describes a {named(stored['registered_name'])} model, expected "
            f"{' or '.join(REGISTERED_NAMES)}."
        )
    values = stored.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a config object, received {shown(values)}.")
    dtype = dtype_policy(path, values.get("dtype"))
    fields = {name: value for name, value in values.items() if name not in OF_THE_LAYER}
    try:
        return BartConfig.from_dict(fields), dtype
    except ConfigurationError as error:
        raise CheckpointError(f"{path} describes no BART: {error}") from error


def dtype_policy(path: Path, dtype: object) -> str | None:
    """Return the name of a dtype policy as Keras serializes one.

    Raises:
        CheckpointError: for the policies of quantized models.
    """
    name = dtype
    if isinstance(dtype, dict):
        settings = dtype.get("config")
        name = settings.get("name") if isinstance(settings, dict) else None
        if dtype.get("class_name") != "DTypePolicy" or not isinstance(name, str):
            name = f"{named(dtype.get('class_name'))} {named(name or '')}".strip()
            raise quantized(path, name)
    if name is None:
        return None
    if not isinstance(name, str):
        raise CheckpointError(f"{path} must name a dtype policy, received {shown(dtype)}.")
    if name.startswith(QUANTIZED):
        raise quantized(path, named(name))
    return name


def quantized(path: Path, policy: str) -> CheckpointError:
    """Return the error of a preset that Keras has quantized."""
    return CheckpointError(
        f"{path} has the dtype policy {policy}: presets that Keras has quantized cannot be read. "
        "Use the preset it was quantized from; recipes quantize while exporting."
    )


def checked_weights(config: BartConfig, place: Path, entries: dict[str, Entry]) -> StoredWeights:
    """Check the datasets against the configuration, and give them their canonical names."""
    if any(entry.dtype in QUANTIZED for entry in entries.values()):
        raise quantized(place, "int8 or smaller")
    rows = weight_rows(config)
    check(place, {row.h5: (row.shape,) for row in rows}, entries)
    return StoredWeights(
        rows, {row.name: entries[row.h5] for row in rows}, lambda row, values: values
    )


def read_settings(directory: Path, config: BartConfig) -> StatedSettings | None:
    """Return the settings of `generation_config.json`; KerasHub writes none."""
    path = directory / GENERATION_FILE
    if not path.is_file():
        return None
    stored = read_json(path)
    settings = generation_settings.parse(path, stored, {})
    generation_settings.check_ids(path, settings.generation, config.vocabulary_size)
    return generation_settings.with_tasks(path, settings, stored)


def read_sequence_length(directory: Path, config: BartConfig, side: str) -> int:
    """Return a side's length that `preprocessor.json` states, at most what the model can take."""
    path = directory / keras_json.PREPROCESSOR_FILE
    settings = read_json(path).get("config") if path.is_file() else None
    length = settings.get(f"{side}_sequence_length") if isinstance(settings, dict) else None
    if length is None:
        return config.max_sequence_length
    if isinstance(length, bool) or not isinstance(length, int) or length < 3:
        raise CheckpointError(
            f"{path} must give an {side}_sequence_length of at least 3 tokens, "
            f"received {shown(length)}."
        )
    return min(length, config.max_sequence_length)


def unstated_lengths(directory: Path, config: BartConfig) -> tuple[str, ...]:
    """Return the line of a preset that does not say how long a source it was prepared for."""
    if (directory / keras_json.PREPROCESSOR_FILE).is_file():
        return ()
    return (
        f"The preset has no {keras_json.PREPROCESSOR_FILE}: a source may have as many tokens as "
        f"the model has positions, {config.max_sequence_length}.",
    )


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
    """Write a preset directory that KerasHub's `from_preset` loads.

    `weights` holds an array for each row of `names.weights(config)`. `dtype` is the dtype policy to
    note in config.json; `weights_dtype` casts the stored values, None keeps them. Sequence lengths
    are the preprocessor's, by default all the model can take; without a vocabulary the preset has
    no tokenizer and no preprocessor. `max_shard_size` is in GB as in KerasHub, None for one file.
    The directory appears with one rename once it is whole; a preset that was there before is
    replaced by it.

    Raises:
        CheckpointError: when weights are missing, surplus or misshapen, or the directory exists and
            is not a preset, or cannot be written.
        MissingExtra: when h5py is not installed.
    """
    directory = Path(os.path.realpath(directory))
    rows = weight_rows(config)
    given = {
        # Looked up when needed: a lazy mapping need not hold all arrays at once.
        name: Entry(directory, array.shape, array.dtype.name, partial(weights.__getitem__, name))
        for name, array in weights.items()
    }
    check(directory, {row.name: (row.shape,) for row in rows}, given)
    check_replaceable(directory)
    files = {
        CONFIG_FILE: keras_json.config_json(config, dtype),
        "metadata.json": keras_json.metadata_json(config),
    }
    if vocabulary is not None:
        tokenizer = keras_json.tokenizer_json(added_tokens, add_prefix_space)
        files["tokenizer.json"] = tokenizer
        files[keras_json.PREPROCESSOR_FILE] = keras_json.preprocessor_json(
            tokenizer,
            encoder_sequence_length or config.max_sequence_length,
            decoder_sequence_length or config.max_sequence_length,
        )
    if generation is not None:
        files[GENERATION_FILE] = keras_json.generation_json(generation)
    cast = None if weights_dtype is None else numpy_dtype(weights_dtype)
    draft = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        keras_weights.write(draft, rows, given, cast, max_shard_size or math.inf)
        if vocabulary is not None:
            write_tokenizer(draft / "assets" / "tokenizer", vocabulary, merges)
        for name, value in files.items():
            write_text(draft / name, json.dumps(value, indent=4))
        put_in_place(draft, directory)
    except (OSError, RuntimeError) as error:  # h5py raises either when a disk is full
        fault = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"Cannot write {directory}: {fault}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_tokenizer(
    assets: Path, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Write the two files of a byte-level BPE."""
    assets.mkdir(parents=True)
    tokens = json.dumps(dict(vocabulary), ensure_ascii=False)
    write_text(assets / "vocabulary.json", tokens)
    write_text(assets / "merges.txt", "".join(f"{left} {right}\n" for left, right in merges))


def check_replaceable(directory: Path) -> None:
    """Refuse to put a preset in the place of anything but a preset.

    Raises:
        CheckpointError: with the name of what would be lost.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"{directory} exists and is not a preset. Name another directory.")
    for path in sorted(directory.iterdir()):
        if not FILES.fullmatch(path.name) and path.name != "assets":
            raise CheckpointError(
                f"{directory} exists and is not a preset: it holds {shown(path.name)}, which would "
                "be lost. Move that away, or name another directory."
            )


def put_in_place(draft: Path, directory: Path) -> None:
    """Rename a finished draft to its place; what was there goes away once the new one stands."""
    former = draft.with_name(f"{draft.name}.former")
    if directory.exists():
        directory.rename(former)
    try:
        draft.rename(directory)
    except OSError:
        if former.exists():
            former.rename(directory)
        raise
    shutil.rmtree(former, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the same line ends everywhere."""
    path.write_text(text, encoding="utf-8", newline="\n")
