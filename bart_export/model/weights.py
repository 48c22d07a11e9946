"""How a model's weights begin, how they are set, and how they are read.

Flows in: a Keras model's variables by name, and arrays by the same names. Flows out: the variables
set, or the arrays. It knows neither layers nor files.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from bart_export.errors import CheckpointError

# Drawing the weights takes most of the time to build a model, and is in vain when a checkpoint
# replaces them.
_draw_weights = contextvars.ContextVar("draw_weights", default=True)


@contextlib.contextmanager
def weights_left_at_zero() -> Iterator[None]:
    """Build the layers of the block with weights of zeros, for a checkpoint to fill."""
    token = _draw_weights.set(False)
    try:
        yield
    finally:
        _draw_weights.reset(token)


def initializer() -> keras.initializers.Initializer:
    """Return BART's initializer. One each weight: an instance draws the same numbers again."""
    if _draw_weights.get():
        return keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.initializers.Zeros()


class WeightArrays(Mapping[str, npt.NDArray[Any]]):
    """Variables by name as NumPy arrays, each copied out of the model when it is looked up."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.variables = variables

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(self.variables[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)


def assign(variables: Mapping[str, Any], weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Set every variable by name, reading one array at a time.

    Raises:
        CheckpointError: naming all arrays that are missing or surplus, before any variable is
            set; or the first of another shape.
    """
    findings = [
        f"{word} {', '.join(sorted(names))}"
        for word, names in (
            ("missing", variables.keys() - weights.keys()),
            ("surplus", weights.keys() - variables.keys()),
        )
        if names
    ]
    if findings:
        raise CheckpointError(
            f"The weights are not those of the model's configuration: {'; '.join(findings)}."
        )
    for name, variable in variables.items():
        array = weights[name]
        if array.shape != tuple(variable.shape):
            raise CheckpointError(
                f"{name} must have shape {tuple(variable.shape)}, received {array.shape}."
            )
        variable.assign(array)
