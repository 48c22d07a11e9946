"""Quantization: a float `.tflite` and a recipe go in, the recipe's bytes come out.

AI Edge Quantizer does the work. It is told to quantize projections and lookups, so that the tied
table, which serves both, stays one buffer. This module knows no model and writes no file.
"""

import contextlib
import io
import pathlib

from ai_edge_quantizer import qtyping, quantizer, recipe_manager

from bart_export.quiet import native_stderr_silenced
from bart_export.recipes import Recipe

OPERATIONS = (
    qtyping.TFLOperationName.FULLY_CONNECTED,
    qtyping.TFLOperationName.EMBEDDING_LOOKUP,
)
GRANULARITIES = {
    "channelwise": qtyping.QuantGranularity.CHANNELWISE,
    "tensorwise": qtyping.QuantGranularity.TENSORWISE,
}


def quantize(path: pathlib.Path, recipe: Recipe) -> bytes:
    """Return the file at `path` quantized by `recipe`, whose `granularity` must not be None."""
    assert recipe.granularity is not None, recipe.name
    manager = recipe_manager.RecipeManager()
    for operation in OPERATIONS:
        manager.add_dynamic_config(
            regex=".*",
            operation_name=operation,
            num_bits=recipe.num_bits,
            granularity=GRANULARITIES[recipe.granularity],
        )
    # The quantizer prints a report and progress bars of its own.
    with native_stderr_silenced(), contextlib.redirect_stdout(io.StringIO()):
        result = quantizer.Quantizer(str(path), manager.get_quantization_recipe()).quantize()
    return bytes(result.quantized_model)
