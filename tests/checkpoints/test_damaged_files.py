"""Checkpoints as nobody should have sent them: one line, at once, whatever a file holds or is."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.edited_checkpoints import CASES, SYMMETRIC, copy, edit_json, edit_tensors

from bart_export.checkpoints import keras_preset, resolve
from bart_export.checkpoints.files import licence
from bart_export.errors import BartExportError, PresetError
from bart_export.verify import tokenization

TABLE = "model.shared.weight"
POINTER = (CASES / "lfs-pointer/model.safetensors").read_bytes()
HUGE = "9" * 4000
DEEP = '{"a":' * 100_000
WRONG = ("null", "true", "-1", "1e400", "NaN", HUGE, '"x"', '"' + "x" * 5000 + '"', "[]", "[[[1]]]",
         "{}", '{"a": {"b": []}}', "0.5")  # fmt: skip


@pytest.fixture
def directory(tmp_path):
    return copy(tmp_path / "bart")


@pytest.fixture
def preset(tmp_path):
    """A Keras preset with everything a preset may have, in two weight files."""
    read = resolve.read(SYMMETRIC)
    place = tmp_path / "preset"
    keras_preset.write(
        place, read.config, read.weights, generation=read.generation, vocabulary=read.vocabulary,
        merges=read.merges, max_shard_size=0.0006,
    )  # fmt: skip
    return place


def line_of(error):
    line = str(error)
    assert "\n" not in line
    assert len(line) < 1500
    return line


def refusal(directory):
    with pytest.raises(BartExportError) as refused:
        resolve.read(directory)
    return line_of(refused.value)


def outcome(directory, weights=False):
    """Return the line of a refusal, "" if the checkpoint is read and has settings to go with it."""
    source = resolve.Source("mine", None, directory, None)
    try:
        resolve.defaults(source, resolve.read(directory, weights=weights, tokenizer=False))
    except BartExportError as error:
        return line_of(error)
    return ""


def with_value(stored, keys, value):
    """Return the JSON text of `stored` in which what lies at `keys` is the text `value`."""
    mark = "\x00 here"
    copied = json.loads(json.dumps(stored))
    inner = copied
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = mark
    return json.dumps(copied).replace(json.dumps(mark), value)


def places(stored, keys=()):
    """Yield the way to each value in an object, as far as a reader may look."""
    for key, value in stored.items():
        yield (*keys, key)
        if isinstance(value, dict) and len(value) < 100:
            yield from places(value, (*keys, key))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_no_value_of_a_hugging_face_directory_breaks_more_than_its_line(directory, name):
    more = {"task_specific_params": {"qa": {"num_beams": 2}}, "prefix": " ", "max_new_tokens": 9,
            "tie_word_embeddings": True, "num_beams": 2, "early_stopping": True}  # fmt: skip
    edit_json(directory / name, **more)
    stored = json.loads((directory / name).read_text(encoding="utf-8"))
    refused = 0
    for keys in places(stored):
        for wrong in WRONG:
            (directory / name).write_text(with_value(stored, keys, wrong), encoding="utf-8")
            refused += bool(outcome(directory))
    assert refused > 50


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor.json", "generation_config.json", "model.weights.json"]
)
def test_no_value_of_a_keras_preset_breaks_more_than_its_line(preset, name):
    stored = json.loads((preset / name).read_text(encoding="utf-8"))
    refused = 0
    index = name == "model.weights.json"
    for keys in list(places(stored))[: 8 if index else None]:
        for wrong in WRONG:
            (preset / name).write_text(with_value(stored, keys, wrong), encoding="utf-8")
            refused += bool(outcome(preset, weights=index))
    assert refused > 5


@pytest.mark.parametrize(
    ("case", "name", "stored"),
    [
        ("added-token-in-vocabulary", "tokenizer.json", None),
        ("added-tokens-json", "added_tokens.json", None),
        ("add-prefix-space", "vocab.json", None),
        ("add-prefix-space", "tokenizer_config.json", {"add_prefix_space": True,
            "tokenizer_class": "BartTokenizer", "split_special_tokens": False,
            "added_tokens_decoder": {"0": {"content": "<s>", "special": True}}}),
        ("add-prefix-space", "special_tokens_map.json", {"mask_token": "<mask>",
            "bos_token": {"content": "<s>"}, "additional_special_tokens": ["<s>"]}),
    ],
)  # fmt: skip
def test_no_value_of_a_tokenizers_files_breaks_more_than_its_line(tmp_path, case, name, stored):
    place = tmp_path / "bart"
    shutil.copytree(CASES / case, place)
    stored = stored or json.loads((place / name).read_text(encoding="utf-8"))
    ways = list(places(stored))
    for keys in (*ways[:25], *ways[-5:]):
        for wrong in WRONG:
            (place / name).write_text(with_value(stored, keys, wrong), encoding="utf-8")
            try:
                resolve.read(place, weights=False).tokenizer()
            except BartExportError as error:
                line_of(error)


FILES = ("config.json", "generation_config.json", "vocab.json", "merges.txt", "model.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_is_neither_waited_for_nor_read_without_end(directory, name):
    (directory / name).unlink()
    os.mkfifo(directory / name)
    assert name in refusal(directory) or name == "model.safetensors"
    (directory / name).unlink()
    (directory / name).symlink_to("/dev/zero")
    assert name in refusal(directory) or name == "model.safetensors"


@pytest.mark.parametrize("name", FILES)
def test_a_file_too_large_to_be_what_its_name_says_is_not_read(directory, name):
    if name == "model.safetensors":
        header = struct.pack("<Q", 10**9) + b"{"
        (directory / name).write_bytes(header)
        os.truncate(directory / name, 2 * 10**9)
    else:
        os.truncate(directory / name, 10**9)
    assert name in refusal(directory)


def test_a_model_card_that_is_none_says_nothing(directory):
    (directory / "README.md").symlink_to("/dev/zero")
    assert resolve.read(directory).config.num_layers == 2
    assert licence(directory) is None


@pytest.mark.parametrize("name", [*FILES, "model.weights.h5"])
def test_the_pointer_that_git_lfs_leaves_is_named(directory, preset, name):
    place = preset if name.endswith(".h5") else directory
    (place / name).write_bytes(POINTER)
    line = refusal(place)
    assert f"{place / name} is a Git LFS pointer" in line
    assert "git lfs pull" in line


def test_the_case_of_a_clone_without_git_lfs():
    assert "is a Git LFS pointer" in refusal(CASES / "lfs-pointer")


def test_a_byte_order_mark_is_passed_over(directory, preset):
    """Windows' Notepad and PowerShell put one before what they save."""
    for place in (directory, preset):
        expected = resolve.read(place)
        for path in place.rglob("*"):
            if path.suffix in (".json", ".txt"):
                path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        again = resolve.read(place)
        assert (again.config, again.settings) == (expected.config, expected.settings)
        assert (again.vocabulary, again.merges) == (expected.vocabulary, expected.merges)
        tokenization.check(again, again.tokenizer(), ["the river rose two metres"])


@pytest.mark.parametrize("damage", [b'{"a": "\xff"}', '{"a": "ü"}'.encode("utf-16"), DEEP.encode()])
def test_json_that_cannot_be_read_is_named(directory, damage):
    for name in ("config.json", "generation_config.json"):
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(damage)
        assert str(directory / name) in refusal(directory)
        (directory / name).write_bytes(before)


def test_more_layers_than_a_file_holds_are_not_built(directory):
    for layers in (3, 999, 10**9, 10**18):
        edit_json(directory / "config.json", encoder_layers=layers)
        assert "missing encoder.layers.2" in (line := refusal(directory)) or "at most 1000" in line
    edit_json(directory / "config.json", encoder_layers=2, max_position_embeddings=2**31 - 1)
    assert "misshapen encoder.embed_positions.weight" in refusal(directory)


@pytest.mark.parametrize(
    "described",
    [
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**30]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        [],
        None,
    ],
)
def test_a_header_that_lies_is_not_believed(directory, described):
    header = json.dumps({"x" * 5000: described}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    (directory / "model.safetensors").write_bytes(content)
    assert "is not a whole safetensors file" in refusal(directory)


def test_a_bias_of_a_dtype_that_numpy_lacks_is_refused(directory):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    bias = header["final_logits_bias"]
    bias["dtype"], bias["shape"] = "F8_E4M3", [1, 4 * bias["shape"][1]]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert "final_logits_bias of dtype F8_E4M3" in refusal(directory)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_training_puts_before_every_name_is_stripped(directory, prefix):
    expected = dict(resolve.read(directory).weights)
    edit_tensors(directory, lambda tensors: {prefix + name: v for name, v in tensors.items()})
    weights = resolve.read(directory).weights
    for name, values in expected.items():
        np.testing.assert_array_equal(weights[name], values, name)


def test_the_case_of_names_that_begin_with_module():
    case = CASES / "module-prefix"
    stored = load_file(case / "model.safetensors")
    assert all(name.startswith("module.") for name in stored)
    table = resolve.read(case).weights["token_embedding/embeddings"]
    np.testing.assert_array_equal(table, stored[f"module.{TABLE}"])


def test_a_head_that_the_configuration_ties_is_not_used_and_told(directory):
    expected = resolve.read(directory).weights["token_embedding/embeddings"]
    edit_tensors(directory, lambda tensors: tensors | {"lm_head.weight": tensors[TABLE] + 1})
    for tied in (True, ...):
        edit_json(directory / "config.json", tie_word_embeddings=tied)
        checkpoint = resolve.read(directory)
        np.testing.assert_array_equal(checkpoint.weights["token_embedding/embeddings"], expected)
        (note,) = checkpoint.notes
        assert note.startswith("lm_head.weight differs from shared.weight and was not used")


def test_an_adapter_is_told_how_to_become_a_model(directory):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "facebook/bart-large"}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    line = refusal(directory)
    assert 'a LoRA adapter of "facebook/bart-large", not a whole model' in line
    assert "merge_and_unload" in line
    (directory / "config.json").unlink()
    assert refusal(directory) == line
    for damage in (b"", b"[]", DEEP.encode(), b"\xff"):
        (directory / "adapter_config.json").write_bytes(damage)
        assert "adapter of null" in refusal(directory)


@pytest.mark.parametrize(
    "repository", ["philschmid/bart-large-cnn-samsum", "facebook/bart-large-cnn"]
)
def test_a_repository_named_without_its_hub_is_told_how(repository):
    with pytest.raises(PresetError, match=rf"Did you mean hf://{repository}\?"):
        resolve.find(repository)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x/" * 2500, "o/../zz/../yy", "\0", "hf://o/m@../../x", "a\nb", "\ud800"]
)
def test_a_name_that_is_none_is_one_line(name):
    with pytest.raises(PresetError, match="Unknown preset") as refused:
        resolve.find(name)
    line_of(refused.value).encode()


def test_the_command_line_says_it_before_it_loads_tensorflow(directory):
    """Native libraries log when they are loaded: of the line nothing must come before."""
    edit_json(directory / "config.json", encoder_layers=10**9)
    code = (
        "import sys\nfrom bart_export.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "--preset", directory, "--target", "tflite"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=directory,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("Error: ")
    assert run.stderr.count("\n") == 1
    assert not Path(directory / "artifacts").exists()
