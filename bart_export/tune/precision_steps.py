"""The order in which layers get more bits, by the accuracy that each step gains per byte.

A layer's divergence is measured in its narrowest storage, and is assumed to be proportional to the
squared error of the stored matrix in other storages. On `bart_mini_en` with rounding to nearest,
both kinds of int8 had 0.7 to 1.5 times the divergence that this rule predicts from int4.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from bart_export.artifact.figures import LayerSensitivity
from bart_export.verify.traces import TINY
from bart_export.verify.weights import StoredFile, layer_of, stored_matrices


@dataclasses.dataclass(frozen=True)
class StorageOption:
    """A storage (key of `STORAGES`) with each layer's bytes, scales included, and squared error."""

    storage: str
    sizes: Mapping[str, int]
    errors: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class PrecisionStep:
    """A layer's wider storage, which adds `size` bytes.

    `gain` is the estimated reduction of the divergence, in nats per step.
    """

    layer: str
    storage: str
    size: int
    gain: float

    @property
    def gain_per_byte(self) -> float:
        """`gain` per byte of `size`."""
        return self.gain / self.size


def measure_storage(storage: str, path: pathlib.Path, float_file: pathlib.Path) -> StorageOption:
    """Measure the layers of a file that stores all of them in this storage."""
    stored, exact = stored_matrices(path), stored_matrices(float_file)
    sizes = layer_sizes(path)
    errors = {
        layer: float(np.square(stored(layer) - exact(layer), dtype=np.float64).sum())
        for layer in sizes
    }
    return StorageOption(storage, sizes, errors)


def layer_sizes(path: pathlib.Path) -> dict[str, int]:
    """Return each layer's size in bytes.

    Signatures share values and block scales; other scales (float32) and zero points (int64) are
    stored with every tensor.
    """
    stored = StoredFile(path)
    sizes: Counter[str] = Counter()
    shared: dict[int, tuple[str, int]] = {}  # buffer -> layer and bytes
    for graph in stored.model.subgraphs:
        for tensor in graph.tensors:
            layer, quantization, parts = layer_of(tensor), tensor.quantization, [tensor]
            if layer is None:
                continue
            if quantization is not None:
                if quantization.scale is not None:
                    sizes[layer] += 4 * len(quantization.scale) + 8 * len(quantization.zeroPoint)
                if quantization.details is not None:
                    parts.append(graph.tensors[quantization.details.scales])
            for part in parts:
                data = stored.data(part)
                shared[part.buffer] = layer, 0 if data is None else len(data)
    for layer, size in shared.values():
        sizes[layer] += size
    return sizes


def precision_steps(
    sensitivities: Sequence[LayerSensitivity], options: Sequence[StorageOption]
) -> tuple[dict[str, str], list[PrecisionStep]]:
    """Return the narrowest storage of each layer, and the steps to wider ones.

    The options must include the storage that the sensitivities were measured with. Steps are
    sorted by gain per byte, largest first; steps of one layer are in the order to apply them.
    """
    start, steps = {}, []
    for row in sensitivities:
        measured = next(option for option in options if option.storage == row.storage)
        scale = row.kl / max(measured.errors[row.layer], TINY)
        choices = [  # (bytes, loss, storage)
            (option.sizes[row.layer], scale * option.errors[row.layer], option.storage)
            for option in options
        ]
        size, loss, start[row.layer] = min(choices)
        while True:
            layer_steps = [
                PrecisionStep(row.layer, storage, wider - size, loss - less)
                for wider, less, storage in choices
                if wider > size and less < loss
            ]
            if not layer_steps:
                break
            best = max(layer_steps, key=lambda step: step.gain_per_byte)
            steps.append(best)
            size, loss = size + best.size, loss - best.gain
    # Gains per byte decrease along the steps of a layer, and sorting is stable.
    return start, sorted(steps, key=lambda step: -step.gain_per_byte)


def apply_steps(start: Mapping[str, str], steps: Sequence[PrecisionStep]) -> dict[str, str]:
    """Return each layer's storage after some steps."""
    return {**start, **{step.layer: step.storage for step in steps}}
