"""Recipes: how a file's matrices are stored and multiplied, one row of data each.

A row decides the file's name, the command line's choices, the tables in the documentation, the
tolerance the verifier holds the file to, and the runtimes that may open it. Names follow
AI Edge Quantizer's grammar: mode, weight bits (`wi8`), activation type (`afp32`). A row says for
each layer, by a regular expression over its name (`checkpoints.layers`), which `Storage` its matrix
has. `convert.quantize` reads the rows.
"""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType

from bart_export.errors import ConfigurationError, did_you_mean

LITERT = "ai-edge-litert"
TFLITE_RUNTIME = "tflite-runtime"


@dataclasses.dataclass(frozen=True)
class Storage:
    """One way of storing a matrix.

    `bits` is the width of a stored weight; `granularity` what shares a scale: "channelwise" a row,
    "tensorwise" the matrix, "blockwise_32" 32 neighbours in a row, None where nothing is scaled.
    `algorithm` chooses integers and scales, in AI Edge Quantizer's words or as `LEAST_ERROR`, which
    is this package's own (`targets.rounding`).
    """

    name: str
    description: str
    bits: int
    granularity: str | None
    algorithm: str


MIN_MAX = "min_max_uniform_quantize"
LEAST_ERROR = "least_error"

STORAGES: dict[str, Storage] = {
    storage.name: storage
    for storage in (
        Storage("float32", "float32", 32, None, "no_quantize"),
        Storage("float16", "float16", 16, None, "float_casting"),
        Storage("int8", "int8, one scale per row", 8, "channelwise", MIN_MAX),
        Storage("int8_tensorwise", "int8, one scale per tensor", 8, "tensorwise", MIN_MAX),
        Storage("int4", "int4 in blocks of 32", 4, "blockwise_32", LEAST_ERROR),
        Storage("int4_block64", "int4 in blocks of 64", 4, "blockwise_64", LEAST_ERROR),
        Storage("int4_block128", "int4 in blocks of 128", 4, "blockwise_128", LEAST_ERROR),
    )
}


@dataclasses.dataclass(frozen=True)
class Mode:
    """How a file computes with matrices of less than 32 bits.

    `activation_bits` is the width of calibrated activations, None where they are float32;
    `description` says what they are.
    """

    name: str
    description: str
    activation_bits: int | None = None


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("float", "float32"),
        Mode("weight_only", "float32; weights are dequantized first"),
        Mode("dynamic", "float32, quantized on the fly"),
        Mode("static_ai16", "int16, calibrated", 16),
        Mode("static_ai8", "int8, calibrated", 8),
    )
}

Tolerance = Mapping[str, float]
Layers = tuple[tuple[str, str], ...]

# Expressions may come with a foreign artifact. Of characters, each once or repeated, and few of
# them repeated, there is none that takes long to match: a millisecond for a layer's name at most.
ATOM = r"(?:[\w/.-]|\\[dw.]|\[\^?(?:[\w/.-]|\\[dw])+\])"
EXPRESSION = re.compile(rf"(?:{ATOM}[*+?]?)+", re.ASCII)
LONGEST_EXPRESSION, MOST_REPEATED, MOST_EXPRESSIONS = 200, 3, 512
EXPRESSIONS = (
    f"regular expressions of at most {LONGEST_EXPRESSION} characters as .*/layer_[0-3]/.*, without "
    f"groups, at most {MOST_REPEATED} of their characters repeated"
)


def is_expression(value: object) -> bool:
    """Return whether a value is an expression that layers may be named by, one of `EXPRESSIONS`."""
    if not isinstance(value, str) or len(value) > LONGEST_EXPRESSION:
        return False
    if not EXPRESSION.fullmatch(value) or len(re.findall(r"[*+?]", value)) > MOST_REPEATED:
        return False
    try:
        re.compile(value)
    except re.error:  # a range that goes backwards
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way of storing a model.

    `mode` is a key of `MODES`. `layers` are pairs of a regular expression over layer names and a
    key of `STORAGES`: of those that match the whole name, the last counts; a layer without one
    keeps float32. `tolerance` bounds metrics (`metrics.METRICS`) of a file compared with the Keras
    model. `runtimes` maps each engine that computes the file
    rightly to the oldest version it was tried with; `refusals` says why another engine is refused.
    """

    name: str
    purpose: str
    mode: str
    layers: Layers
    tolerance: Tolerance
    runtimes: Mapping[str, str]
    refusals: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    def storage(self, layer: str) -> Storage:
        """Return how the matrix of a layer is stored."""
        storages = [storage for regex, storage in self.layers if re.fullmatch(regex, layer)]
        return STORAGES[storages[-1] if storages else "float32"]

    @property
    def weights(self) -> str:
        """How matrices are stored, in words."""
        storages = dict.fromkeys(storage for _, storage in self.layers) or ("float32",)
        return "; ".join(STORAGES[storage].description for storage in storages)

    @property
    def calibrated(self) -> bool:
        """Whether activations are integers whose ranges come of texts."""
        return MODES[self.mode].activation_bits is not None

    @property
    def exact(self) -> bool:
        """Whether the file is to say, token for token, what the Keras model says."""
        return self.tolerance.get("tokens") == 1.0


# How much further than Keras in float32 a float32 file may be from Keras in float64. Of 62 random
# checkpoints with weights of a standard deviation from 0.02 to 0.5 no right file was further than
# 1.9 times as far, and none whose encoder begins with an epsilon of 1e-6 less than 7.4 times.
ROUNDING = 4.0
EXACT: Tolerance = MappingProxyType({"rounding": ROUNDING, "tokens": 1.0})
# float16 rounds each weight 2^13 times as coarsely as float32. Two checkpoints of 0.35 were at 900
# and 1,100: Keras' cost is more than that of rounding the weights.
HALVED: Tolerance = MappingProxyType({"rounding": 2.0**13, "top1": 0.95})
ROUNDED: Tolerance = MappingProxyType({"relative": 0.15, "top1": 0.9, "kl": 0.03})
COARSE: Tolerance = MappingProxyType({"relative": 0.35, "top1": 0.8, "kl": 0.12})

BOTH = MappingProxyType({LITERT: "2.3.0", TFLITE_RUNTIME: "2.14.0"})
LITERT_ONLY = MappingProxyType({LITERT: "2.3.0"})
ONE_SCALE = MappingProxyType(
    {
        TFLITE_RUNTIME: "it reads the scale of every row as the scale of the first "
        "and computes wrong numbers without an error"
    }
)
FOUR_BITS = MappingProxyType(
    {
        TFLITE_RUNTIME: "it cannot look up rows of int4, and multiplies by int4 in blocks wrongly "
        "without an error"
    }
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "float32",
            purpose="the reference",
            mode="float",
            layers=(),
            tolerance=EXACT,
            runtimes=BOTH,
        ),
        Recipe(
            "float16",
            purpose="GPU delegates",
            mode="weight_only",
            layers=((".*", "float16"),),
            tolerance=HALVED,
            runtimes=BOTH,
        ),
        Recipe(
            "dynamic_wi8_afp32",
            purpose="CPUs and phones",
            mode="dynamic",
            layers=((".*", "int8"),),
            tolerance=ROUNDED,
            runtimes=LITERT_ONLY,
            refusals=ONE_SCALE,
        ),
        Recipe(
            "dynamic_wi8_afp32_tensorwise",
            purpose="tflite-runtime 2.14, which computes dynamic_wi8_afp32 incorrectly",
            mode="dynamic",
            layers=((".*", "int8_tensorwise"),),
            tolerance=ROUNDED,
            runtimes=BOTH,
        ),
        Recipe(
            "weight_only_wi8_afp32",
            purpose="quality first",
            mode="weight_only",
            layers=((".*", "int8"),),
            tolerance=ROUNDED,
            runtimes=BOTH,
        ),
        Recipe(
            "dynamic_wi4_afp32",
            purpose="the smallest files",
            mode="dynamic",
            # The token embedding costs most: its errors enter twice, as lookups and as logits.
            layers=(
                (".*", "int4_block64"),
                ("token_embedding", "int4"),
                (".*/position_embedding", "int8"),
            ),
            tolerance=COARSE,
            runtimes=LITERT_ONLY,
            refusals=FOUR_BITS,
        ),
        Recipe(
            "static_wi8_ai16",
            purpose="NPUs that compute in int16",
            mode="static_ai16",
            layers=((".*", "int8"),),
            tolerance=ROUNDED,
            runtimes=LITERT_ONLY,
            refusals=MappingProxyType({TFLITE_RUNTIME: "it has no RSQRT of int16"}),
        ),
        Recipe(
            "static_wi8_ai8",
            purpose="NPUs that compute in int8",
            mode="static_ai8",
            layers=((".*", "int8"),),
            tolerance=COARSE,
            runtimes=LITERT_ONLY,
            refusals=ONE_SCALE,
        ),
    )
}
DEFAULT = "dynamic_wi8_afp32"


def with_bounds(recipe: Recipe, tolerance: Mapping[str, float]) -> Recipe:
    """Return a recipe with some bounds in the place of its own."""
    bounds = MappingProxyType({**recipe.tolerance, **tolerance})
    return dataclasses.replace(recipe, tolerance=bounds)


def named(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        ConfigurationError: if there is none, with the nearest and all others.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise ConfigurationError(
        f"A recipe must be one of {', '.join(RECIPES)}, or a file NAME.json, received "
        f"{name!r}.{did_you_mean(name, RECIPES)}"
    )
