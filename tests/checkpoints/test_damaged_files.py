"""Damaged and malicious checkpoints: each raises a one-line error, without hanging."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from support.command import python
from support.edited_checkpoints import FILES, edit_json, refusal
from support.paths import CASES, SYMMETRIC

from bart_export.checkpoints import keras_preset, resolve
from bart_export.checkpoints.files import licence
from bart_export.errors import BartExportError, CheckpointError
from bart_export.presets import PRESETS
from bart_export.verify import tokenization

POINTER = (CASES / "lfs-pointer/model.safetensors").read_bytes()
HUGE = "9" * 4000
DEEP = '{"a":' * 100_000
WRONG = ("null", "true", "-1", "1e400", "NaN", HUGE, '"x"', '"' + "x" * 5000 + '"', "[]", "[[[1]]]",
         "{}", '{"a": {"b": []}}', "0.5")  # fmt: skip


@pytest.fixture
def preset(tmp_path):
    """A complete Keras preset in two weight files."""
    read = resolve.read(SYMMETRIC)
    place = tmp_path / "preset"
    keras_preset.write(
        place, read.config, read.weights, generation=read.generation, vocabulary=read.vocabulary,
        merges=read.merges, max_shard_size=0.0006,
    )  # fmt: skip
    return place


def refused(directory):
    """Return the error message for a directory, of any error class."""
    return refusal(directory, BartExportError)


def with_value(stored, keys, value):
    """Return `stored` as JSON, with the text `value` at `keys`."""
    mark = "\x00 here"
    copied = json.loads(json.dumps(stored))
    inner = copied
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = mark
    return json.dumps(copied).replace(json.dumps(mark), value)


def places(stored, keys=()):
    """Yield the keys of every value in an object, except in large tables."""
    for key, value in stored.items():
        yield (*keys, key)
        if isinstance(value, dict) and len(value) < 100:
            yield from places(value, (*keys, key))


def refusals(path, keys_of_values, read):
    """Count the wrong values of a JSON file that `read()` refuses, each in a short line."""
    stored, count = json.loads(path.read_text(encoding="utf-8")), 0
    for keys in keys_of_values(stored):
        for wrong in WRONG:
            path.write_text(with_value(stored, keys, wrong), encoding="utf-8")
            try:
                read()
            except BartExportError as error:
                assert len(str(error)) < 1500
                count += 1
    return count


def read_settings(directory, weights=False):
    """Read a checkpoint without its tokenizer, and the defaults of an artifact."""
    source = resolve.Source("mine", None, directory, None)
    resolve.defaults(source, resolve.read(directory, weights=weights, tokenizer=False))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_wrong_values_in_a_hugging_face_directory_raise_one_line_errors(directory, name):
    more = {"task_specific_params": {"qa": {"num_beams": 2}}, "prefix": " ", "max_new_tokens": 9,
            "tie_word_embeddings": True, "num_beams": 2, "early_stopping": True}  # fmt: skip
    edit_json(directory / name, **more)
    assert refusals(directory / name, places, lambda: read_settings(directory)) > 50


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor.json", "generation_config.json", "model.weights.json"]
)
def test_wrong_values_in_a_keras_preset_raise_one_line_errors(preset, name):
    index = name == "model.weights.json"
    first = 8 if index else None
    found = refusals(
        preset / name,
        lambda stored: list(places(stored))[:first],
        lambda: read_settings(preset, weights=index),
    )
    assert found > 5


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
def test_wrong_values_in_tokenizer_files_raise_one_line_errors(tmp_path, case, name, stored):
    place = Path(shutil.copytree(CASES / case, tmp_path / "bart"))
    if stored is not None:
        (place / name).write_text(json.dumps(stored), encoding="utf-8")

    def some(stored):
        found = list(places(stored))
        return (*found[:25], *found[-5:])

    def read():
        resolve.read(place, weights=False).tokenizer()

    assert refusals(place / name, some, read) > 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", FILES)
def test_pipes_and_devices_do_not_block_reading(directory, name):
    (directory / name).unlink()
    os.mkfifo(directory / name)
    assert name in refused(directory) or name == "model.safetensors"
    (directory / name).unlink()
    (directory / name).symlink_to("/dev/zero")
    assert name in refused(directory) or name == "model.safetensors"


@pytest.mark.parametrize("name", FILES)
def test_oversized_files_are_rejected(directory, name):
    if name == "model.safetensors":
        header = struct.pack("<Q", 10**9) + b"{"
        (directory / name).write_bytes(header)
        os.truncate(directory / name, 2 * 10**9)
    else:
        os.truncate(directory / name, 10**9)
    assert name in refused(directory)


FRONT = "---\nlanguage: en\nlicense: {}\n---\n\n# A model\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"README.md": "# A model\n\nIt writes.\n"}, None),
        ({"README.md": FRONT.format("apache-2.0")}, "apache-2.0"),
        ({"README.md": FRONT.format('"mit"'), "LICENSE": "MIT"}, "mit"),
        ({"README.md": FRONT.format("other\nlicense_name: my-own")}, "my-own"),
        (
            {"README.md": "# M\n\n## Data and License\n\nA page about data.\n"},
            'as the checkpoint\'s README.md says under "Data and License"',
        ),
        ({"LICENSE": "MIT"}, "as the checkpoint's file LICENSE says"),
        ({"README.md": "\udcff"}, None),
        ({"README.md": FRONT.format("a\x1b[2J" + 999 * "b")}, r"a\u001b[2J" + 195 * "b"),
    ],
)
def test_licence_comes_from_the_model_card_or_a_file(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    assert licence(tmp_path) == expected


def test_an_unreadable_model_card_is_ignored(directory):
    (directory / "README.md").symlink_to("/dev/zero")
    assert resolve.read(directory).config.num_layers == 2
    assert licence(directory) is None
    assert "Training data and its licences" in licence(PRESETS["bart_mini_en"].directory)


@pytest.mark.parametrize("name", [*FILES, "model.weights.h5"])
def test_git_lfs_pointers_are_reported(directory, preset, name):
    place = preset if name.endswith(".h5") else directory
    (place / name).write_bytes(POINTER)
    line = refused(place)
    assert f"{place / name} is a Git LFS pointer" in line
    assert "git lfs pull" in line


def test_byte_order_marks_are_ignored(directory, preset):
    """Windows' Notepad and PowerShell write one."""
    for place in (directory, preset):
        expected = resolve.read(place)
        for path in place.rglob("*"):
            if path.suffix in (".json", ".txt"):
                path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        again = resolve.read(place)
        assert (again.config, again.settings) == (expected.config, expected.settings)
        assert (again.vocabulary, again.merges) == (expected.vocabulary, expected.merges)
        tokenization.check_tokenizer(again, again.tokenizer(), ["the river rose two metres"])


@pytest.mark.parametrize("damage", [b'{"a": "\xff"}', '{"a": "ü"}'.encode("utf-16"), DEEP.encode()])
def test_unreadable_json_is_reported_with_its_file(directory, damage):
    for name in ("config.json", "generation_config.json"):
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(damage)
        assert str(directory / name) in refused(directory)
        (directory / name).write_bytes(before)


def test_configurations_larger_than_the_weights_are_rejected(directory):
    for layers in (3, 999, 10**9, 10**18):
        edit_json(directory / "config.json", encoder_layers=layers)
        assert "missing encoder.layers.2" in (line := refused(directory)) or "at most 1000" in line
    edit_json(directory / "config.json", encoder_layers=2, max_position_embeddings=2**31 - 1)
    assert "wrong shape: encoder.embed_positions.weight has " in refused(directory)


@pytest.mark.parametrize(
    "described",
    [
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**30]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        None,
    ],
)
def test_invalid_safetensors_headers_are_rejected(directory, described):
    header = json.dumps({"x" * 5000: described}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    (directory / "model.safetensors").write_bytes(content)
    assert "is not a complete safetensors file" in refused(directory)


def test_oversized_safetensors_headers_are_not_read(directory):
    header = b"{" + b" " * 16_000_000 + b"}"
    content = struct.pack("<Q", len(header)) + header
    (directory / "model.safetensors").write_bytes(content)
    assert "safetensors file (a header of 16000002 bytes)" in refused(directory)


@pytest.mark.parametrize("kept", [0, 8, 1000, 100_000, -1])
def test_truncated_weights_are_rejected_when_opened_and_when_read(directory, kept):
    path, weights = directory / "model.safetensors", resolve.read(directory).weights
    path.write_bytes(path.read_bytes()[:kept])
    assert "is not a complete safetensors file" in refused(directory)
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        weights["token_embedding/embeddings"]


def test_a_bias_with_a_dtype_unknown_to_numpy_is_rejected(directory):
    path = directory / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    bias = header["final_logits_bias"]
    bias["dtype"], bias["shape"] = "F8_E4M3", [1, 4 * bias["shape"][1]]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert "final_logits_bias of dtype F8_E4M3" in refused(directory)


def test_lora_adapters_are_rejected_with_instructions(directory):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "facebook/bart-large"}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    line = refused(directory)
    assert 'a LoRA adapter for "facebook/bart-large", not a full model' in line
    assert "merge_and_unload" in line
    (directory / "config.json").unlink()
    assert refused(directory) == line
    for damage in (b"", b"[]", DEEP.encode(), b"\xff"):
        (directory / "adapter_config.json").write_bytes(damage)
        assert "adapter for null" in refused(directory)


def test_the_command_line_reports_errors_before_it_loads_tensorflow(directory):
    """Native libraries log when they are loaded, and nothing may precede the error."""
    edit_json(directory / "config.json", encoder_layers=10**9)
    code = (
        "import sys\nfrom bart_export.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    run = python(code, "--preset", directory, "--target", "tflite", timeout=60, cwd=directory)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("Error: ")
    assert run.stderr.count("\n") == 1
    assert not Path(directory / "artifacts").exists()
