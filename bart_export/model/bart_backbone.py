"""`BartBackbone`, a drop-in replacement for `keras_hub.models.BartBackbone`."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from bart_export.checkpoints.files import JsonObject
from bart_export.checkpoints.keras_preset import KERAS_FIELDS
from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS
from bart_export.config import BartConfig, check_flag, require
from bart_export.errors import ConfigurationError, InputError, shown
from bart_export.model.backbone import Backbone, constructor_arguments
from bart_export.model.layers import (
    EPSILON,
    LogitsBias,
    PositionEmbedding,
    Tensor,
    TransformerDecoder,
    TransformerEncoder,
    TransformerLayer,
    initializer,
    require_length,
)

SIDES = ("encoder", "decoder")


@keras.saving.register_keras_serializable("bart_export")
class BartBackbone(Backbone):
    """BART's encoder and decoder without a head.

    The inputs are a dictionary of int32 tensors: `encoder_token_ids` and `encoder_padding_mask`
    (batch, source), `decoder_token_ids` and `decoder_padding_mask` (batch, length). Masks are
    nonzero for tokens and zero for padding. The outputs are `encoder_sequence_output`
    (batch, source, hidden_dim) and `decoder_sequence_output` (batch, length, hidden_dim).

    Args:
        vocabulary_size: number of tokens.
        num_layers: number of encoder layers.
        num_heads: number of attention heads per encoder layer; it must divide hidden_dim.
        hidden_dim: width of the hidden states.
        intermediate_dim: width of the encoder's feed-forward networks.
        dropout: dropout rate in training.
        max_sequence_length: maximum number of tokens of a source or a decoded sequence.
        dtype: name, `keras.DTypePolicy` or its serialized form; the global policy by default.
        name: the model's name.
        trainable: whether `fit` changes the weights.
        **extensions: fields of `BartConfig` beyond KerasHub's: decoder_num_layers,
            decoder_num_heads and decoder_intermediate_dim (the encoder's by default),
            scale_embedding (False), activation_function ("gelu") and final_logits_bias (False).

    Attributes:
        config: the `BartConfig` with these arguments; KerasHub's fields are also attributes.

    Raises:
        ConfigurationError: for an invalid value or an unknown argument.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float = 0.1,
        max_sequence_length: int = 1024,
        dtype: object = None,
        *,
        name: str | None = None,
        trainable: bool = True,
        **extensions: object,
    ) -> None:
        config = BartConfig.from_dict(
            {
                "vocabulary_size": vocabulary_size,
                "num_layers": num_layers,
                "num_heads": num_heads,
                "hidden_dim": hidden_dim,
                "intermediate_dim": intermediate_dim,
                "dropout": dropout,
                "max_sequence_length": max_sequence_length,
                **extensions,
            }
        )
        accepted = name is None or (isinstance(name, str) and "/" not in name)
        require(accepted, "name", "a string without a slash", name)
        check_flag("trainable", trainable)
        self.config = config
        policy = dtype_policy(dtype)
        inputs = {
            f"{side}_{part}": keras.Input((None,), dtype="int32", name=f"{side}_{part}")
            for side in SIDES
            for part in ("token_ids", "padding_mask")
        }

        # The order of the attributes is that of the weights, and must be KerasHub's.
        self.token_embedding = keras.layers.ReversibleEmbedding(
            config.vocabulary_size,
            config.hidden_dim,
            embeddings_initializer=initializer(),
            dtype=policy,
            name="token_embedding",
        )
        self.token_embedding_scale = (
            keras.layers.Rescaling(
                config.hidden_dim**0.5, dtype=policy, name="token_embedding_scale"
            )
            if config.scale_embedding
            else None
        )
        encoded = self._embed("encoder", inputs["encoder_token_ids"], policy)
        self.encoder_transformer_layers = [
            self._layer(TransformerEncoder, f"transformer_encoder_layer_{layer}", policy)
            for layer in range(config.num_layers)
        ]
        for encoder_layer in self.encoder_transformer_layers:
            encoded = encoder_layer(encoded, padding_mask=inputs["encoder_padding_mask"])

        decoded = self._embed("decoder", inputs["decoder_token_ids"], policy)
        self.decoder_transformer_layers = [
            self._layer(TransformerDecoder, f"transformer_decoder_layer_{layer}", policy)
            for layer in range(config.decoder_layers)
        ]
        for decoder_layer in self.decoder_transformer_layers:
            decoded = decoder_layer(
                decoder_sequence=decoded,
                encoder_sequence=encoded,
                decoder_padding_mask=inputs["decoder_padding_mask"],
                encoder_padding_mask=inputs["encoder_padding_mask"],
            )
        self.logits_bias = (
            LogitsBias(config.vocabulary_size, dtype=policy, name=FINAL_LOGITS_BIAS)
            if config.final_logits_bias
            else None
        )

        super().__init__(
            inputs=inputs,
            outputs={"encoder_sequence_output": encoded, "decoder_sequence_output": decoded},
            name=name,
            trainable=trainable,
        )
        self.dtype_policy = policy
        for field in KERAS_FIELDS:
            setattr(self, field, getattr(config, field))

    def _layer(
        self, kind: type[TransformerLayer], name: str, policy: keras.DTypePolicy
    ) -> TransformerLayer:
        """Return an encoder or decoder layer."""
        config, encoder = self.config, kind is TransformerEncoder
        return kind(
            config.intermediate_dim if encoder else config.decoder_feedforward,
            config.num_heads if encoder else config.decoder_heads,
            config.dropout,
            config.activation_function,
            dtype=policy,
            name=name,
        )

    def _embed(self, side: str, token_ids: Tensor, policy: keras.DTypePolicy) -> Tensor:
        """Map ids (batch, length) to embeddings (batch, length, hidden)."""
        sublayers = {
            "position_embedding": PositionEmbedding(
                self.config.max_sequence_length,
                dtype=policy,
                name=f"{side}_position_embedding",
            ),
            "embeddings_add": keras.layers.Add(dtype=policy, name=f"{side}_embeddings_add"),
            "embeddings_layer_norm": keras.layers.LayerNormalization(
                epsilon=EPSILON, dtype=policy, name=f"{side}_embeddings_layer_norm"
            ),
            "embeddings_dropout": keras.layers.Dropout(
                self.config.dropout, dtype=policy, name=f"{side}_embeddings_dropout"
            ),
        }
        for word, layer in sublayers.items():
            setattr(self, f"{side}_{word}", layer)
        tokens = self.token_embedding(token_ids)
        if self.token_embedding_scale is not None:
            tokens = self.token_embedding_scale(tokens)
        hidden = sublayers["embeddings_add"]((tokens, sublayers["position_embedding"](tokens)))
        hidden = sublayers["embeddings_layer_norm"](hidden)
        return sublayers["embeddings_dropout"](hidden)

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model on `inputs`.

        Raises:
            InputError: if an input is missing, longer than max_sequence_length or inconsistent
            with the others, or if, outside a graph, an id is not in the vocabulary.
        """
        if isinstance(inputs, dict):
            require_inputs(inputs, self.config)
        return super().__call__(inputs, *args, **kwargs)

    def logits(self, decoder_sequence_output: Tensor) -> Tensor:
        """Return logits (batch, length, vocabulary_size) in the compute dtype.

        They are the decoder's hidden states (batch, length, hidden_dim) times the token embedding,
        plus the bias if the checkpoint has one.
        """
        logits = self.token_embedding(decoder_sequence_output, reverse=True)
        return logits if self.logits_bias is None else self.logits_bias(logits)

    @property
    def token_embedding(self) -> keras.layers.ReversibleEmbedding:
        """The `keras.layers.ReversibleEmbedding` shared by encoder, decoder and logits."""
        return self._token_embedding

    @token_embedding.setter
    def token_embedding(self, layer: keras.layers.ReversibleEmbedding) -> None:
        self._token_embedding = layer

    def get_config(self) -> JsonObject:
        """Return the constructor's arguments: KerasHub's, and the extensions in use."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            **constructor_arguments(self.config),
        }

    @classmethod
    def from_config(cls, config: JsonObject) -> "BartBackbone":
        """Return a model with a configuration from `get_config`."""
        return cls(**config)


def dtype_policy(dtype: object) -> keras.DTypePolicy:
    """Return the `keras.DTypePolicy` for a name or a serialized policy; None means the global one.

    Raises:
        ConfigurationError: if Keras does not know the policy.
    """
    try:
        return keras.dtype_policies.get(keras.config.dtype_policy() if dtype is None else dtype)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"dtype must name a Keras dtype policy such as float32, bfloat16 or mixed_float16, "
            f"received {shown(dtype)}."
        ) from error


def require_inputs(inputs: Mapping[str, Tensor], config: BartConfig) -> None:
    """Reject inputs that would fail with an obscure error, or give wrong results.

    Raises:
        InputError: see `BartBackbone.__call__`.
    """
    shapes = {}
    for name in (f"{side}_{part}" for side in SIDES for part in ("token_ids", "padding_mask")):
        if name not in inputs:
            raise InputError(
                f"BartBackbone needs the input {name}, received {', '.join(inputs) or 'none'}."
            )
        shapes[name] = shape = static_shape(inputs[name])
        if len(shape) != 2:
            raise InputError(f"{name} must have shape (batch, length), received {shape}.")
        if shape[1] is not None:
            require_length(shape[1], config.max_sequence_length)
    first = shapes["encoder_token_ids"]
    for side in SIDES:
        ids, mask = shapes[f"{side}_token_ids"], shapes[f"{side}_padding_mask"]
        if not (may_equal(ids[0], mask[0]) and may_equal(ids[1], mask[1])):
            raise InputError(
                f"{side}_padding_mask must have the shape of {side}_token_ids, received {mask} "
                f"and {ids}."
            )
        if not may_equal(ids[0], first[0]):
            raise InputError(
                f"Encoder and decoder inputs must have the same batch size, received {first[0]} "
                f"and {ids[0]}."
            )
        require_known_ids(f"{side}_token_ids", inputs[f"{side}_token_ids"], config.vocabulary_size)


def require_known_ids(name: str, token_ids: Tensor, vocabulary_size: int) -> None:
    """Raise InputError for an id outside the vocabulary; tensors of a graph are not checked."""
    symbolic = isinstance(token_ids, keras.KerasTensor) or (
        keras.ops.is_tensor(token_ids) and not hasattr(token_ids, "numpy")
    )
    if symbolic:
        return
    values = np.asarray(token_ids)
    outside = values[(values < 0) | (values >= vocabulary_size)]
    if outside.size:
        raise InputError(f"{name} must be from 0 to {vocabulary_size - 1}, received {outside[0]}.")


def static_shape(value: Tensor) -> tuple[int | None, ...]:
    """Return the shape of an array, a list or a tensor, with None for unknown sizes."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return tuple(np.shape(value))
    if getattr(shape, "rank", 0) is None:  # tf.TensorShape(None)
        return (None, None)
    return tuple(shape)


def may_equal(size: int | None, other: int | None) -> bool:
    """Return whether two sizes are equal, or one of them is unknown."""
    return size is None or other is None or size == other
