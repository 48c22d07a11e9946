"""Reading Hugging Face checkpoints.

That each weight is where it belongs shows in the golden answers of tests/model/test_presets.py.
"""

import hashlib
import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.edited_checkpoints import assert_same_weights, copy, edit_json, edit_tensors, refusal
from support.paths import CASES, DISTILLED, SYMMETRIC

from bart_export.checkpoints import resolve, weight_names
from bart_export.checkpoints.checkpoint import weights_digest
from bart_export.errors import CheckpointError, PresetError, TokenizerError

TABLE = "model.shared.weight"
DECODER_TABLE, ENCODER_TABLE = (
    f"model.{side}.embed_tokens.weight" for side in ("decoder", "encoder")
)


def test_the_architecture_comes_from_config_json():
    config = resolve.read(DISTILLED).config
    assert (config.num_layers, config.decoder_layers) == (3, 1)
    assert (config.intermediate_dim, config.decoder_feedforward) == (96, 128)
    assert (config.num_heads, config.hidden_dim, config.max_sequence_length) == (4, 64, 64)
    assert config.scale_embedding and config.final_logits_bias


def test_every_matrix_has_a_layer_name():
    named, config = (
        weight_names.layer_names(resolve.read(DISTILLED).config),
        resolve.read(DISTILLED).config,
    )
    attention = [f"attention_{part}" for part in ("query", "key", "value", "output")]
    layer = [f"self_{part}" for part in attention]
    layer += ["feedforward_intermediate", "feedforward_output"]
    cross = [f"cross_{part}" for part in attention]
    expected = {"token_embedding", "encoder/position_embedding", "decoder/position_embedding"}
    expected |= {f"encoder/layer_{number}/{name}" for number in range(3) for name in layer}
    expected |= {f"decoder/layer_0/{name}" for name in layer + cross}
    assert set(named) == expected
    output = "decoder/layer_0/feedforward_output"
    assert named[output] == "transformer_decoder_layer_0/feedforward_output_dense/kernel"
    matrices = {row.name for row in weight_names.weights(config) if len(row.shape) > 1}
    assert set(named.values()) == {name for name in matrices if not name.endswith("/bias")}


def test_shards_next_to_their_index_are_read_like_one_file(directory):
    path, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    tensors = load_file(path)
    path.rename(directory.parent / "model.safetensors")
    shards = {f"model-0000{i + 1}-of-00003.safetensors": list(tensors)[i::3] for i in range(3)}
    for file, kept in shards.items():
        save_file({name: tensors[name] for name in kept}, directory / file)
    weight_map = {name: file for file, kept in shards.items() for name in kept}
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = resolve.read(directory)
    assert_same_weights(checkpoint.weights, dict(resolve.read(SYMMETRIC).weights))
    assert [file.name for file in checkpoint.weight_files] == list(shards)

    (directory / list(shards)[1]).unlink()
    assert "model-00002-of-00003.safetensors, which does not exist" in refusal(directory)
    index.write_text(json.dumps({"weight_map": {TABLE: "../model.safetensors"}}))
    assert "must name files in its own directory" in refusal(directory)


def moved(name):
    return lambda tensors: tensors | {name: tensors.pop(TABLE)}


ALIASES = {TABLE: DECODER_TABLE, ENCODER_TABLE: DECODER_TABLE, "format": "pt"}


@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        (lambda tensors: {name.removeprefix("model."): v for name, v in tensors.items()}, None),
        (lambda tensors: {f"module.{name}": v for name, v in tensors.items()}, None),
        (lambda tensors: {f"module._orig_mod.{name}": v for name, v in tensors.items()}, None),
        (moved(ENCODER_TABLE), None),
        (moved(DECODER_TABLE), None),
        (moved(DECODER_TABLE), ALIASES),  # as facebook/bart-large-cnn is stored
        (moved("lm_head.weight"), None),
        (lambda tensors: {n: v for n, v in tensors.items() if n != "final_logits_bias"}, None),
        (lambda tensors: tensors | {"model.encoder.version": np.array([3.0], "float32")}, None),
    ],
    ids=["plain", "module", "compiled", "encoder", "decoder", "tied", "head", "bias", "version"],
)
def test_tensors_are_found_under_all_their_names(directory, change, metadata):
    edit_tensors(directory, change, metadata)
    checkpoint = resolve.read(directory)
    assert not checkpoint.config.final_logits_bias  # the stored one is all zeros
    assert_same_weights(checkpoint.weights, dict(resolve.read(SYMMETRIC).weights))


def test_different_embedding_tables_are_rejected_or_reported(directory):
    expected = dict(resolve.read(SYMMETRIC).weights)
    edit_tensors(directory, lambda tensors: tensors | {"lm_head.weight": tensors[TABLE].copy()})
    edit_json(directory / "config.json", tie_word_embeddings=False)
    assert_same_weights(resolve.read(directory).weights, expected)
    edit_tensors(directory, lambda tensors: tensors | {"lm_head.weight": tensors[TABLE] + 1})
    assert "shared.weight, lm_head.weight with different values" in refusal(directory)
    for tied in (True, ...):
        edit_json(directory / "config.json", tie_word_embeddings=tied)
        checkpoint = resolve.read(directory)
        assert_same_weights(checkpoint.weights, expected)
        (note,) = checkpoint.notes
        assert note.startswith("lm_head.weight differs from shared.weight and was not used")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_stored_dtype_is_kept(directory, dtype):
    edit_tensors(directory, lambda tensors: {n: v.astype(dtype) for n, v in tensors.items()})
    expected = {n: v.astype(dtype) for n, v in resolve.read(SYMMETRIC).weights.items()}
    weights = resolve.read(directory).weights
    assert {values.dtype for values in weights.values()} == {np.dtype(dtype)}
    assert_same_weights(weights, expected)


def test_all_wrong_weights_are_listed_in_one_line(directory):
    def change(tensors):
        del tensors["model.encoder.layers.0.fc1.bias"]
        tensors["model.encoder.layers.0.fc2.bias"] = np.zeros(63, "float32")
        tensors["model.encoder.layers.7.fc1.bias"] = np.zeros(128, "float32")
        tensors["model.decoder.layers.0.fc1.bias"] = np.zeros(128, "int8")
        tensors["classification_head.dense.weight"] = np.zeros((64, 64), "float32")
        return tensors

    edit_tensors(directory, change)
    line = refusal(directory)
    assert "missing encoder.layers.0.fc1.bias;" in line
    assert "unexpected classification_head.dense.weight, encoder.layers.7.fc1.bias;" in line
    assert "wrong shape: encoder.layers.0.fc2.bias has [63] instead of [64];" in line
    assert "decoder.layers.0.fc1.bias of dtype int8" in line
    assert "classification_head is a classifier's head" in line


@pytest.mark.parametrize(
    ("changes", "said", "error"),
    [
        ({"model_type": "mbart"}, "model_type bart, received mbart", PresetError),
        ({"model_type": "t5"}, "model_type bart, received t5", PresetError),
        ({"model_type": ...}, "received neither", PresetError),
        ({"normalize_before": True}, "normalize_before=false", PresetError),
        ({"add_final_layer_norm": True}, "add_final_layer_norm=false", PresetError),
        (
            {"activation_function": "mish"},
            "Accepted: gelu, gelu_new, relu, silu, tanh, swish",
            CheckpointError,
        ),
        ({"activation_function": ["gelu"]}, "activation_function must be one of", CheckpointError),
        ({"d_model": 63}, "hidden_dim must be divisible by num_heads", CheckpointError),
        ({"d_model": ...}, "lacks d_model", CheckpointError),
        ({"encoder_layers": "two"}, "num_layers must be a positive integer", CheckpointError),
        ({"dropout": None}, "dropout must be in", CheckpointError),
        ({"quantization_config": {}}, "quantized checkpoints are not supported", CheckpointError),
    ],
)
def test_configurations_of_other_models_are_rejected(directory, changes, said, error):
    edit_json(directory / "config.json", **changes)
    assert said in refusal(directory, error)


def test_swish_is_silu(directory):
    edit_json(directory / "config.json", activation_function="swish")
    assert resolve.read(directory).config.activation_function == "silu"


def test_missing_files_are_reported(tmp_path, directory):
    assert "has no config.json" in refusal(tmp_path, PresetError)
    assert "which is not a directory" in refusal(tmp_path / "nowhere", PresetError)
    (directory / "model.safetensors").unlink()
    assert "has no weights" in refusal(directory)
    assert resolve.read(directory, weights=False).config.num_layers == 2


def test_pickles_are_not_loaded_next_to_safetensors_or_without_pytorch(directory):
    """Loading this pickle would create a file."""
    trace = directory / "trace"
    (directory / "pytorch_model.bin").write_bytes(f"cpathlib\nPath\n(V{trace}\ntR.".encode())
    assert [file.name for file in resolve.read(directory).weight_files] == ["model.safetensors"]
    (directory / "model.safetensors").unlink()
    line = refusal(directory)
    assert re.search("Install torch|cannot be loaded as plain tensors", line)
    assert not trace.exists()


def test_the_digest_covers_the_weight_files(directory):
    checkpoint = resolve.read(directory)
    expected = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert weights_digest(checkpoint) == expected
    edit_tensors(directory, lambda tensors: tensors | {TABLE: tensors[TABLE] + 1})
    assert weights_digest(checkpoint) != expected


def test_a_mask_token_beyond_the_embedding_is_accepted(directory):
    """As in bart_large_en_cnn: 50,264 rows, 50,265 tokens, the last one <mask>."""
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))

    def move_mask(place):
        other = next(token for token, number in vocabulary.items() if number == place)
        vocabulary[other], vocabulary["<mask>"] = vocabulary["<mask>"], place
        (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        edit_json(directory / "config.json", vocab_size=place)

    move_mask(1023)
    checkpoint = resolve.read(directory, weights=False)
    assert len(checkpoint.vocabulary) == checkpoint.config.vocabulary_size + 1
    move_mask(1022)
    assert "received 1023" in refusal(directory, TokenizerError)


def test_rows_without_a_token_are_dropped_if_there_is_a_tokenizer(directory):
    padded, table = CASES / "padded-rows-generated", "token_embedding/embeddings"
    whole, trimmed = resolve.read(padded, tokenizer=False), resolve.read(padded)
    assert (whole.config.vocabulary_size, whole.rows_without_token) == (288, 0)
    assert (trimmed.config.vocabulary_size, trimmed.rows_without_token) == (267, 21)
    np.testing.assert_array_equal(trimmed.weights[table], whole.weights[table][:267])
    shapes = {name: values.shape for name, values in trimmed.weights.items()}
    assert shapes == {row.name: row.shape for row in weight_names.weights(trimmed.config)}
    assert "288 rows for the tokenizer's 267 tokens" in trimmed.notes[0]

    tokens = resolve.read(directory).config.vocabulary_size
    bias = np.pad(np.zeros((1, tokens), np.float32), ((0, 0), (0, 3)), constant_values=9.0)
    edit_json(directory / "config.json", vocab_size=tokens + 3)
    edit_tensors(
        directory,
        lambda tensors: (
            tensors | {TABLE: np.pad(tensors[TABLE], ((0, 3), (0, 0))), "final_logits_bias": bias}
        ),
    )
    assert resolve.read(directory).weights["final_logits_bias"].shape == (tokens,)


def test_a_special_token_in_a_row_without_a_token_is_rejected(tmp_path):
    padded = copy(tmp_path / "padded", CASES / "padded-rows-generated")
    edit_json(padded / "generation_config.json", decoder_start_token_id=280)
    assert "decoder_start_token_id must be a token id from 0 to 266" in refusal(padded)
