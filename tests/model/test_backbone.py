"""`BartBackbone` compared with KerasHub's: names, outputs and uses."""

import keras
import keras_hub
import numpy as np
import pytest
from support.small_bart import SHAPE, assert_same_outputs, masked, outputs, random_inputs, randomize

from bart_export import BartBackbone, errors
from bart_export.checkpoints import weight_names
from bart_export.config import ACTIVATION_FUNCTIONS
from bart_export.model.layers import ACTIVATIONS

EXTENDED = {
    **SHAPE,
    "decoder_num_layers": 1,
    "decoder_num_heads": 2,
    "decoder_intermediate_dim": 40,
    "scale_embedding": True,
    "activation_function": "relu",
    "final_logits_bias": True,
}


# h5py converts Keras' variables in a way that NumPy 2 deprecates.
saves_with_keras = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    "case", ["whole", "padded", "padded on the left", "with holes", "with nothing to see"]
)
def test_outputs_equal_keras_hubs_under_every_mask(backbone, keras_hub_backbone, case):
    assert_same_outputs(backbone, keras_hub_backbone, masked(random_inputs(3, 11, 7), case))


def test_outputs_equal_keras_hubs_without_dropout():
    # KerasHub then uses another attention, which differs for queries without visible keys.
    mine = BartBackbone(**SHAPE, dropout=0.0)
    theirs = keras_hub.models.BartBackbone(**SHAPE, dropout=0.0)
    randomize(mine)
    randomize(theirs)
    assert_same_outputs(mine, theirs, masked(random_inputs(3, 11, 7), "padded"))


@pytest.mark.filterwarnings("ignore:.*softmax over axis:UserWarning")  # KerasHub's
@pytest.mark.parametrize(("source", "length"), [(1, 1), (24, 1), (1, 24), (24, 24)])
def test_outputs_equal_keras_hubs_at_every_length(backbone, keras_hub_backbone, source, length):
    assert_same_outputs(backbone, keras_hub_backbone, random_inputs(2, source, length))


def test_a_single_token_causes_no_warning(backbone):
    inputs = random_inputs(2, 1, 1)
    assert np.isfinite(outputs(backbone, inputs)["decoder_sequence_output"]).all()


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_every_layer_uses_the_activation(name):
    mine = BartBackbone(**SHAPE, activation_function=name)
    theirs = keras_hub.models.BartBackbone(**SHAPE)
    randomize(mine)
    randomize(theirs)
    for layer in theirs.encoder_transformer_layers + theirs.decoder_transformer_layers:
        layer._feedforward_intermediate_dense.activation = ACTIVATIONS[name]
    assert_same_outputs(mine, theirs, random_inputs(2, 9, 5))


def test_masks_may_be_boolean_or_floating(backbone):
    inputs = masked(random_inputs(3, 11, 7), "padded")
    expected = outputs(backbone, inputs)
    for dtype in ("bool", "int64", "float32"):
        same = {name: value.astype(dtype) if "mask" in name else value
                for name, value in inputs.items()}  # fmt: skip
        for name, value in outputs(backbone, same).items():
            np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("bfloat16", 0.05), ("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)]
)
def test_dtype_policies_work_as_in_keras_hub(dtype, tolerance):
    mine = BartBackbone(**SHAPE, dtype=dtype)
    theirs = keras_hub.models.BartBackbone(**SHAPE, dtype=dtype)
    randomize(mine)
    randomize(theirs)
    inputs = masked(random_inputs(3, 11, 7), "padded")
    assert {w.dtype for w in mine.weights} == {w.dtype for w in theirs.weights}
    received, expected = mine(inputs), theirs(inputs)
    for name, value in expected.items():
        assert received[name].dtype == value.dtype
    assert_same_outputs(mine, theirs, inputs, tolerance)


def test_weights_and_layers_have_keras_hubs_names_order_and_shapes(backbone, keras_hub_backbone):
    mine, theirs = (
        [(weight.path, tuple(weight.shape)) for weight in model.weights]
        for model in (backbone, keras_hub_backbone)
    )
    assert mine == theirs
    assert mine == [(row.name, row.shape) for row in weight_names.weights(backbone.config)]
    assert [layer.name for layer in backbone.layers] == [
        layer.name for layer in keras_hub_backbone.layers
    ]
    assert backbone.count_params() == weight_names.parameter_count(backbone.config)


def test_attributes_are_keras_hubs(backbone, keras_hub_backbone):
    for name in (*SHAPE, "dropout"):
        assert getattr(backbone, name) == getattr(keras_hub_backbone, name)
    assert len(backbone.encoder_transformer_layers) == 2
    assert len(backbone.decoder_transformer_layers) == 2
    assert isinstance(backbone.token_embedding, keras.layers.ReversibleEmbedding)


def test_the_token_embedding_can_be_set():
    model, other = BartBackbone(**SHAPE), keras.layers.ReversibleEmbedding(97, 32)
    model.token_embedding = other
    assert model.token_embedding is other


def test_configuration_has_keras_hubs_keys_and_restores_the_model(backbone, keras_hub_backbone):
    config, theirs = backbone.get_config(), keras_hub_backbone.get_config()
    assert config.keys() == theirs.keys()
    assert config | {"name": ""} == theirs | {"name": ""}
    again = BartBackbone.from_config(config)
    assert (again.config, again.name) == (backbone.config, backbone.name)
    # A decoder value equal to the encoder's is not an extension.
    assert BartBackbone(**SHAPE, decoder_num_layers=2).get_config().keys() == config.keys()


def test_configuration_of_an_extended_model_adds_the_extensions_in_use():
    model = BartBackbone(**EXTENDED, dtype="bfloat16", trainable=False, name="mine")
    config = model.get_config()
    assert {name: config[name] for name in EXTENDED} == EXTENDED
    again = BartBackbone.from_config(config)
    assert again.config == model.config
    assert again.dtype_policy.name == "bfloat16"
    assert (again.name, again.trainable) == ("mine", False)


@saves_with_keras
@pytest.mark.parametrize("shape", [SHAPE, EXTENDED], ids=["plain", "extended"])
def test_keras_saves_and_loads_the_whole_model(shape, tmp_path):
    model = BartBackbone(**shape)
    randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is BartBackbone
    inputs = random_inputs(2, 9, 5)
    hidden = {name: np.asarray(value) for name, value in model(inputs).items()}
    for name, value in loaded(inputs).items():
        np.testing.assert_array_equal(value, hidden[name])
    decoded = hidden["decoder_sequence_output"]
    np.testing.assert_array_equal(loaded.logits(decoded), model.logits(decoded))


@saves_with_keras
def test_a_model_built_on_the_backbone_is_saved_and_loaded(backbone, tmp_path):
    pooled = keras.layers.GlobalAveragePooling1D()(backbone.output["decoder_sequence_output"])
    classifier = keras.Model(backbone.input, keras.layers.Dense(3)(pooled))
    classifier.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    inputs = random_inputs(2, 9, 5)
    np.testing.assert_array_equal(loaded(inputs), classifier(inputs))


@saves_with_keras
def test_weight_files_are_interchangeable_with_keras_hubs(backbone, keras_hub_backbone, tmp_path):
    inputs = random_inputs(2, 9, 5)
    keras_hub_backbone.save_weights(tmp_path / "theirs.weights.h5")
    mine = BartBackbone(**SHAPE)
    mine.load_weights(tmp_path / "theirs.weights.h5")
    assert_same_outputs(mine, keras_hub_backbone, inputs)
    backbone.save_weights(tmp_path / "mine.weights.h5")
    theirs = keras_hub.models.BartBackbone(**SHAPE)
    theirs.load_weights(tmp_path / "mine.weights.h5")
    assert_same_outputs(backbone, theirs, inputs)


class Copier(keras.Model):
    """Trains a backbone to copy its source."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def call(self, inputs, training=None):
        hidden = self.backbone(inputs, training=training)["decoder_sequence_output"]
        return keras.ops.cast(self.backbone.logits(hidden), "float32")


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16"])
def test_fit_lowers_the_loss(dtype):
    keras.utils.set_random_seed(0)
    model = Copier(BartBackbone(**{**SHAPE, "num_layers": 1}, dtype=dtype))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Adam does not change bfloat16 weights, because its beta_2 of 0.999 rounds to 1.
    model.compile(keras.optimizers.SGD(0.3), loss, jit_compile=False)
    inputs = random_inputs(32, 6, 6)
    inputs["encoder_token_ids"] %= 8
    targets = inputs["encoder_token_ids"]
    inputs["decoder_token_ids"] = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    losses = model.fit(inputs, targets, batch_size=16, epochs=12, verbose=0).history["loss"]
    assert losses[0] > 3 and losses[-1] < 2.4


def test_neither_a_frozen_backbone_nor_the_logits_bias_is_trained():
    assert Copier(BartBackbone(**SHAPE, trainable=False)).trainable_weights == []
    model = BartBackbone(**EXTENDED)
    assert [weight.path for weight in model.non_trainable_weights] == ["final_logits_bias"]


def test_dropout_applies_only_in_training(backbone):
    inputs = random_inputs(2, 9, 5)
    calls = [outputs(backbone, inputs)["encoder_sequence_output"] for _ in range(2)]
    np.testing.assert_array_equal(*calls)
    trained = np.asarray(backbone(inputs, training=True)["encoder_sequence_output"])
    assert np.abs(trained - calls[0]).max() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "divisible by num_heads"),
        ({"decoder_num_heads": 3}, "divisible by decoder_num_heads"),
        ({"vocabulary_size": 0}, "vocabulary_size must be a positive integer"),
        ({"max_sequence_length": None}, "max_sequence_length must be a positive integer"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"num_layer": 3}, "Did you mean num_layers"),
        ({"activation_function": "swish"}, "activation_function must be one of"),
        ({"dtype": "float23"}, "dtype must name a Keras dtype policy"),
        ({"dtype": 7}, "dtype must name a Keras dtype policy"),
        ({"name": 7}, "name must be a string without a slash"),
        ({"name": "a/b"}, "name must be a string without a slash"),
        ({"trainable": "yes"}, "trainable must be true or false"),
    ],
)
def test_invalid_configurations_are_rejected(changes, message):
    with pytest.raises(errors.ConfigurationError, match=message):
        BartBackbone(**{**SHAPE, **changes})
