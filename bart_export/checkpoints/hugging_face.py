"""Reads Hugging Face checkpoints of BART.

Projections are transposed from (outputs, inputs) to Keras kernels, position tables lose their two
unused leading rows, and the shared token embedding is found under any of its names. A checkpoint
that is not exactly one complete BART model raises an error that names the differences.
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

# Our name, transformers' name, default; a field without a default must be in config.json.
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

# Settings of fairseq's variants, which BART does not have.
VARIANTS = ("add_final_layer_norm", "normalize_before")

# Prefixes of tensor names, added by transformers, DataParallel and torch.compile.
PREFIXES = re.compile(r"^((model|module|_orig_mod)\.)+(?=.)")
POSITION_OFFSET = 2  # transformers' position tables begin with two unused rows

# The names of the shared embedding table, in order of precedence.
TABLES = (
    "shared.weight",
    "decoder.embed_tokens.weight",
    "encoder.embed_tokens.weight",
    "lm_head.weight",
)
# Version markers of fairseq, which transformers ignores too.
IGNORED = ("encoder.version", "decoder.version")
# Explanations of unexpected tensors, by prefix.
SURPLUS = {
    "classification_head.": "classification_head is a classifier's head: "
    "expected a model that generates (BartForConditionalGeneration).",
    "qa_outputs.": "qa_outputs is a question answering head: "
    "expected a model that generates (BartForConditionalGeneration).",
    "encoder.layer_norm.": "layer_norm is a final layer norm, which mBART has but BART does not.",
    "base_model.": "base_model comes from peft: save the merged model, model.merge_and_unload().",
    "decoder.layer_norm.": "layer_norm is a final layer norm, which mBART has but BART does not.",
}

# Weight files in order of precedence, and their readers.
WEIGHT_FILES = {
    "model.safetensors": weights.read_safetensors,
    "model.safetensors.index.json": weights.read_safetensors,
    "pytorch_model.bin": weights.read_pytorch,
    "pytorch_model.bin.index.json": weights.read_pytorch,
}


def read(directory: Path, stored: JsonObject, with_weights: bool, tokenizer: bool) -> Checkpoint:
    """Read a directory with the parsed config.json `stored`; for errors see `resolve.read`."""
    config = read_config(directory / files.CONFIG_FILE, stored)
    tables = tokenizer_files.TokenizerTables()
    if tokenizer:
        tables = tokenizer_files.read_hugging_face(directory, config.vocabulary_size)
    tensors: Mapping[str, Array] = {}
    weight_files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    if with_weights:
        # Aliases in a file's metadata are not needed: the only aliased table is looked up under all
        # its names.
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
    """Return the architecture in a transformers config.json."""
    if stored["model_type"] != "bart":
        raise PresetError(
            f"{path} must have model_type bart, received {named(stored['model_type'])}."
        )
    for name in VARIANTS:
        if stored.get(name):
            raise PresetError(
                f"{path} must have {name}=false, received {shown(stored[name])}, which is not "
                "BART's architecture."
            )
    if "quantization_config" in stored:
        raise CheckpointError(
            f"{path} has a quantization_config, and quantized checkpoints are not supported. Use "
            "the checkpoint it was quantized from."
        )
    missing = [theirs for _, theirs, default in FIELDS if default is None and theirs not in stored]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}, which a BART model needs.")
    values = {ours: stored.get(theirs, default) for ours, theirs, default in FIELDS}
    activation = values["activation_function"]
    if activation in tuple(ACTIVATION_SYNONYMS):
        values["activation_function"] = ACTIVATION_SYNONYMS[activation]
    try:
        return BartConfig.from_dict(values)
    except ConfigurationError as error:
        accepted = (*ACTIVATION_FUNCTIONS, *ACTIVATION_SYNONYMS)
        hint = f" Accepted: {', '.join(accepted)}." if activation not in accepted else ""
        raise CheckpointError(f"{path} does not describe a BART model: {error}{hint}") from error


def read_settings(
    directory: Path, stored: JsonObject, config: BartConfig
) -> generation.StatedSettings:
    """Return the settings in `generation_config.json`, or else in `config.json`."""
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
    """Check the tensors against the configuration, and map them to canonical names.

    Returns:
        The configuration with the value of `final_logits_bias`, the weights, and a line about
        tables that were ignored because the configuration ties them to another.
    """
    present = {name: entry for name, entry in entries.items() if name not in IGNORED}
    bias = present.get(FINAL_LOGITS_BIAS)
    biased = bias is not None and bias.dtype in weights.FLOATING and bool(np.any(bias.read()))
    config = dataclasses.replace(config, final_logits_bias=biased)
    tables = [name for name in TABLES if name in present]
    table = tables[0] if tables else TABLES[0]
    rows = weight_rows(config)
    names = {row: table if row.name == TOKEN_EMBEDDING else row.hugging_face for row in rows}
    expected = {name: stored_shapes(row) for row, name in names.items()}
    expected |= dict.fromkeys(tables, expected[table])
    if bias is not None and not biased:
        expected[FINAL_LOGITS_BIAS] = ((1, config.vocabulary_size), (config.vocabulary_size,))
    weights.require_exactly(place, expected, present, SURPLUS)
    notes = unused_tables(place, {name: present[name] for name in tables}, tied)
    stored = {row.name: present[name] for row, name in names.items()}
    return config, weights.stored_weights(rows, stored, arrange), notes


def unused_tables(place: Path, tables: Mapping[str, Entry], tied: bool) -> tuple[str, ...]:
    """Require that all stored embedding tables are equal, unless the configuration ties them.

    As in transformers, the first table replaces tied ones; the returned note lists those that
    differ from it.
    """
    if len(tables) < 2:
        return ()
    (first, entry), *others = tables.items()
    table = entry.read()
    different = [name for name, other in others if not np.array_equal(table, other.read())]
    if different and tied:
        return (
            f"{weights.listing(different)} differs from {first} and was not used, because "
            "tie_word_embeddings is set.",
        )
    if different:
        raise CheckpointError(
            f"{place} stores {weights.listing([first, *different])} with different values. "
            "Expected one table for the encoder, the decoder and the logits."
        )
    return ()


def stored_shapes(row: Weight) -> tuple[Shape, ...]:
    """Return the shapes in which transformers may store a weight."""
    if row.name == FINAL_LOGITS_BIAS:
        return (1, *row.shape), row.shape
    if "position_embedding" in row.name:
        return ((row.shape[0] + POSITION_OFFSET, row.shape[1]),)
    if row.name.endswith("/kernel"):
        # Attention kernels are (hidden, hidden), because heads * head_size is hidden.
        square = (max(row.shape), max(row.shape))
        return (square if len(row.shape) == 3 else row.shape[::-1],)
    return ((row.size,),) if row.name.endswith("/bias") else (row.shape,)


def arrange(row: Weight, values: Array) -> Array:
    """Return transformers' values in a weight's shape and axis order.

    `Linear` stores (outputs, inputs); Keras stores (inputs, outputs), with attention heads split.
    """
    if "position_embedding" in row.name:
        return values[POSITION_OFFSET:]
    if row.name.endswith("/kernel"):
        values = np.ascontiguousarray(values.T)
    return values.reshape(row.shape)
