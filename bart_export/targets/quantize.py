"""Quantization: a float `.tflite` and a recipe go in, the recipe's bytes come out.

AI Edge Quantizer does the work. It is told to quantize projections and lookups, so that the tied
table, which serves both, stays one buffer. This module knows no model and writes no file.
"""

import contextlib
import io
import pathlib
import re
from collections.abc import Callable, Iterable

from ai_edge_quantizer import qtyping, quantizer, recipe_manager

from bart_export.quiet import native_stderr_silenced
from bart_export.recipes import Recipe, Storage

OPERATIONS = (
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP,
)
# Mode of a recipe -> what takes an entry for matrices of integers.
ADDERS: dict[str, Callable[[recipe_manager.RecipeManager], Callable[..., None]]] = {
    "dynamic": lambda manager: manager.add_dynamic_config,
    "weight_only": lambda manager: manager.add_weight_only_config,
}


def quantize(path: pathlib.Path, recipe: Recipe, layers: Iterable[str]) -> bytes:
    """Return the float file at `path`, whose matrices are named after `layers`, quantized."""
    manager = recipe_manager.RecipeManager()
    for storage, stored in by_storage(recipe, layers).items():
        for operation in OPERATIONS:
            add_entry(manager, recipe.mode, storage, operators_of(stored), operation)
    # The quantizer prints a report and progress bars of its own.
    with native_stderr_silenced(), contextlib.redirect_stdout(io.StringIO()):
        result = quantizer.Quantizer(str(path), manager.get_quantization_recipe()).quantize()
    return bytes(result.quantized_model)


def add_entry(
    manager: recipe_manager.RecipeManager,
    mode: str,
    storage: Storage,
    regex: str,
    operation: qtyping.TFLOperationName,
) -> None:
    """Tell the quantizer how the operators with results named so store and multiply matrices."""
    # No kernel multiplies by float16: such a matrix is widened whatever the mode.
    add = manager.add_weight_only_config if storage.granularity is None else ADDERS[mode](manager)
    add(
        regex=regex,
        operation_name=operation,
        num_bits=storage.bits,
        granularity=qtyping.QuantGranularity((storage.granularity or "tensorwise").upper()),
        algorithm_key=storage.algorithm,
    )


def by_storage(recipe: Recipe, layers: Iterable[str]) -> dict[Storage, list[str]]:
    """Return, for each storage that a recipe uses, the layers that are stored so; no float32."""
    stored: dict[Storage, list[str]] = {}
    for layer in layers:
        storage = recipe.storage(layer)
        if storage.bits < 32:
            stored.setdefault(storage, []).append(layer)
    return stored


def operators_of(layers: Iterable[str]) -> str:
    """Return a regular expression for the results of operators that read some layers' matrices."""
    return f"^[^/]+/({'|'.join(map(re.escape, layers))})/[a-z]+;?$"
