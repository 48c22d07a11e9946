"""Hugging Face directories of BART: config.json, weights as transformers names and lays them out.

Projections are turned from (outputs, inputs) into Keras' kernels, positions lose their two unused
leading rows, and the one table of the token embedding and the logits is found under whichever of
its names it was stored. A checkpoint that is not exactly a BART, or not all of one, is refused by
name.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bart_export.checkpoints import files, generation, tokenizer_files, weights
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.files import JsonObject
from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING, Shape, Weight
from bart_export.checkpoints.weight_names import weights as weight_rows
from bart_export.checkpoints.weights import Array, Entry, LazyWeights
from bart_export.config import ACTIVATION_FUNCTIONS, BartConfig
from bart_export.errors import CheckpointError, ConfigurationError, PresetError, named, shown

# Our word, transformers' word; a field without default must be in config.json.
FIELDS: tuple[tuple[str, str, object], ...] = (
    ("vocabulary_size", "vocab_size", None),
    ("num_layers", "encoder_layers", None),
    ("num_heads", "encoder_attention_heads", None),
    ("hidden_dim", "d_model", None),
    ("intermediate_dim", "encoder_ffn_dim", None),
    ("decoder_num_layers", "decoder_layers", None),
    ("decoder_num_heads", "decoder_attention_heads", None),
    ("decoder_intermediate_dim", "decoder_ffn_dim", None),
    ("dropout", "dropout", 0.1),
    ("max_sequence_length", "max_position_embeddings", 1024),
    ("scale_embedding", "scale_embedding", False),
    ("activation_function", "activation_function", "gelu"),
)
ACTIVATION_SYNONYMS = {"swish": "silu"}

# Variants of the architecture in fairseq's words, which BART does not have.
VARIANTS = ("add_final_layer_norm", "normalize_before")

# What stands before the names of tensors: transformers' own, and what PyTorch's DataParallel and
# torch.compile put before them.
PREFIXES = re.compile(r"^((model|module|_orig_mod)\.)+(?=.)")
POSITION_OFFSET = 2  # transformers' position tables begin with two rows that are never looked up

# The names under which the one embedding table may be stored, the one to take first.
TABLES = (
    "shared.weight",
    "decoder.embed_tokens.weight",
    "encoder.embed_tokens.weight",
    "lm_head.weight",
)
# Version markers of fairseq, which transformers passes over as well.
PASSED_OVER = ("encoder.version", "decoder.version")
SURPLUS = {
    "classification_head.": "classification_head is a classifier's head: "
    "expected a model that generates (BartForConditionalGeneration).",
    "qa_outputs.": "qa_outputs is a question answering head: "
    "expected a model that generates (BartForConditionalGeneration).",
    "encoder.layer_norm.": "layer_norm is a final layer norm, which mBART has and BART has not.",
    "base_model.": "base_model is peft's: save the merged model, model.merge_and_unload().",
    "decoder.layer_norm.": "layer_norm is a final layer norm, which mBART has and BART has not.",
}

# The files that may hold the weights, and what reads them.
WEIGHT_FILES = {
    "model.safetensors": weights.read_safetensors,
    "model.safetensors.index.json": weights.read_safetensors,
    "pytorch_model.bin": weights.read_pytorch,
    "pytorch_model.bin.index.json": weights.read_pytorch,
}


def read(directory: Path, stored: JsonObject, with_weights: bool, tokenizer: bool) -> Checkpoint:
    """Read a directory whose parsed config.json is `stored`.

    Raises:
        PresetError: for a model that is not a BART.
        CheckpointError, TokenizerError, MissingExtra: as `resolve.read`.
    """
    config = read_config(directory / files.CONFIG_FILE, stored)
    tables = tokenizer_files.TokenizerTables()
    if tokenizer:
        tables = tokenizer_files.read_hugging_face(directory, config.vocabulary_size)
    tensors: Mapping[str, Array] = {}
    weight_files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    if with_weights:
        # What a file's metadata says of aliases is not needed: the one table that has any is looked
        # for under all its names.
        place, weight_files, entries = weights.read_entries(
            directory, WEIGHT_FILES, lambda name: PREFIXES.sub("", name)
        )
        tied = stored.get("tie_word_embeddings") is not False
        config, tensors, notes = named_weights(config, place, entries, tied)
    return Checkpoint(
        directory=directory,
        format="hugging_face",
        config=config,
        settings=read_settings(directory, stored, config),
        encoder_sequence_length=config.max_sequence_length,
        dtype=None,
        weights=tensors,
        weight_files=weight_files,
        notes=notes,
        **vars(tables),
    )


def read_config(path: Path, stored: JsonObject) -> BartConfig:
    """Return the architecture that a transformers config.json describes."""
    if stored["model_type"] != "bart":
        raise PresetError(
            f"{path} describes a {named(stored['model_type'])} model, expected model_type bart."
        )
    for name in VARIANTS:
        if stored.get(name):
            raise PresetError(
                f"{path} has {name}={shown(stored[name])}, which makes it another architecture "
                "than BART's; expected false."
            )
    if "quantization_config" in stored:
        raise CheckpointError(
            f"{path} has a quantization_config; quantized checkpoints cannot be read. Use the "
            "checkpoint it was quantized from."
        )
    missing = [theirs for _, theirs, default in FIELDS if default is None and theirs not in stored]
    if missing:
        raise CheckpointError(f"{path} does not say {', '.join(missing)}, which a BART needs.")
    values = {ours: stored.get(theirs, default) for ours, theirs, default in FIELDS}
    activation = values["activation_function"]
    if activation in tuple(ACTIVATION_SYNONYMS):
        values["activation_function"] = ACTIVATION_SYNONYMS[activation]
    try:
        return BartConfig.from_dict(values)
    except ConfigurationError as error:
        accepted = (*ACTIVATION_FUNCTIONS, *ACTIVATION_SYNONYMS)
        hint = f" Accepted: {', '.join(accepted)}." if activation not in accepted else ""
        raise CheckpointError(f"{path} describes no BART: {error}{hint}") from error


def read_settings(
    directory: Path, stored: JsonObject, config: BartConfig
) -> generation.StatedSettings:
    """Return the generation settings of `generation_config.json`, else those of `config.json`."""
    path = directory / files.GENERATION_FILE
    if path.is_file():
        settings = generation.parse(path, files.read_json(path), generation.special_ids(stored))
    else:
        path = directory / files.CONFIG_FILE
        settings = generation.parse_model_config(path, stored)
    generation.require_ids(path, settings.generation, config.vocabulary_size)
    return generation.with_tasks(directory / files.CONFIG_FILE, settings, stored)


def named_weights(
    config: BartConfig, place: Path, entries: dict[str, Entry], tied: bool
) -> tuple[BartConfig, LazyWeights, tuple[str, ...]]:
    """Hold the tensors to the configuration, and give them their canonical names.

    Returns the configuration with `final_logits_bias` decided, the weights, and a line about tables
    that were not taken because the configuration ties them to another.
    """
    present = {name: entry for name, entry in entries.items() if name not in PASSED_OVER}
    bias = present.get(FINAL_LOGITS_BIAS)
    biased = bias is not None and bias.dtype in weights.FLOATING and bool(np.any(bias.read()))
    config = dataclasses.replace(config, final_logits_bias=biased)
    tables = [name for name in TABLES if name in present]
    kept = tables[0] if tables else TABLES[0]
    rows = weight_rows(config)
    names = {row: kept if row.name == TOKEN_EMBEDDING else row.hugging_face for row in rows}
    expected = {name: stored_shapes(row) for row, name in names.items()}
    table_shape = expected[kept]
    expected |= {name: table_shape for name in tables}
    if bias is not None and not biased:
        expected[FINAL_LOGITS_BIAS] = ((1, config.vocabulary_size), (config.vocabulary_size,))
    weights.require_exactly(place, expected, present, SURPLUS)
    notes = unused_tables(place, {name: present[name] for name in tables}, tied)
    taken = {row.name: present[name] for row, name in names.items()}
    return config, weights.stored_weights(rows, taken, arrange), notes


def unused_tables(place: Path, tables: Mapping[str, Entry], tied: bool) -> tuple[str, ...]:
    """Require that the embedding tables stored under several names are one table.

    Where the configuration ties them, transformers overwrites the others with the first, whatever
    was stored: so does this, and returns a line that says so.
    """
    if len(tables) < 2:
        return ()
    (first, entry), *others = tables.items()
    table = entry.read()
    different = [name for name, other in others if not np.array_equal(table, other.read())]
    if different and tied:
        return (
            f"{weights.listing(different)} differs from {first} and was not used: "
            "tie_word_embeddings makes them one table.",
        )
    if different:
        raise CheckpointError(
            f"{place} stores {weights.listing([first, *different])} with different values; this "
            "package needs one table for the encoder, the decoder and the logits."
        )
    return ()


def stored_shapes(row: Weight) -> tuple[Shape, ...]:
    """Return the shapes in which transformers stores a row."""
    if row.name == FINAL_LOGITS_BIAS:
        return (1, *row.shape), row.shape
    if "position_embedding" in row.name:
        return ((row.shape[0] + POSITION_OFFSET, row.shape[1]),)
    if row.name.endswith("/kernel"):
        # Attention kernels hold heads x head_size = hidden on one side and hidden on the other.
        square = (max(row.shape), max(row.shape))
        return (square if len(row.shape) == 3 else row.shape[::-1],)
    return ((row.size,),) if row.name.endswith("/bias") else (row.shape,)


def arrange(row: Weight, values: Array) -> Array:
    """Return transformers' values in the shape and axis order of the row.

    `Linear` stores (outputs, inputs), Keras (inputs, outputs) with attention heads split.
    """
    if "position_embedding" in row.name:
        return values[POSITION_OFFSET:]
    if row.name.endswith("/kernel"):
        values = np.ascontiguousarray(values.T)
    return values.reshape(row.shape)
