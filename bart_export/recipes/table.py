"""The table of recipes: how a file's matrices are stored and multiplied.

A row determines the file's name, the choices on the command line, the tables in the documentation,
the tolerance in verification, and the runtimes that may open the file. Names follow LiteRT
Quantizer's scheme: mode, weight bits (`wi8`), activation type (`afp32`).

A recipe file is an additional row in JSON, written by a user or by `bart-export tune`:

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
    """A storage format of a matrix.

    `bits` is the width of a weight. There is one scale per row if `granularity` is "channelwise",
    per matrix if it is "tensorwise", per N adjacent weights of a row if it is "blockwise_N", and
    none if it is None. `algorithm` is LiteRT Quantizer's, or `LEAST_ERROR` (`convert.rounding`).
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
    """How a file computes with matrices of fewer than 32 bits.

    `description` is the type of the activations; `activation_bits` is their width if they are
    calibrated, or None if they are float32.
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

# Expressions may come from an untrusted artifact. Without groups, and with few repetitions, an
# expression takes at most a millisecond to match a layer's name.
ATOM = r"(?:[\w/.-]|\\[dw.]|\[\^?(?:[\w/.-]|\\[dw])+\])"
EXPRESSION = re.compile(rf"(?:{ATOM}[*+?]?)+", re.ASCII)
LONGEST_EXPRESSION, MOST_REPEATED, MOST_EXPRESSIONS = 200, 3, 512
EXPRESSIONS = (
    f"regular expressions of at most {LONGEST_EXPRESSION} characters, such as .*/layer_[0-3]/.*, "
    f"without groups and with at most {MOST_REPEATED} repetitions"
)


def stored_as(layers: Layers) -> str:
    """Return a description of the storages of a recipe's layers."""
    storages = dict.fromkeys(storage for _, storage in layers) or ("float32",)
    return "; ".join(STORAGES[storage].description for storage in storages)


def is_expression(value: object) -> bool:
    """Return whether a value is an expression for layers, as described by `EXPRESSIONS`."""
    if not isinstance(value, str) or len(value) > LONGEST_EXPRESSION:
        return False
    if not EXPRESSION.fullmatch(value) or len(re.findall(r"[*+?]", value)) > MOST_REPEATED:
        return False
    try:
        re.compile(value)
    except re.error:  # a reversed range
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way of storing a model.

    `mode` is a key of `MODES`. `layers` are pairs of a regular expression for whole layer names and
    a key of `STORAGES`; the last match applies, and a layer without a match is float32. `tolerance`
    maps names in `metrics.METRICS` to bounds. `runtimes` maps each engine that runs the file
    correctly to its oldest tested version; `refusals` says why other engines are refused.
    """

    name: str
    purpose: str
    mode: str
    layers: Layers
    tolerance: Tolerance
    runtimes: Mapping[str, str]
    refusals: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    def storage(self, layer: str) -> Storage:
        """Return the storage of a layer's matrix."""
        storages = [storage for regex, storage in self.layers if re.fullmatch(regex, layer)]
        return STORAGES[storages[-1] if storages else "float32"]

    @property
    def calibrated(self) -> bool:
        """Whether activations are integers with calibrated ranges."""
        return MODES[self.mode].activation_bits is not None

    @property
    def exact(self) -> bool:
        """Whether the file must generate exactly the Keras model's tokens."""
        return self.tolerance.get("tokens") == 1.0


# The bound on a float32 file's error divided by Keras' float32 error, both relative to float64.
# For 62 random checkpoints with standard deviations of 0.02 to 0.5, the ratio was at most 1.9 for
# correct files, and at least 7.4 if the encoder's first epsilon was wrong (1e-6).
ROUNDING = 4.0
EXACT: Tolerance = MappingProxyType({"rounding": ROUNDING, "tokens": 1.0})
# float16 rounds weights 2^13 times as coarsely as float32. For two checkpoints with a standard
# deviation of 0.35, the ratio was 900 and 1,100, because Keras' error has other causes as well.
HALVED: Tolerance = MappingProxyType({"rounding": 2.0**13, "top1": 0.95})
ROUNDED: Tolerance = MappingProxyType({"relative": 0.15, "top1": 0.9, "kl": 0.03})
COARSE: Tolerance = MappingProxyType({"relative": 0.35, "top1": 0.8, "kl": 0.12})

BOTH = MappingProxyType({LITERT: "2.3.0", TFLITE_RUNTIME: "2.14.0"})
LITERT_ONLY = MappingProxyType({LITERT: "2.3.0"})
ONE_SCALE = MappingProxyType(
    {
        TFLITE_RUNTIME: "it uses the first row's scale for every row, and silently computes wrong "
        "results"
    }
)
FOUR_BITS = MappingProxyType(
    {
        TFLITE_RUNTIME: "it cannot look up int4 rows, and silently multiplies blockwise int4 "
        "matrices incorrectly"
    }
)

INT8: Layers = ((".*", "int8"),)
INT4: Layers = (
    (".*", "int4_block64"),
    # The token embedding is the most sensitive: its errors affect both lookups and logits.
    ("token_embedding", "int4"),
    (".*/position_embedding", "int8"),
)
ONE_SCALE_A_FILE = "tflite-runtime 2.14, which computes dynamic_wi8_afp32 incorrectly"
NO_RSQRT = MappingProxyType({TFLITE_RUNTIME: "it has no int16 RSQRT"})

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
    """Return a recipe with some of its bounds replaced."""
    bounds = MappingProxyType({**recipe.tolerance, **tolerance})
    return dataclasses.replace(recipe, tolerance=bounds)


FIELDS = ("name", "mode", "layers", "tolerance")
# Recipe names are also file names.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def read_recipe(path: pathlib.Path) -> Recipe:
    """Read a recipe file; raise ConfigurationError if it cannot be read or a field is invalid."""
    try:
        return parse_recipe(documents.parse_json(documents.read_bounded(path, documents.MEBIBYTE)))
    except OSError as error:
        raise ConfigurationError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"The recipe {path} cannot be used: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"The recipe {path} is not valid JSON: {error}.") from error


def write_recipe(path: pathlib.Path, recipe: Recipe) -> None:
    """Write a recipe file atomically."""
    layers = ",\n  ".join(json.dumps(pair) for pair in recipe.layers)
    fields = {"name": recipe.name, "mode": recipe.mode, "tolerance": dict(recipe.tolerance)}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
    lines.append(f' "layers": [\n  {layers}\n ]')
    documents.replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def parse_recipe(content: object) -> Recipe:
    """Return the recipe in a file's parsed JSON; see `read_recipe`."""
    if not isinstance(content, dict):
        raise ConfigurationError(f"It must be an object with {', '.join(FIELDS)}.")
    unknown = sorted(set(content) - set(FIELDS))
    missing = sorted(set(FIELDS) - {"tolerance"} - set(content))
    if unknown or missing:
        wrong = f"has {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise ConfigurationError(f"Its fields must be {', '.join(FIELDS)}, but it {wrong}.")
    tolerance = content.get("tolerance", dict(ROUNDED))
    if not isinstance(tolerance, dict):
        raise ConfigurationError(f"tolerance must map metrics to bounds, received {tolerance!r}.")
    layers = parse_layers(content["layers"])
    quantized = {name: mode for name, mode in MODES.items() if name != "float"}
    mode = lookup("mode", content["mode"], quantized).name
    blocks = [name for _, name in layers if "blockwise" in (STORAGES[name].granularity or "")]
    if mode == "weight_only" and blocks:
        raise ConfigurationError(
            "The mode weight_only supports one scale per row or per matrix, but "
            f"{blocks[0]!r} has one per block. Use the mode dynamic."
        )
    refused = refusals(mode, layers)
    bounds = {name: metrics.require_bound(name, bound) for name, bound in tolerance.items()}
    return Recipe(
        require_name(content["name"]),
        purpose="a custom recipe",
        mode=mode,
        layers=layers,
        tolerance=MappingProxyType(bounds),
        runtimes=LITERT_ONLY if refused else BOTH,
        refusals=refused,
    )


def refusals(mode: str, layers: Layers) -> Mapping[str, str]:
    """Return the reasons for refusing engines, as in the table's recipes with the same storage."""
    if MODES[mode].activation_bits is not None:
        return next(recipe.refusals for recipe in RECIPES.values() if recipe.mode == mode)
    storages = [STORAGES[name] for _, name in layers]
    if any(storage.bits == 4 for storage in storages):
        return FOUR_BITS
    by_row = any(storage.granularity == "channelwise" for storage in storages)
    # Every engine dequantizes rows correctly.
    return ONE_SCALE if by_row and mode == "dynamic" else MappingProxyType({})


def require_name(name: object) -> str:
    """Return a recipe's name, which also names files and must not be that of a built-in recipe."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RECIPES:
        raise ConfigurationError(
            "A recipe's name must consist of letters, digits, _ and -, and must not be that of a "
            f"built-in recipe; received {name!r}."
        )
    return name


def parse_layers(pairs: object) -> Layers:
    """Return the layers in a recipe file, pairs of an expression and a storage."""
    if not isinstance(pairs, list) or not 0 < len(pairs) <= MOST_EXPRESSIONS:
        received = f"a list of {len(pairs)}" if isinstance(pairs, list) else shown(pairs)
        raise ConfigurationError(
            f"layers must be a list of 1 to {MOST_EXPRESSIONS} pairs, received {received}."
        )
    layers = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ConfigurationError(
                f'layers must be pairs such as [".*", "int8"], received {shown(pair)}.'
            )
        if not is_expression(pair[0]):
            raise ConfigurationError(f"layers must be {EXPRESSIONS}, received {shown(pair[0])}.")
        layers.append((pair[0], lookup("storage", pair[1], STORAGES).name))
    return tuple(layers)


def require_layers(recipe: Recipe, layers: Iterable[str]) -> None:
    """Raise ConfigurationError if an expression matches no layer, or if all layers are float32."""
    known = list(layers)
    for regex, _ in recipe.layers:
        if not any(re.fullmatch(regex, layer) for layer in known):
            raise ConfigurationError(
                f"The recipe {recipe.name} has the expression {regex!r}, which matches no layer. "
                f"Layers are named {known[0]}, {known[-1]} and so on; bart-export inspect lists "
                "them."
            )
    stores = recipe.layers and not recipe.calibrated  # a calibrated one has integer activations
    if stores and all(recipe.storage(layer).bits == 32 for layer in known):
        raise ConfigurationError(
            f"The recipe {recipe.name} stores every layer in float32, as the recipe float32 does. "
            f"Other storages are {', '.join(name for name in STORAGES if name != 'float32')}."
        )
