"""Widening: which layer of a file is to be stored wider first, and how.

Sensitivities of layers and the ways of storing them go in; steps come out, each of which stores
one layer wider, in the order of how much loss they take away for a byte. Between the ways of
storing a layer, loss goes with the squared error of its stored matrix: on `bart_mini_en`, rounding
to nearest, both kinds of int8 lost 0.7 to 1.5 times what int4's divergence and this rule give. What
a file really loses is not known here.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bart_export.artifact.figures import LayerSensitivity
from bart_export.verify.stored import WEIGHTS, Stored
from bart_export.verify.weights import matrices_of


@dataclasses.dataclass(frozen=True)
class Rung:
    """One way of storing all layers, a key of `STORAGES`: what each takes and how wrong it is.

    `sizes` are bytes in the file, scales included; `errors` sums of squared errors.
    """

    storage: str
    sizes: Mapping[str, int]
    errors: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Widening:
    """A layer that is stored wider: as what, the bytes it takes more, the divergence it takes away.

    `loss` is an estimate, in nats a step.
    """

    layer: str
    storage: str
    size: int
    loss: float


def survey(storage: str, path: pathlib.Path, float_file: pathlib.Path) -> Rung:
    """Return what the layers take in a file that stores all of them in one way."""
    stored, exact = matrices_of(path), matrices_of(float_file)
    sizes = layer_sizes(path)
    errors = {
        layer: float(np.square(stored(layer) - exact(layer), dtype=np.float64).sum())
        for layer in sizes
    }
    return Rung(storage, sizes, errors)


def layer_sizes(path: pathlib.Path) -> dict[str, int]:
    """Return the bytes that each layer takes in a file: numbers once, scales with every tensor."""
    stored = Stored(path)
    sizes: dict[str, int] = {}
    counted = set()
    for graph in stored.model.subgraphs:
        for tensor in graph.tensors:
            name = tensor.name.decode()
            if not name.endswith(WEIGHTS):
                continue
            layer = name.removesuffix(WEIGHTS).partition("/")[2]
            for part in (tensor, *block_scales(graph, tensor)):
                if part.buffer not in counted:
                    counted.add(part.buffer)
                    data = stored.data(part)
                    sizes[layer] = sizes.get(layer, 0) + (0 if data is None else len(data))
            sizes[layer] = sizes.get(layer, 0) + own_scales(tensor.quantization)
    return sizes


def block_scales(graph: Any, tensor: Any) -> list[Any]:
    """Return the tensor with the scales of a matrix in blocks, none for another."""
    details = None if tensor.quantization is None else tensor.quantization.details
    return [] if details is None else [graph.tensors[details.scales]]


def own_scales(quantization: Any) -> int:
    """Return the bytes of scales, float32, and zero points, int64, that a tensor has itself."""
    if quantization is None:
        return 0
    parts = ((quantization.scale, 4), (quantization.zeroPoint, 8))
    return sum(size * len(part) for part, size in parts if part is not None)


def order(
    sensitivities: Sequence[LayerSensitivity], rungs: Sequence[Rung]
) -> tuple[dict[str, str], list[Widening]]:
    """Return how each layer is stored at its narrowest, and the steps from there.

    Args:
        sensitivities: measured with the storage of one of the rungs.
        rungs: the ways of storing there are.

    Returns:
        Layer -> storage; and steps, the one that takes away most loss for a byte first. Of one
        layer they come in the order in which they are to be taken.
    """
    start, steps = {}, []
    for one in sensitivities:
        measured = next(rung for rung in rungs if rung.storage == one.storage)
        scale = one.kl / max(measured.errors[one.layer], 1e-30)
        options = [
            Widening(one.layer, rung.storage, rung.sizes[one.layer], scale * rung.errors[one.layer])
            for rung in rungs
        ]
        current = min(options, key=lambda option: option.size)
        start[one.layer] = current.storage
        while wider := [
            option
            for option in options
            if option.size > current.size and option.loss < current.loss
        ]:
            best = max(wider, key=lambda option: worth(current, option))
            steps.append(
                dataclasses.replace(
                    best, size=best.size - current.size, loss=current.loss - best.loss
                )
            )
            current = best
    # Worth falls along the steps of a layer, and sorting keeps the order of equals.
    return start, sorted(steps, key=lambda step: -step.loss / step.size)


def worth(current: Widening, wider: Widening) -> float:
    """Return the loss that a wider way of storing takes away for a byte."""
    return (current.loss - wider.loss) / (wider.size - current.size)


def after(start: Mapping[str, str], steps: Sequence[Widening]) -> dict[str, str]:
    """Return how each layer is stored after some steps."""
    return {**start, **{step.layer: step.storage for step in steps}}
