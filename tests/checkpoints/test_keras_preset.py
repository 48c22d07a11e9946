"""Reading KerasHub's presets, and writing presets that KerasHub loads."""

import json
import re
import shutil
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from support.edited_checkpoints import assert_same_weights, edit_json, refusal
from support.paths import SYMMETRIC

from bart_export.checkpoints import keras_preset, keras_weights, resolve, weight_names
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import CheckpointError, PresetError, TokenizerError

# Keras' saving causes this warning under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = {
    "vocabulary_size": 1024,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "dropout": 0.2,
    "max_sequence_length": 32,
}
CONFIG, GOLDEN = BartConfig(**SIZES), resolve.read(SYMMETRIC)
TABLE, NORM = "token_embedding/embeddings", "layers/layer_normalization/vars/0"
TABLE_GIGABYTES = 1024 * 16 * 4 / 1024**3


@pytest.fixture(scope="session")
def tokenizer():
    merges = [" ".join(pair) for pair in GOLDEN.merges]
    return keras_hub.models.BartTokenizer(vocabulary=dict(GOLDEN.vocabulary), merges=merges)


@pytest.fixture(scope="session")
def backbone():
    backbone = keras_hub.models.BartBackbone(**SIZES)
    generator = np.random.default_rng(0)
    for weight in backbone.weights:  # including biases and norms, so that all are distinct
        weight.assign(generator.normal(size=weight.shape))
    return backbone


@pytest.fixture(scope="session")
def whole_preset(backbone, tokenizer, tmp_path_factory):
    """A task saved by KerasHub."""
    place = tmp_path_factory.mktemp("keras") / "whole"
    preprocessor = keras_hub.models.BartSeq2SeqLMPreprocessor(tokenizer)
    keras_hub.models.BartSeq2SeqLM(backbone, preprocessor).save_to_preset(str(place))
    return place


@pytest.fixture
def preset(whole_preset, tmp_path):
    return Path(shutil.copytree(whole_preset, tmp_path / "preset"))


def weights_of(backbone):
    return {weight.path: weight.numpy() for weight in backbone.weights}


def rewrite(path, rename=lambda name: name, keep=lambda name: True, add=None):
    """Rewrite a weight file with other paths or other datasets."""
    datasets = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            datasets[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    with h5py.File(path, "w") as file:
        for name, values in (datasets | (add or {})).items():
            if keep(name):
                file[rename(name)] = values


def edit_config(preset, **changes):
    """Change the model's configuration in config.json."""
    stored = json.loads((preset / "config.json").read_text())
    edit_json(preset / "config.json", config=stored["config"] | changes)


def test_kerashub_presets_are_read(whole_preset, backbone):
    checkpoint = resolve.read(whole_preset)
    assert (checkpoint.format, checkpoint.config, checkpoint.dtype) == ("keras", CONFIG, "float32")
    assert (checkpoint.generation, checkpoint.encoder_sequence_length) == (None, 32)
    assert (checkpoint.vocabulary, checkpoint.merges) == (GOLDEN.vocabulary, GOLDEN.merges)
    assert_same_weights(checkpoint.weights, weights_of(backbone))


def test_kerashub_shards_are_read_like_one_file(backbone, tmp_path):
    backbone.save_to_preset(str(tmp_path), max_shard_size=1.001 * TABLE_GIGABYTES)
    checkpoint = resolve.read(tmp_path, tokenizer=False)
    assert len(checkpoint.weight_files) == 2
    assert_same_weights(checkpoint.weights, weights_of(backbone))


def test_bfloat16_is_kept(tmp_path):
    backbone = keras_hub.models.BartBackbone(**SIZES, dtype="bfloat16")
    backbone.save_to_preset(str(tmp_path))
    checkpoint = resolve.read(tmp_path, tokenizer=False)
    assert checkpoint.dtype == "bfloat16"
    assert {values.dtype.name for values in checkpoint.weights.values()} == {"bfloat16"}
    for weight in backbone.weights:
        stored = keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32"))
        read = checkpoint.weights[weight.path].astype("float32")
        np.testing.assert_array_equal(read, stored)


def test_group_names_of_earlier_versions_are_read(preset, backbone):
    def earlier(name):
        name = re.sub(r"/(query|key|value|output)_dense/", r"/_\1_dense/", name)
        return name.replace("layers/", "_layer_checkpoint_dependencies/", 1)

    rewrite(preset / "model.weights.h5", earlier)
    edit_config(preset, dtype=None)
    edit_json(preset / "config.json", registered_name="keras_nlp>BartBackbone")
    checkpoint = resolve.read(preset)
    assert checkpoint.dtype is None
    assert_same_weights(checkpoint.weights, weights_of(backbone))


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_big_endian_weights_are_read(preset, dtype):
    path, expected = preset / "model.weights.h5", dict(resolve.read(preset).weights)
    with h5py.File(path) as file:
        values = file[NORM][()]
    rewrite(path, add={NORM: values.astype(dtype)})
    weights = dict(resolve.read(preset).weights)
    for name, values in expected.items():
        assert weights[name].dtype.isnative
        np.testing.assert_allclose(weights[name], values, rtol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "max_shard_size"), [(None, 10), (None, 1.001 * TABLE_GIGABYTES), ("bfloat16", 10)]
)
def test_kerashub_loads_written_presets(whole_preset, backbone, tmp_path, dtype, max_shard_size):
    read, place = resolve.read(whole_preset), tmp_path / "deep/er/preset"
    keras_preset.write(
        place,
        read.config,
        read.weights,
        vocabulary=read.vocabulary,
        merges=read.merges,
        weights_dtype=dtype,
        encoder_sequence_length=20,
        decoder_sequence_length=12,
        max_shard_size=max_shard_size,
    )
    assert (place / "model.weights.json").is_file() == (max_shard_size < 10)
    task, again = keras_hub.models.BartSeq2SeqLM.from_preset(str(place)), resolve.read(place)
    theirs = task.preprocessor
    assert theirs.tokenizer.vocabulary == dict(read.vocabulary)
    assert (theirs.encoder_sequence_length, theirs.decoder_sequence_length) == (20, 12)
    assert (again.encoder_sequence_length, again.merges) == (20, read.merges)
    for name, values in weights_of(backbone).items():
        stored = again.weights[name]
        assert stored.dtype.name == (dtype or "float32")
        np.testing.assert_allclose(stored.astype("float32"), values, rtol=1e-2, atol=1e-6)
    as_float32 = {name: values.astype("float32") for name, values in again.weights.items()}
    assert_same_weights(weights_of(task.backbone), as_float32)


def test_a_backbone_without_tokenizer_keeps_its_settings(backbone, tmp_path):
    place = tmp_path / "preset"
    generation = GenerationConfig(num_beams=3, max_length=30, forced_bos_token_id=0)
    keras_preset.write(place, CONFIG, weights_of(backbone), generation=generation)
    assert refusal(place, TokenizerError)
    read = resolve.read(place, tokenizer=False)
    assert read.generation == generation
    assert_same_weights(read.weights, weights_of(backbone))
    theirs = keras_hub.models.BartBackbone.from_preset(str(place))
    assert_same_weights(weights_of(theirs), weights_of(backbone))


def test_an_interrupted_write_keeps_the_earlier_preset(backbone, tmp_path):
    """An error occurs halfway, as with a full disk or a lost mount."""

    class Interrupted(dict):
        def __getitem__(self, name):
            if name.startswith("decoder_position") and self.armed:
                raise OSError(28, "No space left on device")
            return super().__getitem__(name)

    place, halfway = tmp_path / "preset", Interrupted(weights_of(backbone))
    for before in ([], [place]):
        halfway.armed = True
        with pytest.raises(CheckpointError, match="No space left on device"):
            keras_preset.write(place, CONFIG, halfway)
        assert list(tmp_path.iterdir()) == before
        halfway.armed = False
        keras_preset.write(place, CONFIG, halfway)
    assert_same_weights(resolve.read(place, tokenizer=False).weights, weights_of(backbone))


def test_presets_are_replaced_and_other_directories_are_not(backbone, tmp_path):
    place, link, weights = tmp_path / "preset", tmp_path / "link", weights_of(backbone)
    place.mkdir()
    keras_preset.write(place, CONFIG, weights)
    link.symlink_to(place)
    changed = weights | {TABLE: weights[TABLE] + 1}
    keras_preset.write(link, CONFIG, changed)
    assert_same_weights(resolve.read(place, tokenizer=False).weights, changed)
    assert link.is_symlink() and sorted(tmp_path.iterdir()) == [link, place]

    (tmp_path / "thesis").mkdir()
    # A Hugging Face checkpoint has a config.json too.
    for held in (["chapter_1.txt"], ["chapter_1.txt", "config.json"], ["model.safetensors"]):
        for name in held:
            (tmp_path / "thesis" / name).write_text("It was")
        with pytest.raises(CheckpointError, match=rf"is not a preset: it contains \"{held[0]}\""):
            keras_preset.write(tmp_path / "thesis", CONFIG, weights)
        for name in held:
            (tmp_path / "thesis" / name).unlink()


def test_wrong_weights_are_not_written(backbone, tmp_path):
    weights = weights_of(backbone)
    wrong = {name: values for name, values in weights.items() if name != TABLE}
    with pytest.raises(CheckpointError, match=f"missing {TABLE}; unexpected extra"):
        keras_preset.write(tmp_path / "preset", CONFIG, wrong | {"extra": np.zeros(3, "float32")})
    with pytest.raises(CheckpointError, match="must be at least the size of token_embedding"):
        keras_preset.write(tmp_path / "preset", CONFIG, weights, max_shard_size=TABLE_GIGABYTES / 2)
    assert list(tmp_path.iterdir()) == []


def test_quantized_presets_are_rejected(tmp_path):
    quantized = keras_hub.models.BartBackbone(**SIZES)
    quantized.quantize("int8", filters=lambda layer: layer.name == "token_embedding")
    quantized.save_to_preset(str(tmp_path))
    said = "presets quantized by Keras are not supported"
    assert said in refusal(tmp_path, tokenizer=False)
    edit_config(tmp_path, dtype=None)
    line = refusal(tmp_path, tokenizer=False)
    assert "model.weights.h5" in line and said in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 0}, "num_layers must be a positive integer"),
        ({"num_layer": 2}, "Did you mean num_layers?"),
        ({"hidden_dim": 15}, "divisible"),
        ({"dtype": 3}, "must name a dtype policy"),
        ({"dtype": "int8_from_float32"}, "quantized"),
        ({"dtype": "int4/128_from_float32"}, "quantized"),
        ({"dtype": {"class_name": 3}}, "quantized"),
    ],
)
def test_configurations_of_other_models_are_rejected(preset, changes, said):
    edit_config(preset, **changes)
    assert said in refusal(preset)


def test_other_models_are_rejected_by_name(preset):
    edit_json(preset / "config.json", registered_name="keras_hub>GPT2Backbone")
    assert "received keras_hub>GPT2Backbone" in refusal(preset, PresetError)


def test_of_many_wrong_weights_the_first_are_listed(preset):
    rewrite(
        preset / "model.weights.h5",
        keep=lambda name: "transformer" not in name,
        add={NORM: np.zeros(15, "float32")},
    )
    count = sum("transformer" in row.name for row in weight_names.weights(CONFIG))
    line = refusal(preset)
    assert f"and {count - 12} more; wrong shape: {NORM} has [15] instead of [16]" in line


def test_the_encoder_length_is_limited_to_the_positions(preset):
    path = preset / "preprocessor.json"
    for stated, length in ((20, 20), (1024, 32), (None, 32)):
        edit_json(path, config={"encoder_sequence_length": stated})
        assert resolve.read(preset).encoder_sequence_length == length
    edit_json(path, config={"encoder_sequence_length": "long"})
    assert 'at least 3, received "long"' in refusal(preset)


@pytest.mark.parametrize("kept", [0, 100, 2000, 20_000, -1])
def test_truncated_weight_files_are_rejected(preset, kept):
    path = preset / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:kept])
    line = refusal(preset)
    assert str(path) in line and "Download it again" in line


def test_flipped_bits_are_rejected_or_harmless(preset):
    """Without checksums, a flip may go unnoticed, but not cause other errors or shapes."""
    path, refused = preset / "model.weights.h5", 0
    whole, rows = path.read_bytes(), {row.name: row.shape for row in weight_names.weights(CONFIG)}
    for place in [*range(0, 120, 3), *range(120, 12_000, 293)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            weights = resolve.read(preset, tokenizer=False).weights
            shapes = {name: weights[name].shape for name in list(rows)[:5]}
        except CheckpointError:
            refused += 1
        else:
            assert shapes.items() <= rows.items()
    assert refused > 25


def test_external_and_empty_datasets_are_rejected(preset):
    path, secret = preset / "model.weights.h5", preset.parent / "secret"
    secret.write_bytes(np.ones(16, "float32").tobytes())
    link = h5py.ExternalLink(str(preset.parent / "other.h5"), "/x")
    for add, said in (
        ({"external": [(secret, 0, 64)]}, f"does not contain the values of {NORM}"),
        ({}, f"does not contain the values of {NORM}"),
        (None, f"missing {NORM}"),
    ):
        rewrite(path, keep=lambda name: name != NORM)
        with h5py.File(path, "a") as file:
            if add is None:
                file[NORM] = link
            else:
                file.create_dataset(NORM, (16,), "float32", **add)
        assert said in refusal(preset)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e39])
def test_values_beyond_float32_are_rejected_with_the_tensor(preset, value):
    rewrite(preset / "model.weights.h5", add={NORM: np.full(16, value, "float64")})
    weights = resolve.read(preset, tokenizer=False).weights
    name = "encoder_embeddings_layer_norm/gamma"
    with pytest.raises(CheckpointError, match=f"values beyond float32 in the tensor {name}"):
        weights[name]
    assert weights[TABLE].shape == (1024, 16)


def test_nesting_and_number_of_groups_are_bounded(preset, monkeypatch):
    path, whole = preset / "model.weights.h5", (preset / "model.weights.h5").read_bytes()
    with h5py.File(path, "a") as file:
        group = file["layers"]
        for _ in range(1000):
            group = group.create_group("x")
    assert "nested at most 32 deep" in refusal(preset)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["layers/round"] = file["layers"]
    assert "nested at most 32 deep" in refusal(preset)
    path.write_bytes(whole)
    monkeypatch.setattr(keras_weights, "MAX_ITEMS", 20)
    assert "at most 20 groups" in refusal(preset)
