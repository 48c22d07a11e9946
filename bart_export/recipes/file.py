"""Recipe files: a recipe of one's own as JSON, for mixed precision layer by layer.

A file goes in and a `Recipe` comes out, and the other way about. `bart-export tune` writes such
files, `--recipe NAME.json` reads them. What the layers of a checkpoint are called is not known
here: an expression that matches none of them is refused where the checkpoint is at hand, by
`check_layers`.

    {
     "name": "int4_but_feedforward",
     "mode": "dynamic",
     "layers": [[".*", "int4"], [".*/feedforward_output", "int8"]],
     "tolerance": {"top1": 0.95}
    }
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from bart_export import documents
from bart_export.errors import ConfigurationError, shown
from bart_export.recipes import metrics
from bart_export.recipes.table import (
    BOTH,
    EXPRESSIONS,
    FOUR_BITS,
    LITERT_ONLY,
    MODES,
    MOST_EXPRESSIONS,
    ONE_SCALE,
    RECIPES,
    ROUNDED,
    STORAGES,
    Layers,
    Recipe,
    is_expression,
)

FIELDS = ("name", "mode", "layers", "tolerance")
# Recipes become names of files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def read(path: pathlib.Path) -> Recipe:
    """Read a recipe from a file.

    Raises:
        ConfigurationError: for a file that cannot be read, or a field that is missing, unknown, or
            has a value that no recipe can have.
    """
    try:
        content = documents.parse_json(documents.read(path, documents.MEBIBYTE))
    except OSError as error:
        raise ConfigurationError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"The recipe {path} must be JSON, but {error}.") from error
    try:
        return from_dict(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"The recipe {path} cannot be used: {error}") from error


def write(path: pathlib.Path, recipe: Recipe) -> None:
    """Write a recipe to a file that `read` reads, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    layers = ",\n  ".join(json.dumps(pair) for pair in recipe.layers)
    fields = {"name": recipe.name, "mode": recipe.mode, "tolerance": dict(recipe.tolerance)}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
    lines.append(f' "layers": [\n  {layers}\n ]')
    documents.replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def from_dict(content: Any) -> Recipe:
    """Return the recipe of a file's content; see `read`."""
    if not isinstance(content, dict):
        raise ConfigurationError(f"It must be an object with {', '.join(FIELDS)}.")
    unknown = sorted(set(content) - set(FIELDS))
    missing = sorted(set(FIELDS) - {"tolerance"} - set(content))
    if unknown or missing:
        wrong = f"has {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise ConfigurationError(f"Its fields must be {', '.join(FIELDS)}, and it {wrong}.")
    tolerance = content.get("tolerance", ROUNDED)
    if not isinstance(tolerance, (dict, MappingProxyType)):
        raise ConfigurationError(f"tolerance must map metrics to bounds, received {tolerance!r}.")
    layers = checked_layers(content["layers"])
    mode = checked_choice("mode", content["mode"], [mode for mode in MODES if mode != "float"])
    check_mode(mode, layers)
    refused = refusals(mode, layers)
    return Recipe(
        checked_name(content["name"]),
        purpose="a recipe of one's own",
        mode=mode,
        layers=layers,
        tolerance=MappingProxyType(
            {name: metrics.check(name, bound) for name, bound in tolerance.items()}
        ),
        runtimes=LITERT_ONLY if refused else BOTH,
        refusals=refused,
    )


def check_mode(mode: str, layers: Layers) -> None:
    """Refuse blocks whose matrices are to be widened: no operator does that."""
    blocks = [name for _, name in layers if "blockwise" in (STORAGES[name].granularity or "")]
    if mode == "weight_only" and blocks:
        raise ConfigurationError(
            f"The mode weight_only can widen rows and whole matrices, received {blocks[0]!r}, "
            "which is in blocks. The mode dynamic takes it."
        )


def refusals(mode: str, layers: Layers) -> Mapping[str, str]:
    """Return why engines are refused: what the table's recipes were measured to do, by storage."""
    if MODES[mode].activation_bits is not None:
        return next(recipe.refusals for recipe in RECIPES.values() if recipe.mode == mode)
    storages = [STORAGES[name] for _, name in layers]
    if any(storage.bits == 4 for storage in storages):
        return FOUR_BITS
    by_row = any(storage.granularity == "channelwise" for storage in storages)
    # Matrices that are widened first are widened rightly, row by row.
    return ONE_SCALE if by_row and mode == "dynamic" else MappingProxyType({})


def checked_name(name: Any) -> str:
    """Return a name that a file can have and no recipe of the table has."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RECIPES:
        raise ConfigurationError(
            "name must be letters, digits, _ and -, and none of the recipes that bart-export "
            f"has; received {name!r}."
        )
    return name


def checked_choice(field: str, value: Any, choices: Iterable[str]) -> str:
    """Return a value that is one of some words."""
    if value not in list(choices):
        raise ConfigurationError(
            f"{field} must be one of {', '.join(choices)}, received {value!r}."
        )
    return str(value)


def checked_layers(pairs: Any) -> Layers:
    """Return pairs of an expression that compiles and a way of storing."""
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
        layers.append((pair[0], checked_choice("storage", pair[1], STORAGES)))
    return tuple(layers)


def check_layers(recipe: Recipe, layers: Iterable[str]) -> None:
    """Refuse a recipe with an expression that matches none of a checkpoint's layers, or of nothing.

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
