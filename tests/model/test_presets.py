"""Loading and saving presets, compared with KerasHub and golden answers."""

import json

import keras
import keras_hub
import numpy as np
import pytest
from support.golden_cases import GOLDEN, MODELS, GoldenCases
from support.small_bart import SHAPE, assert_same_outputs, randomize

from bart_export import BartBackbone, errors
from bart_export.checkpoints import resolve
from bart_export.presets import PRESETS

SYMMETRIC, DISTILLED = (GOLDEN / name for name in MODELS)

# h5py converts Keras' variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="session")
def their_preset(keras_hub_backbone, tmp_path_factory):
    directory = tmp_path_factory.mktemp("theirs") / "preset"
    keras_hub_backbone.save_to_preset(str(directory))
    return directory


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_golden_checkpoints_give_the_golden_answers(name, dtype):
    model = BartBackbone.from_preset(str(GOLDEN / name), dtype=dtype)
    cases = GoldenCases(name)
    inputs = {key: cases.forward[key] for key in cases.forward if key in model.input}
    inputs["decoder_padding_mask"] = np.ones_like(inputs["decoder_token_ids"])
    received = {key: np.asarray(value) for key, value in model(inputs).items()}
    received["logits"] = np.asarray(model.logits(received["decoder_sequence_output"]))
    for output, value in received.items():
        assert value.dtype == dtype
        cases.assert_close(output, value)
    if dtype == "float64":  # the golden values are float32, with an error of 5e-7 at 12
        np.testing.assert_allclose(value, cases.forward["logits"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("directory", [SYMMETRIC, DISTILLED], ids=lambda path: path.name)
def test_from_checkpoint_and_from_preset_are_equal(directory):
    model = BartBackbone.from_checkpoint(resolve.read(directory))
    again = BartBackbone.from_preset(str(directory))
    assert model.config == again.config
    for weight, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), np.asarray(other))


@pytest.mark.parametrize("max_shard_size", [10, 5e-5], ids=["whole", "sharded"])
def test_keras_hub_loads_saved_presets(backbone, tmp_path, max_shard_size):
    directory = tmp_path / "preset"
    backbone.save_to_preset(directory, max_shard_size=max_shard_size)
    assert (directory / "model.weights.h5").is_file() == (max_shard_size == 10)
    theirs = keras_hub.models.BartBackbone.from_preset(str(directory))
    assert_same_outputs(backbone, theirs)
    assert_same_outputs(BartBackbone.from_preset(str(directory)), theirs)


def test_keras_hub_rejects_presets_with_extensions(tmp_path):
    model = BartBackbone.from_preset(str(DISTILLED))
    model.save_to_preset(tmp_path / "preset")
    loaded = BartBackbone.from_preset(str(tmp_path / "preset"))
    assert_same_outputs(loaded, model, tolerance=0)
    assert loaded.config == model.config
    hidden = np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32)
    np.testing.assert_array_equal(loaded.logits(hidden), model.logits(hidden))
    with pytest.raises(ValueError):
        keras_hub.models.BartBackbone.from_preset(str(tmp_path / "preset"))


def test_the_embedded_preset_loads_by_name():
    model = BartBackbone.from_preset("bart_mini_en")
    assert model.count_params() == PRESETS["bart_mini_en"].parameters
    assert "bart_mini_en" in BartBackbone.presets


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_float16"])
def test_a_preset_keeps_its_dtype_policy(dtype, tmp_path):
    model = BartBackbone(**SHAPE, dtype=dtype)
    randomize(model)
    model.save_to_preset(tmp_path / "preset")
    loaded = BartBackbone.from_preset(str(tmp_path / "preset"))
    assert loaded.dtype_policy.name == dtype
    assert {weight.dtype for weight in loaded.weights} == {weight.dtype for weight in model.weights}
    assert_same_outputs(loaded, model, tolerance=0)
    theirs = keras_hub.models.BartBackbone.from_preset(str(tmp_path / "preset"), dtype=dtype)
    assert_same_outputs(loaded, theirs, tolerance=0.05)


def test_a_preset_without_dtype_uses_the_global_policy(their_preset, tmp_path):
    stored = json.loads((their_preset / "config.json").read_text())
    del stored["config"]["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = BartBackbone.from_preset(str(tmp_path), load_weights=False)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.dtype_policy.name == "bfloat16"


def test_arguments_that_fit_the_weights_override_the_preset(their_preset):
    model = BartBackbone.from_preset(
        str(their_preset), dropout=0.3, name="mine", trainable=False, dtype="bfloat16", num_layers=2
    )
    assert (model.dropout, model.name, model.trainable) == (0.3, "mine", False)
    assert {weight.dtype for weight in model.weights} == {"bfloat16"}


def test_without_weights_any_argument_overrides_the_preset(their_preset, tmp_path):
    (tmp_path / "config.json").write_bytes((their_preset / "config.json").read_bytes())
    model = BartBackbone.from_preset(
        str(tmp_path), load_weights=False, num_layers=1, max_sequence_length=8
    )
    assert len(model.encoder_transformer_layers) == len(model.decoder_transformer_layers) == 1
    assert model.max_sequence_length == 8
    drawn = np.asarray(model.named_weights()["token_embedding/embeddings"])
    assert drawn.std() == pytest.approx(0.02, rel=0.2)


def test_saving_over_a_preset_keeps_its_tokenizer(tmp_path):
    source = resolve.read(PRESETS["bart_mini_en"].directory)
    model = BartBackbone(**{**SHAPE, "vocabulary_size": source.config.vocabulary_size})
    directory = tmp_path / "preset"
    model.save_to_preset(directory)
    with pytest.raises(errors.TokenizerError):
        resolve.read(directory)
    tokenizer = directory / "assets" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for file in (
        "tokenizer.json",
        "assets/tokenizer/vocabulary.json",
        "assets/tokenizer/merges.txt",
    ):
        (directory / file).write_bytes((source.directory / file).read_bytes())
    model.save_to_preset(directory)
    assert resolve.read(directory).vocabulary == source.vocabulary
    assert resolve.read(directory).merges == source.merges


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"num_layers": 1}, "require num_layers=2, received num_layers=1"),
        ({"scale_embedding": True}, "require scale_embedding=False"),
        ({"num_heads": 8}, "require num_heads=4"),
        ({"foo": 1}, "Unknown parameter foo=1"),
        ({"dtype": "float23"}, "dtype must name a Keras dtype policy"),
    ],
)
def test_overrides_that_do_not_fit_the_weights_are_rejected(their_preset, override, message):
    with pytest.raises(errors.ConfigurationError, match=message):
        BartBackbone.from_preset(str(their_preset), **override)


def test_assigned_weights_must_match_the_model(backbone):
    weights = {name: np.asarray(weight) for name, weight in backbone.named_weights().items()}
    before = weights["encoder_embeddings_layer_norm/beta"].copy()
    wrong = {name: value + 1 for name, value in weights.items() if "position" not in name}
    with pytest.raises(
        errors.CheckpointError,
        match="missing decoder_position_embedding/embeddings, encoder_position_embedding/embeddings"
        "; unexpected lm_head",
    ):
        backbone.assign_weights({**wrong, "lm_head": before})
    np.testing.assert_array_equal(
        backbone.named_weights()["encoder_embeddings_layer_norm/beta"], before
    )
    weights["encoder_embeddings_layer_norm/beta"] = before[:1]
    with pytest.raises(errors.CheckpointError, match=r"layer_norm/beta must have shape \(32,\)"):
        backbone.assign_weights(weights)
