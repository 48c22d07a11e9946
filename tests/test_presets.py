"""What may be named instead of a path, and what it means."""

import json
import subprocess
import sys

import pytest

from bart_export import presets
from bart_export.checkpoints import names, resolve
from bart_export.config import BartConfig
from bart_export.errors import PresetError

SIZES = {
    "bart_base_en": (50265, 6, 12, 768, 3072),
    "bart_large_en": (50265, 12, 16, 1024, 4096),
    "bart_large_en_cnn": (50264, 12, 16, 1024, 4096),
}


def test_the_embedded_preset_needs_no_network():
    source = resolve.find("bart_mini_en")
    checkpoint = resolve.read(source.directory)
    count = sum(values.size for values in checkpoint.weights.values())
    assert count == presets.PRESETS["bart_mini_en"].parameters
    assert resolve.defaults(source, checkpoint).generation == checkpoint.generation


@pytest.mark.parametrize("name", SIZES)
def test_the_stated_parameters_are_those_of_the_architecture(name):
    vocabulary_size, num_layers, num_heads, hidden_dim, intermediate_dim = SIZES[name]
    config = BartConfig(
        vocabulary_size=vocabulary_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=intermediate_dim,
    )
    assert presets.PRESETS[name].parameters == names.parameter_count(config)


def test_a_preset_goes_before_a_directory_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bart_mini_en").mkdir()
    (tmp_path / "mine").mkdir()
    assert resolve.find("bart_mini_en").directory == presets.ASSETS / "bart_mini_en"
    for typed in ("./bart_mini_en", "mine", str(tmp_path / "mine")):
        source = resolve.find(typed)
        assert (source.handle, source.revision, source.generation) == (typed, None, None)
        assert source.directory.samefile(tmp_path / typed)


@pytest.mark.parametrize(
    "preset",
    [
        "",
        "nowhere",
        "kaggle://org/model",
        "kaggle://org/model/pytorch/variant",
        "kaggle://org/model/keras/variant/newest",
        "kaggle://../../keras/variant",
        "hf://model",
        "hf://org/model/file",
        "hf://org/../model",
        "HF://org/model",
        "gs://bucket/model",
        "file:///tmp",
    ],
)
def test_what_is_no_preset_is_told_what_one_is(preset):
    with pytest.raises(PresetError) as refused:
        resolve.find(preset)
    line = str(refused.value)
    assert json.dumps(preset) in line
    assert "\n" not in line
    for form in ("bart_large_en_cnn", "kaggle://org/model/keras/", "hf://org/model@", "directory"):
        assert form in line


def test_a_near_miss_is_told_what_was_meant():
    with pytest.raises(PresetError, match=r"Did you mean bart_large_en_cnn\?"):
        resolve.find("bart_large_cnn")


def test_importing_presets_loads_no_client_and_no_tensor_library():
    heavy = "{'kagglehub', 'huggingface_hub', 'numpy', 'h5py', 'keras', 'tensorflow'}"
    program = f"import sys, bart_export.presets; print(*sorted({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (process.returncode, process.stdout.strip()) == (0, "")
