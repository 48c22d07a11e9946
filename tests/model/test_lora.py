"""LoRA compared with KerasHub's: trained variables, files and merging."""

import keras
import keras_hub
import numpy as np
import pytest
from support.small_bart import SHAPE, assert_same_outputs, outputs, random_inputs, randomize

import bart_export
from bart_export import errors, models
from bart_export.checkpoints import weight_names
from bart_export.presets import PRESETS

# h5py converts Keras' variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def trained(model, seed=0):
    """Enable LoRA and set its matrices to random values."""
    model.enable_lora(2)
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if "lora" in variable.path:
            variable.assign(random.normal(size=variable.shape, scale=0.2))
    return model


@pytest.fixture(scope="module")
def mine():
    model = models.BartBackbone(**SHAPE)
    randomize(model)
    return trained(model)


@pytest.fixture(scope="module")
def theirs():
    model = keras_hub.models.BartBackbone(**SHAPE)
    randomize(model)
    return trained(model)


def test_the_same_variables_are_trained_as_in_keras_hub(mine, theirs):
    assert mine.default_lora_layer_names() == theirs.default_lora_layer_names()
    paths = [variable.path for variable in mine.trainable_variables]
    assert paths == [variable.path for variable in theirs.trainable_variables]
    assert any("lora_kernel_a" in path for path in paths)
    assert_same_outputs(mine, theirs)


def test_lora_files_are_interchangeable_with_keras_hubs(mine, theirs, tmp_path):
    mine.save_lora_weights(tmp_path / "mine.lora.h5")
    theirs.save_lora_weights(str(tmp_path / "theirs.lora.h5"))
    for made, file in ((models.BartBackbone, "theirs"), (keras_hub.models.BartBackbone, "mine")):
        fresh = made(**SHAPE)
        randomize(fresh)
        fresh.load_lora_weights(str(tmp_path / f"{file}.lora.h5"))
        fresh_biases = {v.path: v for v in fresh.variables}
        for variable in mine.variables:
            if variable.path.endswith("bias"):
                fresh_biases[variable.path].assign(variable)
        assert_same_outputs(fresh, mine)


def test_lora_is_merged_in_a_saved_preset(mine, tmp_path):
    mine.save_to_preset(tmp_path / "saved")
    assert list(mine.named_weights()) == [row.name for row in weight_names.weights(mine.config)]
    for made in (models.BartBackbone, keras_hub.models.BartBackbone):
        loaded = made.from_preset(str(tmp_path / "saved"))
        assert_same_outputs(loaded, mine)
        assert not any("lora" in variable.path for variable in loaded.variables)


def test_embedding_lora_is_merged_too(tmp_path):
    model = models.BartBackbone(**SHAPE)
    randomize(model)
    model.enable_lora(2, ["token_embedding"])
    inputs = random_inputs(2, 7, 5)
    before = outputs(model, inputs)["encoder_sequence_output"]
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    assert not np.allclose(outputs(model, inputs)["encoder_sequence_output"], before)
    model.save_to_preset(tmp_path / "saved")
    assert_same_outputs(models.BartBackbone.from_preset(str(tmp_path / "saved")), model)


def test_invalid_lora_is_rejected(mine, tmp_path):
    plain = models.BartBackbone(**SHAPE)
    for rank, layers in ((0, None), ("2", None), (1.0, None), (True, None), (2, ["no"]), (2, [])):
        with pytest.raises(errors.ConfigurationError, match="enable_lora needs a rank"):
            plain.enable_lora(rank, layers)
    for layers in ("query", 5, [None]):
        with pytest.raises(errors.ConfigurationError, match="must be a list of names, received"):
            plain.enable_lora(2, layers)
    assert plain.trainable_variables
    with pytest.raises(errors.ConfigurationError, match="LoRA enabled, received .* and 0 layers"):
        plain.save_lora_weights(tmp_path / "plain.lora.h5")
    with pytest.raises(errors.ConfigurationError, match=r"ends in \.lora\.h5"):
        mine.save_lora_weights(tmp_path / "mine.h5")
    mine.save_lora_weights(tmp_path / "mine.lora.h5")
    for use in (mine.save_lora_weights, mine.load_lora_weights, mine.save_to_preset,
                models.Backbone.from_preset):  # fmt: skip
        with pytest.raises(
            errors.ConfigurationError, match=r"must be a string or a path, received 5\."
        ):
            use(5)
    with pytest.raises(errors.ConfigurationError, match="max_shard_size must be a number of giga"):
        mine.save_to_preset(tmp_path / "saved", "yes")
    with pytest.raises(errors.ConfigurationError, match="load_weights must be true or false"):
        models.Backbone.from_preset("bart_mini_en", load_weights="no")
    plain.enable_lora(3)
    with pytest.raises(errors.ConfigurationError, match="has LoRA weights of rank 2 for"):
        plain.load_lora_weights(tmp_path / "mine.lora.h5")
    (tmp_path / "no.lora.h5").write_bytes(b"no")
    with pytest.raises(errors.CheckpointError, match="is not a LoRA weights file"):
        plain.load_lora_weights(tmp_path / "no.lora.h5")


def test_the_base_class_loads_the_presets_class(mine, tmp_path):
    mine.save_to_preset(tmp_path / "saved")
    for base in (bart_export.Backbone, models.Backbone):
        loaded = base.from_preset(str(tmp_path / "saved"))
        assert type(loaded) is models.BartBackbone
        assert_same_outputs(loaded, mine)
    assert issubclass(models.BartBackbone, models.Backbone)
    assert isinstance(loaded, keras.Model)


def test_presets_have_the_form_of_keras_hub():
    theirs = keras_hub.models.BartBackbone.presets
    for presets in (models.BartBackbone.presets, models.Backbone.presets):
        assert presets.keys() == PRESETS.keys()
        for name, preset in theirs.items():
            assert presets[name]["kaggle_handle"] == preset["kaggle_handle"]
            assert presets[name]["metadata"].keys() == preset["metadata"].keys()
            assert presets[name]["metadata"]["path"] == preset["metadata"]["path"]
