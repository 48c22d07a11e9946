"""Recipes: how a file's matrices are stored and multiplied, one row of data each.

A row decides the file's name, the command line's choices, the tables in the documentation, the
tolerance the verifier holds the file to, and the runtimes that may open it. Names follow
AI Edge Quantizer's grammar: mode, weight bits (`wi8`), activation type (`afp32`).

A recipe file is one more row, as JSON, which somebody wrote or `bart-export tune` found:

    {
     "name": "int4_but_feedforward",
     "mode": "dynamic",
     "layers": [[".*", "int4"], [".*/feedforward_output", "int8"]],
     "tolerance": {"top1": 0.95}
    }
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from bart_export import documents
from bart_export.errors import ConfigurationError, lookup, shown
from bart_export.recipes import metrics

LITERT = "ai-edge-litert"
TFLITE_RUNTIME = "tflite-runtime"


@dataclasses.dataclass(frozen=True)
class Storage:
    """One way of storing a matrix.

    `bits` is the width of a stored weight; `granularity` what shares a scale: "channelwise" a row,
    "tensorwise" the matrix, "blockwise_32" 32 neighbours in a row, None where nothing is scaled.
    `algorithm` chooses integers and scales, in AI Edge Quantizer's words or as `LEAST_ERROR`, which
    is this package's own (`convert.rounding`).
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
    model. `runtimes` maps each engine that computes the file correctly to the oldest version it
    was tried with; `refusals` says why another engine is refused.
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
        """Whether activations are integers, whose ranges are measured on texts."""
        return MODES[self.mode].activation_bits is not None

    @property
    def exact(self) -> bool:
        """Whether the file must generate the Keras model's tokens exactly."""
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

INT8: Layers = ((".*", "int8"),)
INT4: Layers = (
    (".*", "int4_block64"),
    # The token embedding costs most: its errors enter twice, as lookups and as logits.
    ("token_embedding", "int4"),
    (".*/position_embedding", "int8"),
)
ONE_SCALE_A_FILE = "tflite-runtime 2.14, which computes dynamic_wi8_afp32 incorrectly"
NO_RSQRT = MappingProxyType({TFLITE_RUNTIME: "it has no RSQRT of int16"})

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("float32", "the reference", "float", (), EXACT, BOTH),
        Recipe("float16", "GPU delegates", "weight_only", ((".*", "float16"),), HALVED, BOTH),
        Recipe("dynamic_wi8_afp32", "CPUs and phones", "dynamic", INT8,
               ROUNDED, LITERT_ONLY, ONE_SCALE),
        Recipe("dynamic_wi8_afp32_tensorwise", ONE_SCALE_A_FILE, "dynamic",
               ((".*", "int8_tensorwise"),), ROUNDED, BOTH),
        Recipe("weight_only_wi8_afp32", "quality first", "weight_only", INT8, ROUNDED, BOTH),
        Recipe("dynamic_wi4_afp32", "the smallest files", "dynamic", INT4,
               COARSE, LITERT_ONLY, FOUR_BITS),
        Recipe("static_wi8_ai16", "NPUs that compute in int16", "static_ai16", INT8,
               ROUNDED, LITERT_ONLY, NO_RSQRT),
        Recipe("static_wi8_ai8", "NPUs that compute in int8", "static_ai8", INT8,
               COARSE, LITERT_ONLY, ONE_SCALE),
    )
}  # fmt: skip
DEFAULT = "dynamic_wi8_afp32"


def with_bounds(recipe: Recipe, tolerance: Mapping[str, float]) -> Recipe:
    """Return a recipe with some bounds in the place of its own."""
    bounds = MappingProxyType({**recipe.tolerance, **tolerance})
    return dataclasses.replace(recipe, tolerance=bounds)


FIELDS = ("name", "mode", "layers", "tolerance")
# Recipes become names of files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def read_recipe(path: pathlib.Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ConfigurationError: for a file that cannot be read, or a field that is missing, unknown, or
            has a value that no recipe can have.
    """
    try:
        return parse_recipe(documents.parse_json(documents.read_bounded(path, documents.MEBIBYTE)))
    except OSError as error:
        raise ConfigurationError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"The recipe {path} cannot be used: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"The recipe {path} must be JSON, but {error}.") from error


def write_recipe(path: pathlib.Path, recipe: Recipe) -> None:
    """Write a recipe file, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    layers = ",\n  ".join(json.dumps(pair) for pair in recipe.layers)
    fields = {"name": recipe.name, "mode": recipe.mode, "tolerance": dict(recipe.tolerance)}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
    lines.append(f' "layers": [\n  {layers}\n ]')
    documents.replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def parse_recipe(content: object) -> Recipe:
    """Return the recipe of a file's content, a value of JSON; see `read_recipe`."""
    if not isinstance(content, dict):
        raise ConfigurationError(f"It must be an object with {', '.join(FIELDS)}.")
    unknown = sorted(set(content) - set(FIELDS))
    missing = sorted(set(FIELDS) - {"tolerance"} - set(content))
    if unknown or missing:
        wrong = f"has {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise ConfigurationError(f"Its fields must be {', '.join(FIELDS)}, and it {wrong}.")
    tolerance = content.get("tolerance", dict(ROUNDED))
    if not isinstance(tolerance, dict):
        raise ConfigurationError(f"tolerance must map metrics to bounds, received {tolerance!r}.")
    layers = parse_layers(content["layers"])
    quantized = {name: mode for name, mode in MODES.items() if name != "float"}
    mode = lookup("mode", content["mode"], quantized).name
    blocks = [name for _, name in layers if "blockwise" in (STORAGES[name].granularity or "")]
    if mode == "weight_only" and blocks:
        raise ConfigurationError(
            f"The mode weight_only can widen rows and whole matrices, received {blocks[0]!r}, "
            "which is in blocks. The mode dynamic takes it."
        )
    refused = refusals(mode, layers)
    bounds = {name: metrics.require_bound(name, bound) for name, bound in tolerance.items()}
    return Recipe(
        require_name(content["name"]),
        purpose="a recipe of one's own",
        mode=mode,
        layers=layers,
        tolerance=MappingProxyType(bounds),
        runtimes=LITERT_ONLY if refused else BOTH,
        refusals=refused,
    )


def refusals(mode: str, layers: Layers) -> Mapping[str, str]:
    """Return why engines are refused: what the table's recipes were measured to do, by storage."""
    if MODES[mode].activation_bits is not None:
        return next(recipe.refusals for recipe in RECIPES.values() if recipe.mode == mode)
    storages = [STORAGES[name] for _, name in layers]
    if any(storage.bits == 4 for storage in storages):
        return FOUR_BITS
    by_row = any(storage.granularity == "channelwise" for storage in storages)
    # Matrices that are widened first are widened correctly, row by row.
    return ONE_SCALE if by_row and mode == "dynamic" else MappingProxyType({})


def require_name(name: object) -> str:
    """Return a recipe's name, which also names files and must not be that of a built-in recipe."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RECIPES:
        raise ConfigurationError(
            "name must consist of letters, digits, _ and -, and must not be that of a built-in "
            f"recipe; received {name!r}."
        )
    return name


def parse_layers(pairs: object) -> Layers:
    """Return the pairs of an expression and a storage that a recipe file lists."""
    if not isinstance(pairs, list) or not 0 < len(pairs) <= MOST_EXPRESSIONS:
        received = f"a list of {len(pairs)}" if isinstance(pairs, list) else shown(pairs)
        raise ConfigurationError(
            f"layers must be a list of 1 to {MOST_EXPRESSIONS} pairs, received {received}."
        )
    layers = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ConfigurationError(
                f'layers must be pairs as in [".*", "int8"], received {shown(pair)}.'
            )
        if not is_expression(pair[0]):
            raise ConfigurationError(f"layers must be {EXPRESSIONS}, received {shown(pair[0])}.")
        layers.append((pair[0], lookup("storage", pair[1], STORAGES).name))
    return tuple(layers)


def require_layers(recipe: Recipe, layers: Iterable[str]) -> None:
    """Refuse a recipe with an expression that matches none of a checkpoint's layers.

    Raises:
        ConfigurationError: with the expression and some names there are, or if the recipe leaves
            every number as it is.
    """
    known = list(layers)
    for regex, _ in recipe.layers:
        if not any(re.fullmatch(regex, layer) for layer in known):
            raise ConfigurationError(
                f"The recipe {recipe.name} names layers by {regex!r}, which matches none. Layers "
                f"are called {known[0]}, {known[-1]} and so on: bart-export inspect lists them."
            )
    stores = recipe.layers and not recipe.calibrated  # is for nothing else
    if stores and all(recipe.storage(layer).bits == 32 for layer in known):
        raise ConfigurationError(
            f"The recipe {recipe.name} stores every layer in float32, as the recipe float32 does. "
            f"A storage can also be {', '.join(name for name in STORAGES if name != 'float32')}."
        )
