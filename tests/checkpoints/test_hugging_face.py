"""Hugging Face directories: read as they are, or refused with what is wrong."""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.edited_checkpoints import CASES, DISTILLED, SYMMETRIC, copy, edit_json, edit_tensors

from bart_export.checkpoints import names, resolve
from bart_export.checkpoints.checkpoint import weights_digest
from bart_export.errors import CheckpointError, PresetError, TokenizerError

TABLE = "model.shared.weight"


@pytest.fixture
def directory(tmp_path):
    return copy(tmp_path / "bart")


def refusal(directory, error=CheckpointError):
    """Return the one line with which a directory is refused."""
    with pytest.raises(error) as refused:
        resolve.read(directory)
    line = str(refused.value)
    assert "\n" not in line
    return line


def assert_same_weights(weights, expected):
    assert list(weights) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(weights[name], values, name)


def test_the_architecture_is_that_of_config_json():
    config = resolve.read(DISTILLED).config
    assert (config.num_layers, config.decoder_layers) == (3, 1)
    assert (config.intermediate_dim, config.decoder_feedforward) == (96, 128)
    assert (config.num_heads, config.hidden_dim, config.max_sequence_length) == (4, 64, 64)
    assert config.scale_embedding
    assert config.final_logits_bias


def test_every_weight_has_its_canonical_name_and_shape():
    for directory in (SYMMETRIC, DISTILLED):
        checkpoint = resolve.read(directory)
        rows = names.weights(checkpoint.config)
        shapes = {name: values.shape for name, values in checkpoint.weights.items()}
        assert shapes == {row.name: row.shape for row in rows}


def test_projections_are_turned_and_positions_lose_their_two_unused_rows():
    stored, weights = (
        load_file(SYMMETRIC / "model.safetensors"),
        resolve.read(SYMMETRIC).weights,
    )
    x = np.random.default_rng(0).normal(size=64).astype("float32")

    query = "model.encoder.layers.1.self_attn.q_proj"
    ours = "transformer_encoder_layer_1/self_attention_layer/query"
    theirs = stored[f"{query}.weight"] @ x + stored[f"{query}.bias"]
    heads = np.einsum("h,hnk->nk", x, weights[f"{ours}/kernel"]) + weights[f"{ours}/bias"]
    np.testing.assert_allclose(heads.reshape(-1), theirs, rtol=1e-4, atol=1e-4)

    output = stored["model.decoder.layers.0.encoder_attn.out_proj.weight"]
    kernel = weights["transformer_decoder_layer_0/cross_attention/attention_output/kernel"]
    mixed = np.einsum("nk,nkh->h", x.reshape(4, 16), kernel)
    np.testing.assert_allclose(mixed, output @ x, rtol=1e-4, atol=1e-4)

    widen = stored["model.decoder.layers.1.fc1.weight"]
    kernel = weights["transformer_decoder_layer_1/feedforward_intermediate_dense/kernel"]
    np.testing.assert_array_equal(kernel, widen.T)

    positions = stored["model.decoder.embed_positions.weight"]
    np.testing.assert_array_equal(weights["decoder_position_embedding/embeddings"], positions[2:])


def test_shards_are_read_like_one_file(directory):
    expected = dict(resolve.read(SYMMETRIC).weights)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00003.safetensors": list(tensors)[i::3] for i in range(3)}
    for file, kept in shards.items():
        save_file({name: tensors[name] for name in kept}, directory / file)
    weight_map = {name: file for file, kept in shards.items() for name in kept}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = resolve.read(directory)
    assert_same_weights(checkpoint.weights, expected)
    assert [file.name for file in checkpoint.weight_files] == list(shards)

    (directory / list(shards)[1]).unlink()
    assert "model-00002-of-00003.safetensors, which is not there" in refusal(directory)


def test_names_without_the_leading_model_are_read_too(directory):
    expected = dict(resolve.read(SYMMETRIC).weights)
    edit_tensors(directory, lambda tensors: {
        name.removeprefix("model."): values for name, values in tensors.items()
    })  # fmt: skip
    assert_same_weights(resolve.read(directory).weights, expected)


@pytest.mark.parametrize(
    "name",
    ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"],
)
def test_the_table_is_found_under_any_of_its_names(directory, name):
    expected = dict(resolve.read(SYMMETRIC).weights)
    edit_tensors(directory, lambda tensors: tensors | {name: tensors.pop(TABLE)})
    assert_same_weights(resolve.read(directory).weights, expected)


def test_tied_tables_that_only_the_metadata_names_are_no_surplus(directory):
    """As facebook/bart-large-cnn is stored."""
    expected = dict(resolve.read(SYMMETRIC).weights)
    kept = "model.decoder.embed_tokens.weight"
    aliases = {TABLE: kept, "model.encoder.embed_tokens.weight": kept, "format": "pt"}
    edit_tensors(directory, lambda tensors: tensors | {kept: tensors.pop(TABLE)}, aliases)
    assert_same_weights(resolve.read(directory).weights, expected)


def test_equal_tables_under_several_names_are_one_and_different_ones_are_refused(directory):
    expected = dict(resolve.read(SYMMETRIC).weights)
    edit_tensors(directory, lambda tensors: tensors | {"lm_head.weight": tensors[TABLE].copy()})
    edit_json(directory / "config.json", tie_word_embeddings=False)
    assert_same_weights(resolve.read(directory).weights, expected)

    edit_tensors(directory, lambda tensors: tensors | {"lm_head.weight": tensors[TABLE] + 1})
    line = refusal(directory)
    assert "shared.weight, lm_head.weight with different values" in line


def test_a_bias_of_zeros_is_no_bias(directory):
    assert not resolve.read(directory).config.final_logits_bias
    edit_tensors(directory, lambda tensors: {
        name: values for name, values in tensors.items() if name != "final_logits_bias"
    })  # fmt: skip
    assert not resolve.read(directory).config.final_logits_bias


def test_the_bias_is_kept_as_stored():
    stored = load_file(DISTILLED / "model.safetensors")["final_logits_bias"]
    assert stored.shape == (1, 1024)
    bias = resolve.read(DISTILLED).weights["final_logits_bias"]
    np.testing.assert_array_equal(bias, stored[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_stored_dtype_is_kept(directory, dtype):
    edit_tensors(directory, lambda tensors: {
        name: values.astype(dtype) for name, values in tensors.items()
    })  # fmt: skip
    expected = dict(resolve.read(SYMMETRIC).weights)
    weights = resolve.read(directory).weights
    assert {values.dtype for values in weights.values()} == {np.dtype(dtype)}
    assert_same_weights(weights, {name: v.astype(dtype) for name, v in expected.items()})


def test_all_that_is_wrong_with_the_weights_is_in_one_line(directory):
    def change(tensors):
        del tensors["model.encoder.layers.0.fc1.bias"]
        tensors["model.encoder.layers.0.fc2.bias"] = np.zeros(63, "float32")
        tensors["model.encoder.layers.7.fc1.bias"] = np.zeros(128, "float32")
        tensors["model.decoder.layers.0.fc1.bias"] = np.zeros(128, "int8")
        return tensors

    edit_tensors(directory, change)
    line = refusal(directory)
    assert "missing encoder.layers.0.fc1.bias;" in line
    assert "surplus encoder.layers.7.fc1.bias;" in line
    assert "misshapen encoder.layers.0.fc2.bias of shape [63] instead of [64];" in line
    assert "decoder.layers.0.fc1.bias of dtype int8" in line


def test_a_classifier_is_told_apart(directory):
    head = {"classification_head.dense.weight": np.zeros((64, 64), "float32")}
    edit_tensors(directory, lambda tensors: tensors | head)
    assert "classification_head is a classifier's head" in refusal(directory)


def test_version_markers_of_fairseq_are_passed_over(directory):
    marker = {"model.encoder.version": np.array([3.0], "float32")}
    edit_tensors(directory, lambda tensors: tensors | marker)
    assert resolve.read(directory).config.num_layers == 2


def test_undefined_numbers_are_refused_when_they_are_read(directory):
    def change(tensors):
        tensors["model.decoder.layers.1.fc2.weight"][3, 5] = np.nan
        return tensors

    edit_tensors(directory, change)
    weights = resolve.read(directory).weights
    name = "transformer_decoder_layer_1/feedforward_output_dense/kernel"
    with pytest.raises(CheckpointError, match=f"undefined numbers in the tensor {name}"):
        weights[name]
    assert weights["token_embedding/embeddings"].shape == (1024, 64)


@pytest.mark.parametrize("model", ["mbart", "t5", "pegasus", "led", "blenderbot"])
def test_other_models_are_refused_by_name(directory, model):
    edit_json(directory / "config.json", model_type=model)
    assert f"describes a {model} model" in refusal(directory, PresetError)


@pytest.mark.parametrize("variant", ["normalize_before", "add_final_layer_norm"])
def test_variants_of_the_architecture_are_refused(directory, variant):
    edit_json(directory / "config.json", **{variant: True})
    assert f"{variant}=true" in refusal(directory, PresetError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_function": "mish"}, "Accepted: gelu, gelu_new, relu, silu, tanh, swish"),
        ({"activation_function": ["gelu"]}, "activation_function must be one of"),
        ({"d_model": 63}, "hidden_dim must be divisible by num_heads"),
        ({"d_model": ...}, "does not say d_model"),
        ({"encoder_layers": "two"}, "num_layers must be a positive integer"),
        ({"dropout": None}, "dropout must be in"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantized checkpoints cannot be read"),
    ],
)
def test_configurations_that_are_no_bart_are_refused(directory, changes, said):
    edit_json(directory / "config.json", **changes)
    assert said in refusal(directory)


def test_swish_is_silu(directory):
    edit_json(directory / "config.json", activation_function="swish")
    assert resolve.read(directory).config.activation_function == "silu"


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path, directory):
    assert "holds no config.json" in refusal(tmp_path, PresetError)
    assert "which is none" in refusal(tmp_path / "nowhere", PresetError)
    edit_json(directory / "config.json", model_type=...)
    assert "neither registered_name" in refusal(directory, PresetError)


def test_missing_weights_are_told(directory):
    (directory / "model.safetensors").unlink()
    assert "holds no weights" in refusal(directory)
    assert resolve.read(directory, weights=False).config.num_layers == 2


def test_pickles_are_left_alone_without_pytorch(directory):
    """A pickle that would leave a trace, were it loaded."""
    trace = directory / "trace"
    (directory / "model.safetensors").unlink()
    pickle = f"cpathlib\nPath\n(V{trace}\ntR.".encode()
    (directory / "pytorch_model.bin").write_bytes(pickle)
    line = refusal(directory)
    assert re.search("Install torch|cannot be loaded as a file of plain tensors", line)
    assert not trace.exists()


def test_safetensors_go_before_pickles(directory):
    (directory / "pytorch_model.bin").write_bytes(b"no pickle")
    files = resolve.read(directory).weight_files
    assert [file.name for file in files] == ["model.safetensors"]


def test_an_index_may_only_name_its_neighbours(directory):
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {TABLE: "../model.safetensors"}}))
    assert "must name files beside it" in refusal(directory)


def test_the_digest_is_that_of_the_files(directory):
    import hashlib

    checkpoint = resolve.read(directory)
    expected = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert weights_digest(checkpoint) == expected
    edit_tensors(directory, lambda tensors: tensors | {TABLE: tensors[TABLE] + 1})
    assert weights_digest(checkpoint) != expected
    with pytest.raises(CheckpointError, match="read without weights"):
        weights_digest(resolve.read(directory, weights=False))


def test_damaged_json_is_named(directory):
    for damage in (b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 100_000):
        (directory / "config.json").write_bytes(damage)
        assert str(directory / "config.json") in refusal(directory)
    (directory / "config.json").write_bytes(b'{"a": %s}' % (b"9" * 5000))
    assert "not valid JSON (a number has too many digits)" in refusal(directory)


def test_a_tokenizer_larger_than_the_model_is_refused(directory):
    def shrink(tensors):
        tensors[TABLE] = tensors[TABLE][:1000]
        tensors["final_logits_bias"] = tensors["final_logits_bias"][:, :1000]
        return tensors

    edit_json(directory / "config.json", vocab_size=1000)
    edit_tensors(directory, shrink)
    assert "ids up to 1023" in refusal(directory, TokenizerError)


def test_a_mask_token_past_the_table_is_accepted(directory):
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
    assert "ids up to 1023" in refusal(directory, TokenizerError)


def test_reading_writes_nothing_into_the_directory(directory):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    dict(resolve.read(directory).weights)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    shutil.rmtree(directory)


def test_rows_that_no_token_has_are_left_out_where_there_is_a_tokenizer():
    padded = CASES / "padded-rows-generated"
    whole, trimmed = resolve.read(padded, tokenizer=False), resolve.read(padded)
    assert (whole.config.vocabulary_size, whole.rows_without_token) == (288, 0)
    assert (trimmed.config.vocabulary_size, trimmed.rows_without_token) == (267, 21)
    table = "token_embedding/embeddings"
    np.testing.assert_array_equal(trimmed.weights[table], whole.weights[table][:267])
    rows = names.weights(trimmed.config)
    assert {row.name: row.shape for row in rows} == {
        name: values.shape for name, values in trimmed.weights.items()
    }
    assert "288 rows for the tokenizer's 267 tokens" in trimmed.notes[0]


def test_a_bias_on_the_logits_loses_the_same_rows(directory):
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    edit_json(directory / "config.json", vocab_size=len(vocabulary) + 3)
    wide = np.zeros((1, len(vocabulary) + 3), np.float32)
    wide[0, -1] = 9.0

    def padded(tensors):
        rows = np.pad(tensors[TABLE], ((0, 3), (0, 0)))
        return tensors | {TABLE: rows, "final_logits_bias": wide}

    edit_tensors(directory, padded)
    assert resolve.read(directory).weights["final_logits_bias"].shape == (len(vocabulary),)


def test_a_special_token_among_rows_that_no_token_has_is_refused(tmp_path):
    padded = copy(tmp_path / "padded", CASES / "padded-rows-generated")
    edit_json(padded / "generation_config.json", decoder_start_token_id=280)
    assert "decoder_start_token_id must be in 0 to 266" in refusal(padded)
