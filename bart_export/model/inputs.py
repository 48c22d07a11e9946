"""What may be fed to a `BartBackbone`: checks that Keras does not make.

The named inputs of a call come in, and go on unchanged or are refused with one line. Arrays and
eager tensors are checked whole; tensors of a graph as far as their shapes are known. It knows
sizes, not layers or weights.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from bart_export.config import BartConfig
from bart_export.errors import InputError
from bart_export.model.layers import check_length

SIDES = ("encoder", "decoder")


def check_inputs(inputs: Mapping[str, Any], config: BartConfig) -> None:
    """Refuse what the model would fail on without saying why, or would silently miscompute.

    Raises:
        InputError: as `BartBackbone.__call__` says.
    """
    shapes = {}
    for name in (f"{side}_{part}" for side in SIDES for part in ("token_ids", "padding_mask")):
        if name not in inputs:
            raise InputError(
                f"BartBackbone needs the input {name}, received {', '.join(inputs) or 'none'}."
            )
        shapes[name] = shape = static_shape(inputs[name])
        if len(shape) != 2:
            raise InputError(f"{name} must have the axes (batch, length), received shape {shape}.")
        if shape[1] is not None:
            check_length(shape[1], config.max_sequence_length)
    first = shapes["encoder_token_ids"]
    for side in SIDES:
        ids, mask = shapes[f"{side}_token_ids"], shapes[f"{side}_padding_mask"]
        if not (same(ids[0], mask[0]) and same(ids[1], mask[1])):
            raise InputError(
                f"{side}_padding_mask must have the shape of {side}_token_ids, received {mask} "
                f"and {ids}."
            )
        if not same(ids[0], first[0]):
            raise InputError(
                f"encoder and decoder inputs must have the same batch size, received {first[0]} "
                f"and {ids[0]}."
            )
        check_token_ids(f"{side}_token_ids", inputs[f"{side}_token_ids"], config.vocabulary_size)


def check_token_ids(name: str, token_ids: Any, vocabulary_size: int) -> None:
    """Refuse ids outside the vocabulary; tensors of a graph have no values yet and pass.

    Raises:
        InputError: naming the first such id.
    """
    symbolic = isinstance(token_ids, keras.KerasTensor) or (
        keras.ops.is_tensor(token_ids) and not hasattr(token_ids, "numpy")
    )
    if symbolic:
        return
    values = np.asarray(token_ids)
    outside = values[(values < 0) | (values >= vocabulary_size)]
    if outside.size:
        raise InputError(
            f"{name} must be ids from 0 to {vocabulary_size - 1}, received {outside[0]}."
        )


def static_shape(value: Any) -> tuple[int | None, ...]:
    """Return the shape of an array, a list or a tensor, None where a graph does not know a size."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return tuple(np.shape(value))
    if getattr(shape, "rank", 0) is None:  # tf.TensorShape(None)
        return (None, None)
    return tuple(shape)


def same(size: int | None, other: int | None) -> bool:
    """Say whether two sizes are equal, as far as they are known."""
    return size is None or other is None or size == other
