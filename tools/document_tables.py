"""Write the documentation's tables of presets, recipes and metrics from the code.

A table is between `<!-- NAME -->` and `<!-- /NAME -->`, where NAME is a key of `TABLES`. Run this
after a change; a test compares.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from bart_export.presets import PRESETS
from bart_export.recipes.metrics import AT_MOST, METRICS
from bart_export.recipes.table import DEFAULT, MODES, RECIPES, Tolerance, stored_as

ROOT = Path(__file__).parents[1]


def presets_table() -> str:
    return table(
        ("preset", "parameters", "what it is", "from"),
        (
            (
                f"`{preset.name}`",
                f"{preset.parameters / 1e6:.1f} M",
                preset.description,
                "this package" if preset.directory else f"`{preset.handle}`",
            )
            for preset in PRESETS.values()
        ),
    )


def recipes_table() -> str:
    return table(
        ("recipe", "weights", "activations", "for"),
        (
            (
                f"`{recipe.name}`" + (" (default)" if recipe.name == DEFAULT else ""),
                stored_as(recipe.layers),
                MODES[recipe.mode].description,
                recipe.purpose,
            )
            for recipe in RECIPES.values()
        ),
    )


def bounds_table() -> str:
    return table(
        ("recipe", "agreement with Keras", "runs on"),
        (
            (
                f"`{recipe.name}`",
                agreement(recipe.tolerance),
                ", ".join(f"{name} {version}" for name, version in recipe.runtimes.items()),
            )
            for recipe in RECIPES.values()
        ),
    )


def agreement(tolerance: Tolerance) -> str:
    if "rounding" in tolerance:
        logits = f"logits within {tolerance['rounding']:g} times Keras' float32 error"
    else:
        logits = f"logits within {tolerance['relative']:.2g} of their spread"
    if "tokens" in tolerance:
        return f"{logits}, every token"
    return f"{logits}, most likely token in {tolerance['top1']:.0%} of steps"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---")


def metrics_table() -> str:
    return table(
        ("metric", "what it is", "bound"),
        (
            (
                f"`{metric.name}`",
                metric.description.rstrip(","),
                "upper" if metric.side == AT_MOST else "lower",
            )
            for metric in METRICS.values()
        ),
    )


# Tables by name: the page, and the function that writes the table.
TABLES = {
    "presets": ("README.md", presets_table),
    "recipes": ("docs/guide/recipes.md", recipes_table),
    "bounds": ("docs/guide/recipes.md", bounds_table),
    "metrics": ("docs/guide/quality.md", metrics_table),
}


def filled(name: str, text: str) -> str:
    """Return a page's text with the table written anew."""
    page, make = TABLES[name]
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text, count = pattern.subn(lambda match: f"{begin}{make()}\n{end}", text)
    if count != 1:
        raise SystemExit(f"{page} must have one {begin.strip()}, it has {count}.")
    return text


if __name__ == "__main__":
    for name, (page, _) in TABLES.items():
        path = ROOT / page
        path.write_text(filled(name, path.read_text(encoding="utf-8")), encoding="utf-8")
