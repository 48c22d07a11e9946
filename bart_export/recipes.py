"""Recipes: how a file's weights are stored, one row of data each.

A row decides the file's name, the command line's choices, the table in the README, the tolerance
the verifier holds the file to, and the runtimes that may open it. Names follow AI Edge Quantizer's
grammar: mode, weight bits (`wi8`), activation type (`afp32`). A row knows no quantizer: `targets.
quantize` reads it.
"""

import dataclasses
import difflib
from types import MappingProxyType

from bart_export.errors import ConfigurationError

LITERT = "ai-edge-litert"
TFLITE_RUNTIME = "tflite-runtime"


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What the verifier accepts of a file, compared with the Keras model.

    `logits` bounds the largest error of any logit, None where weights are rounded; where the
    logits spread wider than 1, float32 rounds them more coarsely, and the bound is in units of
    their spread.
    `relative` bounds the error's root mean square over that of the logits about their mean.
    `top1` is the smallest share of steps whose likeliest token must be the model's.
    `tokens` asks for the very tokens of the model, greedy and with beams.
    """

    logits: float | None
    relative: float
    top1: float
    tokens: bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way of storing a model.

    `num_bits` is the width of a stored weight, 32 for none; `granularity` says what shares a
    scale. `runtimes` maps each engine that computes the file rightly to the oldest version it was
    tried with; `refusals` says why another engine is refused.
    """

    name: str
    weights: str
    activations: str
    purpose: str
    num_bits: int
    granularity: str | None
    tolerance: Tolerance
    runtimes: MappingProxyType[str, str]
    refusals: MappingProxyType[str, str] = dataclasses.field(
        default_factory=lambda: MappingProxyType({})
    )


EXACT = Tolerance(logits=1e-4, relative=1e-5, top1=1.0, tokens=True)
ROUNDED = Tolerance(logits=None, relative=0.15, top1=0.9, tokens=False)

BOTH = MappingProxyType({LITERT: "2.3.0", TFLITE_RUNTIME: "2.14.0"})
LITERT_ONLY = MappingProxyType({LITERT: "2.3.0"})

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "float32",
            weights="float32",
            activations="float32",
            purpose="the reference",
            num_bits=32,
            granularity=None,
            tolerance=EXACT,
            runtimes=BOTH,
        ),
        Recipe(
            "dynamic_wi8_afp32",
            weights="int8, one scale a row",
            activations="float32, quantized on the fly",
            purpose="CPUs and phones",
            num_bits=8,
            granularity="channelwise",
            tolerance=ROUNDED,
            runtimes=LITERT_ONLY,
            refusals=MappingProxyType(
                {
                    TFLITE_RUNTIME: "it reads the scale of every row as the scale of the first "
                    "and computes wrong numbers without an error"
                }
            ),
        ),
        Recipe(
            "dynamic_wi8_afp32_tensorwise",
            weights="int8, one scale a tensor",
            activations="float32, quantized on the fly",
            purpose="tflite-runtime 2.14, which computes the row above wrongly",
            num_bits=8,
            granularity="tensorwise",
            tolerance=ROUNDED,
            runtimes=BOTH,
        ),
    )
}
DEFAULT = "dynamic_wi8_afp32"


def named(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ConfigurationError: if there is none, with the nearest and all others.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigurationError(
        f"A recipe must be one of {', '.join(RECIPES)}, received {name!r}.{hint}"
    )
