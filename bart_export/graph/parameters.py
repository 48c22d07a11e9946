"""BART weights in the layouts that inference graphs need, under their Keras names.

Attention kernels lose their head axes, and the factor 1/sqrt(head_size) of scaled dot-product
attention is folded into the query projection. Each array is built when it is looked up.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from bart_export.checkpoints import weight_names
from bart_export.config import BartConfig

FloatArray = npt.NDArray[np.float32]


class InferenceParameters(Mapping[str, FloatArray]):
    """BART's weights in the layout of `FULLY_CONNECTED`.

    Maps the names in `checkpoints.weight_names.weights` to float32 arrays: vectors, tables
    (rows, hidden) and kernels (outputs, inputs).
    """

    def __init__(self, config: BartConfig, read: Callable[[str], npt.ArrayLike]) -> None:
        self.config = config
        self.rows = {weight.name: weight for weight in weight_names.weights(config)}
        self.read = read

    def __getitem__(self, name: str) -> FloatArray:
        array = np.asarray(self.read(name), dtype=np.float32)
        if name.endswith("/kernel"):
            array = np.ascontiguousarray(array.reshape(self.kernel_inputs(name), -1).T)
        if "/query/" in name:
            encoder = name.startswith("transformer_encoder")
            size = self.config.head_size if encoder else self.config.decoder_head_size
            array = array * np.float32(size**-0.5)
        return array.reshape(self.shape(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape without reading the array."""
        weight = self.rows[name]
        if name.endswith("/kernel"):
            inputs = self.kernel_inputs(name)
            return (weight.size // inputs, inputs)
        if name.endswith("/bias"):
            return (weight.size,)
        return weight.shape

    def kernel_inputs(self, name: str) -> int:
        """Return a kernel's number of inputs, which an attention output splits into two axes."""
        shape = self.rows[name].shape
        return shape[0] * shape[1] if name.endswith("attention_output/kernel") else shape[0]


class BatchParameters(Mapping[str, FloatArray]):
    """BART's weights in the layout of `graph.sequences`.

    Each `.../kernel` becomes a `.../matrix` (inputs, outputs), because TensorFlow multiplies a few
    rows by a matrix several times faster than by its transpose. Projections with the same input
    are concatenated: `.../query_key_value` in self-attention, `.../key_value` in cross-attention.
    """

    def __init__(self, parameters: InferenceParameters) -> None:
        self.parameters = parameters
        self.parts: dict[str, list[str]] = {}
        for name in parameters:
            self.parts.setdefault(joined_name(name), []).append(name)

    def __getitem__(self, name: str) -> FloatArray:
        arrays = [self.parameters[part] for part in self.parts[name]]
        if name.endswith("/matrix"):
            arrays = [array.T for array in arrays]
        return np.ascontiguousarray(np.concatenate(arrays, axis=-1))

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def joined_name(name: str) -> str:
    """Return the name in `BatchParameters` of the array that contains a weight."""
    path, _, kind = name.rpartition("/")
    attention, _, projection = path.rpartition("/")
    joined = ("key", "value") if attention.endswith("cross_attention") else SELF_ATTENTION
    if kind in ("kernel", "bias") and projection in joined:
        path = f"{attention}/{'_'.join(joined)}"
    return f"{path}/{KINDS.get(kind, kind)}" if path else name


SELF_ATTENTION = ("query", "key", "value")
KINDS = {"kernel": "matrix"}
