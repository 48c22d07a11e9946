"""Keras presets: KerasHub's are read as they are, and KerasHub loads what is written here."""

import json
import re
import shutil
import sys
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from support.edited_checkpoints import DISTILLED, SYMMETRIC, edit_json

from bart_export.checkpoints import keras_preset, keras_weights, names, resolve
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import CheckpointError, MissingExtra, PresetError, TokenizerError

# What Keras' own saving says under NumPy 2.
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
GOLDEN = resolve.read(SYMMETRIC)
TABLE_GIGABYTES = 1024 * 16 * 4 / 1024**3


@pytest.fixture(scope="session")
def tokenizer():
    merges = [" ".join(pair) for pair in GOLDEN.merges]
    return keras_hub.models.BartTokenizer(vocabulary=dict(GOLDEN.vocabulary), merges=merges)


@pytest.fixture(scope="session")
def backbone():
    backbone = keras_hub.models.BartBackbone(**SIZES)
    generator = np.random.default_rng(0)
    for weight in backbone.weights:  # biases and norms as well, so that none can be mistaken
        weight.assign(generator.normal(size=weight.shape))
    return backbone


@pytest.fixture(scope="session")
def whole_preset(backbone, tokenizer, tmp_path_factory):
    """A task as KerasHub saves it."""
    place = tmp_path_factory.mktemp("keras") / "whole"
    preprocessor = keras_hub.models.BartSeq2SeqLMPreprocessor(tokenizer)
    keras_hub.models.BartSeq2SeqLM(backbone, preprocessor).save_to_preset(str(place))
    return place


@pytest.fixture
def preset(whole_preset, tmp_path):
    return Path(shutil.copytree(whole_preset, tmp_path / "preset"))


def weights_of(backbone):
    return {weight.path: weight.numpy() for weight in backbone.weights}


def assert_same_weights(weights, expected):
    assert list(weights) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(weights[name], values, name)


def write_tokenizer(place, tokenizer):
    tokenizer.save_to_preset(str(place))


def refusal(directory, error=CheckpointError):
    with pytest.raises(error) as refused:
        resolve.read(directory)
    line = str(refused.value)
    assert "\n" not in line
    return line


def rewrite(path, rename=lambda name: name, keep=lambda name: True, add=None):
    """Rewrite a weight file with other paths, fewer datasets or more of them."""
    with h5py.File(path) as file:
        datasets = {}
        file.visititems(
            lambda name, item: (
                datasets.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    with h5py.File(path, "w") as file:
        for name, values in (datasets | (add or {})).items():
            if keep(name):
                file[rename(name)] = values


def test_kerashubs_presets_are_read_whole(whole_preset, backbone):
    checkpoint = resolve.read(whole_preset)
    assert checkpoint.format == "keras"
    assert checkpoint.config == BartConfig(**SIZES)
    assert checkpoint.dtype == "float32"
    assert checkpoint.generation is None
    assert checkpoint.encoder_sequence_length == 32
    assert checkpoint.vocabulary == GOLDEN.vocabulary
    assert checkpoint.merges == GOLDEN.merges
    assert_same_weights(checkpoint.weights, weights_of(backbone))


def test_kerashubs_shards_are_read_like_one_file(backbone, tokenizer, tmp_path):
    backbone.save_to_preset(str(tmp_path / "shards"), max_shard_size=1.001 * TABLE_GIGABYTES)
    write_tokenizer(tmp_path / "shards", tokenizer)
    checkpoint = resolve.read(tmp_path / "shards")
    assert len(checkpoint.weight_files) == 2
    assert_same_weights(checkpoint.weights, weights_of(backbone))

    checkpoint.weight_files[1].unlink()
    assert "model_00001.weights.h5, which is not there" in refusal(tmp_path / "shards")


def test_bfloat16_is_kept(tokenizer, tmp_path):
    backbone = keras_hub.models.BartBackbone(**SIZES, dtype="bfloat16")
    backbone.save_to_preset(str(tmp_path / "preset"))
    write_tokenizer(tmp_path / "preset", tokenizer)
    checkpoint = resolve.read(tmp_path / "preset")
    assert checkpoint.dtype == "bfloat16"
    weights = checkpoint.weights
    assert {values.dtype.name for values in weights.values()} == {"bfloat16"}
    for weight in backbone.weights:
        stored = keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32"))
        np.testing.assert_array_equal(weights[weight.path].astype("float32"), stored)


def test_the_names_of_earlier_versions_are_read(preset, backbone):
    def earlier(name):
        name = re.sub(r"/(query|key|value|output)_dense/", r"/_\1_dense/", name)
        return name.replace("layers/", "_layer_checkpoint_dependencies/", 1)

    rewrite(preset / "model.weights.h5", earlier)
    with h5py.File(preset / "model.weights.h5") as file:
        assert list(file) == ["_layer_checkpoint_dependencies"]
    config = json.loads((preset / "config.json").read_text())
    del config["config"]["dtype"]
    config["registered_name"] = "keras_nlp>BartBackbone"
    (preset / "config.json").write_text(json.dumps(config))
    checkpoint = resolve.read(preset)
    assert checkpoint.dtype is None
    assert_same_weights(checkpoint.weights, weights_of(backbone))


@pytest.mark.parametrize(
    ("dtype", "max_shard_size"),
    [(None, 10), (None, 1.001 * TABLE_GIGABYTES), ("bfloat16", 10)],
)
def test_kerashub_loads_what_is_written(whole_preset, backbone, tmp_path, dtype, max_shard_size):
    read = resolve.read(whole_preset)
    place = tmp_path / "deep/er/preset"
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
    sharded = (place / "model.weights.json").is_file()
    assert sharded == (max_shard_size < 10)
    task = keras_hub.models.BartSeq2SeqLM.from_preset(str(place))
    assert isinstance(task.preprocessor.tokenizer, keras_hub.models.BartTokenizer)
    assert task.preprocessor.tokenizer.vocabulary == dict(read.vocabulary)
    assert task.preprocessor.encoder_sequence_length == 20
    assert task.preprocessor.decoder_sequence_length == 12
    again = resolve.read(place)
    assert again.encoder_sequence_length == 20
    assert again.merges == read.merges
    for name, values in weights_of(backbone).items():
        stored = again.weights[name]
        assert stored.dtype.name == (dtype or "float32")
        np.testing.assert_allclose(stored.astype("float32"), values, rtol=1e-2, atol=1e-6)
    loaded = weights_of(task.backbone)
    assert_same_weights(loaded, {n: v.astype("float32") for n, v in again.weights.items()})


def test_what_kerashub_cannot_compute_it_refuses_to_load(tmp_path):
    read = resolve.read(DISTILLED)
    keras_preset.write(
        tmp_path / "preset",
        read.config,
        read.weights,
        generation=read.generation,
        vocabulary=read.vocabulary,
        merges=read.merges,
    )
    again = resolve.read(tmp_path / "preset")
    assert (again.config, again.generation) == (read.config, read.generation)
    assert again.config.extensions()
    assert_same_weights(again.weights, dict(read.weights))
    with pytest.raises(ValueError, match="BartBackbone"):
        keras_hub.models.BartBackbone.from_preset(str(tmp_path / "preset"))


def test_a_backbone_alone_can_be_written_and_read(backbone, tmp_path):
    keras_preset.write(tmp_path / "preset", BartConfig(**SIZES), weights_of(backbone))
    assert refusal(tmp_path / "preset", TokenizerError)
    read = resolve.read(tmp_path / "preset", tokenizer=False)
    assert_same_weights(read.weights, weights_of(backbone))
    theirs = keras_hub.models.BartBackbone.from_preset(str(tmp_path / "preset"))
    assert_same_weights(weights_of(theirs), weights_of(backbone))


def test_generation_settings_survive(backbone, tmp_path):
    generation = GenerationConfig(num_beams=3, max_length=30, forced_bos_token_id=0)
    config = BartConfig(**SIZES)
    keras_preset.write(tmp_path / "preset", config, weights_of(backbone), generation=generation)
    again = resolve.read(tmp_path / "preset", tokenizer=False)
    assert again.generation == generation


def test_an_interrupted_write_leaves_what_was_there(backbone, tmp_path):
    """The weights end with an error halfway, as a full disk or a lost mount would have it."""
    place, config, weights = tmp_path / "preset", BartConfig(**SIZES), weights_of(backbone)

    class Interrupted(dict):
        def __getitem__(self, name):
            if name.startswith("decoder_position") and self.armed:
                raise OSError(28, "No space left on device")
            return super().__getitem__(name)

    halfway = Interrupted(weights)
    halfway.armed = True
    with pytest.raises(CheckpointError, match="No space left on device"):
        keras_preset.write(place, config, halfway)
    assert list(tmp_path.iterdir()) == []

    halfway.armed = False
    keras_preset.write(place, config, halfway)
    halfway.armed = True
    with pytest.raises(CheckpointError, match="No space left on device"):
        keras_preset.write(place, config, halfway)
    assert list(tmp_path.iterdir()) == [place]
    assert_same_weights(resolve.read(place, tokenizer=False).weights, weights)


def test_a_preset_is_replaced_and_anything_else_is_left_alone(backbone, tmp_path):
    place, config, weights = tmp_path / "preset", BartConfig(**SIZES), weights_of(backbone)
    place.mkdir()
    keras_preset.write(place, config, weights)
    changed = weights | {"token_embedding/embeddings": weights["token_embedding/embeddings"] + 1}
    keras_preset.write(place, config, changed)
    assert_same_weights(resolve.read(place, tokenizer=False).weights, changed)
    assert list(tmp_path.iterdir()) == [place]

    (tmp_path / "thesis").mkdir()
    # A Hugging Face checkpoint has a config.json as well.
    for held in (["chapter_1.txt"], ["chapter_1.txt", "config.json"], ["model.safetensors"]):
        for name in held:
            (tmp_path / "thesis" / name).write_text("It was")
        with pytest.raises(CheckpointError, match=rf"is not a preset: it holds \"{held[0]}\""):
            keras_preset.write(tmp_path / "thesis", config, weights)
        for name in held:
            (tmp_path / "thesis" / name).unlink()


def test_a_link_to_a_preset_stays_a_link(backbone, tmp_path):
    place, link = tmp_path / "preset", tmp_path / "link"
    config, weights = BartConfig(**SIZES), weights_of(backbone)
    keras_preset.write(place, config, weights)
    link.symlink_to(place)
    keras_preset.write(link, config, weights)
    assert link.is_symlink() and sorted(tmp_path.iterdir()) == [link, place]


def test_only_the_right_weights_are_written(backbone, tmp_path):
    weights = weights_of(backbone)
    del weights["token_embedding/embeddings"]
    weights["extra"] = np.zeros(3, "float32")
    with pytest.raises(CheckpointError, match="missing token_embedding/embeddings; surplus extra"):
        keras_preset.write(tmp_path / "preset", BartConfig(**SIZES), weights)
    with pytest.raises(CheckpointError, match="must have room for token_embedding"):
        keras_preset.write(
            tmp_path / "preset",
            BartConfig(**SIZES),
            weights_of(backbone),
            max_shard_size=TABLE_GIGABYTES / 2,
        )
    assert list(tmp_path.iterdir()) == []


def test_quantized_presets_are_refused(tokenizer, tmp_path):
    place = tmp_path / "preset"
    quantized = keras_hub.models.BartBackbone(**SIZES)
    quantized.quantize("int8", filters=lambda layer: layer.name == "token_embedding")
    quantized.save_to_preset(str(place))
    write_tokenizer(place, tokenizer)
    assert "presets that Keras has quantized cannot be read" in refusal(place)

    config = json.loads((place / "config.json").read_text())
    del config["config"]["dtype"]
    (place / "config.json").write_text(json.dumps(config))
    line = refusal(place)
    assert "model.weights.h5" in line
    assert "quantized" in line


@pytest.mark.parametrize(
    "policy", ["int8_from_float32", "int4/128_from_float32", {"class_name": 3}]
)
def test_quantized_policies_are_refused(preset, policy):
    config = json.loads((preset / "config.json").read_text())
    config["config"]["dtype"] = policy
    (preset / "config.json").write_text(json.dumps(config))
    assert "quantized" in refusal(preset)


def test_all_that_is_wrong_with_the_weights_is_in_one_line(preset):
    gone = "layers/transformer_encoder_1/_feedforward_output_dense/vars/1"
    rewrite(
        preset / "model.weights.h5",
        keep=lambda name: name != gone,
        add={
            "layers/layer_normalization/vars/0": np.zeros(15, "float32"),
            "layers/transformer_encoder_2/_feedforward_output_dense/vars/1": np.zeros(
                16, "float32"
            ),
        },
    )
    line = refusal(preset)
    assert f"missing {gone};" in line
    assert "surplus layers/transformer_encoder_2/_feedforward_output_dense/vars/1;" in line
    assert "layers/layer_normalization/vars/0 of shape [15] instead of [16]" in line


def test_many_findings_are_counted(preset):
    rewrite(preset / "model.weights.h5", keep=lambda name: "transformer" not in name)
    count = sum("transformer" in row.name for row in names.weights(BartConfig(**SIZES)))
    assert f"and {count - 12} more" in refusal(preset)


def test_other_models_are_refused_by_name(preset):
    edit_json(preset / "config.json", registered_name="keras_hub>GPT2Backbone")
    assert "describes a keras_hub>GPT2Backbone model" in refusal(preset, PresetError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 0}, "num_layers must be a positive integer"),
        ({"num_layer": 2}, "Did you mean num_layers?"),
        ({"hidden_dim": 15}, "divisible"),
        ({"dtype": 3}, "must name a dtype policy"),
    ],
)
def test_configurations_that_are_no_bart_are_refused(preset, changes, said):
    stored = json.loads((preset / "config.json").read_text())
    stored["config"] |= changes
    (preset / "config.json").write_text(json.dumps(stored))
    assert said in refusal(preset)


def test_the_encoder_never_takes_more_than_it_has_positions_for(preset):
    path = preset / "preprocessor.json"
    for stated, length in ((20, 20), (1024, 32), (None, 32)):
        edit_json(path, config={"encoder_sequence_length": stated})
        assert resolve.read(preset).encoder_sequence_length == length
    edit_json(path, config={"encoder_sequence_length": "long"})
    assert 'at least 3 tokens, received "long"' in refusal(preset)


@pytest.mark.parametrize("kept", [0, 100, 2000, 20_000, -1])
def test_a_weight_file_cut_short_is_refused(preset, kept):
    path = preset / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:kept])
    line = refusal(preset)
    assert str(path) in line
    assert "Fetch it again" in line


def test_every_flipped_bit_of_the_structure_is_refused_or_harmless(preset):
    """HDF5 has no checksums here: a flip may pass, but never as another error or another shape."""
    path = preset / "model.weights.h5"
    whole = path.read_bytes()
    rows = {row.name: row.shape for row in names.weights(BartConfig(**SIZES))}
    refused = 0
    for place in [*range(0, 120, 3), *range(120, 12_000, 293)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            weights = resolve.read(preset, tokenizer=False).weights
            shapes = {name: weights[name].shape for name in list(rows)[:5]}
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert shapes.items() <= rows.items()
    assert refused > 25


def test_datasets_in_other_files_are_not_followed(preset):
    path, secret = preset / "model.weights.h5", preset.parent / "secret"
    name = "layers/layer_normalization/vars/0"
    secret.write_bytes(np.ones(16, "float32").tobytes())
    rewrite(path, keep=lambda each: each != name)
    with h5py.File(path, "a") as file:
        file.create_dataset(name, (16,), "float32", external=[(secret, 0, 64)])
    assert f"does not hold the values of {name}" in refusal(preset)

    rewrite(path, keep=lambda each: each != name)
    with h5py.File(path, "a") as file:
        file[name] = h5py.ExternalLink(str(preset.parent / "other.h5"), "/x")
    assert f"missing {name}" in refusal(preset)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e39])
def test_numbers_that_float32_cannot_hold_are_refused_with_the_tensor(preset, value):
    name = "layers/layer_normalization/vars/0"
    rewrite(preset / "model.weights.h5", add={name: np.full(16, value, "float64")})
    weights = resolve.read(preset, tokenizer=False).weights
    with pytest.raises(CheckpointError, match=r"undefined numbers in the tensor .*, or some that"):
        dict(weights)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_numbers_of_the_other_byte_order_are_read(preset, dtype):
    path = preset / "model.weights.h5"
    expected = dict(resolve.read(preset, tokenizer=False).weights)
    with h5py.File(path) as file:
        values = file["layers/layer_normalization/vars/0"][()]
    rewrite(path, add={"layers/layer_normalization/vars/0": values.astype(dtype)})
    weights = dict(resolve.read(preset, tokenizer=False).weights)
    for name, values in expected.items():
        assert weights[name].dtype.isnative
        np.testing.assert_allclose(weights[name], values, rtol=2e-3)


def test_groups_are_followed_no_deeper_and_no_further_than_a_preset_has_them(preset, monkeypatch):
    path, whole = preset / "model.weights.h5", (preset / "model.weights.h5").read_bytes()
    with h5py.File(path, "a") as file:
        group = file["layers"]
        for _ in range(1000):
            group = group.create_group("x")
    assert "32 within each other" in refusal(preset)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["layers/round"] = file["layers"]
    assert "32 within each other" in refusal(preset)
    path.write_bytes(whole)
    monkeypatch.setattr(keras_weights, "MOST_ITEMS", 20)
    assert "at most 20 groups" in refusal(preset)


def test_a_missing_h5py_is_told(preset, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match="h5py"):
        resolve.read(preset)


def test_a_dataset_that_was_never_written_is_refused(preset):
    path, name = preset / "model.weights.h5", "layers/layer_normalization/vars/0"
    rewrite(path, keep=lambda each: each != name)
    with h5py.File(path, "a") as file:
        file.create_dataset(name, (16,), "float32")
    assert f"does not hold the values of {name}" in refusal(preset)
