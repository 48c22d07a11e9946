"""Quantization: a float `.tflite` and a recipe go in, the recipe's bytes come out.

AI Edge Quantizer does the work. It is told to quantize projections and lookups, so that the tied
table, which serves both, stays one buffer. Recipes whose activations are integers as well want a
calibration besides. This module knows no model and writes no file.
"""

import contextlib
import io
import logging
import pathlib
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
from ai_edge_quantizer import qtyping, quantizer, recipe_manager

from bart_export.convert import static
from bart_export.convert.blocks import check_blocks, round_blocks
from bart_export.convert.calibration import Calibration
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import LEAST_ERROR, MIN_MAX, MODES, Recipe, Storage

OPERATIONS = (
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP,
)
# Mode of a recipe -> what takes an entry for matrices of integers.
ADDERS: dict[str, Callable[[recipe_manager.RecipeManager], Callable[..., None]]] = {
    "dynamic": lambda manager: manager.add_dynamic_config,
    "weight_only": lambda manager: manager.add_weight_only_config,
    # Lookups have no static form: both read the same integers.
    "static_ai16": lambda manager: manager.add_dynamic_config,
    "static_ai8": lambda manager: manager.add_dynamic_config,
}


def quantize(
    path: pathlib.Path,
    recipe: Recipe,
    layers: Collection[str],
    calibration: Calibration | None = None,
) -> bytearray:
    """Return the float file at `path` quantized.

    Args:
        path: the file.
        recipe: how.
        layers: the layers that the file's matrices are named after.
        calibration: of this very file, for a mode with integer activations.

    Raises:
        ConfigurationError: for blocks that do not fill a matrix's rows.
    """
    content = np.memmap(path, np.uint8, "r")
    check_blocks(content, recipe, layers)
    manager = recipe_manager.RecipeManager()
    for storage, stored in by_storage(recipe, layers).items():
        for operation in OPERATIONS:
            add_entry(manager, recipe.mode, storage, operators_of(stored), operation)
    bits = MODES[recipe.mode].activation_bits
    if bits is None:
        return with_own_rounding(bytearray(run(path, manager, None)), content, recipe, layers)
    assert calibration is not None
    fitted = static.ranges(content, calibration.ranges, bits)
    roomy = set(layers) - static.cramped_layers(content, fitted, bits)
    with unwarned():
        add_static_entries(manager, recipe, sorted(roomy), content, bits)
    quantized = bytearray(run(path, manager, static.quantizer_statistics(fitted)))
    static.restore_outputs(quantized)
    return with_own_rounding(quantized, content, recipe, layers)


def with_own_rounding(
    quantized: bytearray, content: Any, recipe: Recipe, layers: Iterable[str]
) -> bytearray:
    """Return a quantized file whose integers are ours where a storage's algorithm says so."""
    ours = [layer for layer in layers if recipe.storage(layer).algorithm == LEAST_ERROR]
    round_blocks(quantized, content, ours)
    return quantized


def run(
    path: pathlib.Path, manager: recipe_manager.RecipeManager, statistics: dict[str, Any] | None
) -> bytes:
    """Run the quantizer, which prints a report and progress bars, logs and warns as it likes."""
    with native_stderr_silenced(), contextlib.redirect_stdout(io.StringIO()), unwarned():
        result = quantizer.Quantizer(str(path), manager.get_quantization_recipe()).quantize(
            statistics
        )
    return bytes(result.quantized_model)


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Keep warnings from users: of entries that replace others, of vectors that operators share."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def add_static_entries(
    manager: recipe_manager.RecipeManager,
    recipe: Recipe,
    layers: Collection[str],
    content: Any,
    bits: int,
) -> None:
    """Tell the quantizer which operators compute in integers of so many bits throughout."""
    on_the_fly = static.ON_THE_FLY.get(recipe.mode, "")
    for storage, stored in by_storage(recipe, layers).items():
        fixed = [layer for layer in stored if not re.fullmatch(on_the_fly, layer)]
        # Blocks and float16 have no static form; such layers stay as they are without an entry.
        if fixed and storage.granularity in ("channelwise", "tensorwise"):
            manager.add_static_config(
                regex=operators_of(fixed),
                operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
                activation_num_bits=bits,
                weight_num_bits=storage.bits,
                weight_granularity=qtyping.QuantGranularity(storage.granularity.upper()),
                algorithm_key=storage.algorithm,
            )
    for name, results in static.integer_operators(content, recipe.mode).items():
        manager.add_static_config(
            regex=f"^({'|'.join(map(re.escape, results))});?$",
            operation_name=qtyping.TFLOperationName(name),
            activation_num_bits=bits,
            weight_num_bits=8,  # of vectors
        )


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
        algorithm_key=MIN_MAX if storage.algorithm == LEAST_ERROR else storage.algorithm,
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
