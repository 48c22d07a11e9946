"""Layer names: every matrix has one, and it is the one that people write."""

from bart_export.checkpoints import names
from bart_export.checkpoints.names import layer_names
from bart_export.config import BartConfig

CONFIG = BartConfig(
    vocabulary_size=8,
    num_layers=1,
    decoder_num_layers=2,
    num_heads=1,
    hidden_dim=4,
    intermediate_dim=4,
)
ENCODER = (
    "self_attention_query", "self_attention_key", "self_attention_value", "self_attention_output",
    "feedforward_intermediate", "feedforward_output",
)  # fmt: skip
CROSS = (
    "cross_attention_query", "cross_attention_key", "cross_attention_value",
    "cross_attention_output",
)  # fmt: skip


def test_names_are_spelled_as_people_write_them():
    expected = {"token_embedding", "encoder/position_embedding", "decoder/position_embedding"}
    expected |= {f"encoder/layer_0/{name}" for name in ENCODER}
    expected |= {f"decoder/layer_{i}/{name}" for i in (0, 1) for name in ENCODER + CROSS}
    assert set(layer_names(CONFIG)) == expected


def test_each_names_its_weight_and_no_matrix_is_left_out():
    given = layer_names(CONFIG)
    assert given["decoder/layer_1/feedforward_output"] == (
        "transformer_decoder_layer_1/feedforward_output_dense/kernel"
    )
    assert given["encoder/layer_0/self_attention_value"] == (
        "transformer_encoder_layer_0/self_attention_layer/value/kernel"
    )
    matrices = {row.name for row in names.weights(CONFIG) if len(row.shape) > 1}
    assert set(given.values()) == {name for name in matrices if not name.endswith("/bias")}
